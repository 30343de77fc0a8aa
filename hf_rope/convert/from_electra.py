"""ELECTRA (Clark et al. 2020): the encoder, the generator's masked-LM head, the fine-tuned heads."""

from .source import (
    CLASSIFIERS,
    COMPUTED,
    DENSE_CLASSIFIER,
    EMBEDDINGS,
    LAYERS,
    POSITIONS,
    PROJECTIONS,
    Source,
    absolute_or_relative,
    drop_unread_positions,
    refuse,
)

SUMMARY = "hf_rope pools the first token through one dense layer"


class ElectraSource(Source):
    prefix = "electra"
    names = {
        **{**EMBEDDINGS, **POSITIONS, **PROJECTIONS, **LAYERS, **CLASSIFIERS, **DENSE_CLASSIFIER},
        "embeddings_project": "embedding_projection",
        "generator_predictions.dense": "lm_head.dense",
        "generator_predictions.LayerNorm": "lm_head.norm",
        "generator_lm_head": "lm_head.decoder",
        "sequence_summary.summary": "pooler.dense",
    }
    dropped = {**COMPUTED, r"^discriminator_predictions\.": "hf_rope has no discriminator head"}
    refused_heads = {
        "ForPreTraining": "hf_rope has no discriminator head: convert ElectraModel.from_pretrained(...)",
        "ForCausalLM": "only decoders of BERT and RoFormer are: convert ElectraModel.from_pretrained(...)",
    }

    def check(self, config, head):
        super().check(config, head)
        if head == "ForMaskedLM":
            refuse(config, "hidden_act", ("gelu",), "its masked-LM head has gelu whatever the layers have")
        if head == "ForMultipleChoice":
            check_summary(config)
            refuse(config, "summary_use_proj", (True,), SUMMARY)

    def settings(self, config, head):
        found = {
            "position_embedding_type": absolute_or_relative(config),
            "embedding_size": config.embedding_size,
            "pooler_activation": "gelu",
        }
        return found | (summary_settings(config) if head == "ForMultipleChoice" else {})

    def adapt(self, tensors, config, head, report):
        drop_unread_positions(tensors, config, report)


def check_summary(config) -> None:
    """Refuses a summary of a sequence that hf_rope's pooler cannot be."""
    refuse(config, "summary_type", ("first",), SUMMARY)
    refuse(config, "summary_proj_to_labels", (False,), SUMMARY)


def summary_settings(config) -> dict:
    """The pooler of a summary of the first token."""
    return {
        "pooler_activation": getattr(config, "summary_activation", None) or "linear",
        "classifier_dropout": getattr(config, "summary_last_dropout", 0.0),
    }

"""SOURCES: every architecture that can be converted. BERT and its kin are here, the others in files of their own."""

import re
from dataclasses import fields
from typing import Any

from ..model.configuration_hf_rope import HfRopeConfig
from .from_deberta import DebertaSource, DebertaV2Source
from .from_roformer import RoFormerSource
from .from_rotary import GteSource, JinaSource, NomicBertSource
from .source import (
    CLASSIFIERS,
    COMPUTED,
    CROSS_ATTENTION,
    DENSE_CLASSIFIER,
    EMBEDDINGS,
    LAYERS,
    LM_HEAD,
    POOLER,
    POSITIONS,
    PREDICTIONS,
    PROJECTIONS,
    RELATIVE_KEYS,
    TABLE,
    Source,
    absolute_or_relative,
    check_summary,
    refuse,
    summary_settings,
)
from .weights import Report


class BertSource(Source):
    """BERT (Devlin et al. 2018), also with the relative keys of transformers 4."""

    prefix = "bert"
    names = {
        **{**EMBEDDINGS, **POSITIONS, **PROJECTIONS, **LAYERS, **CROSS_ATTENTION},
        **{**POOLER, **PREDICTIONS, **CLASSIFIERS},
    }
    heads = {"ForPreTraining": "ForMaskedLM", "LMHeadModel": "ForCausalLM"}
    decodes = True
    dropped = {**COMPUTED, r"^cls\.seq_relationship\.": "hf_rope has no next-sentence head"}
    refused_heads = {"ForNextSentencePrediction": "hf_rope has no next-sentence head: convert BertModel"}


class RobertaSource(Source):
    """RoBERTa (Liu et al. 2019), and XLM-RoBERTa and CamemBERT, which have its architecture.

    Its positions begin at pad_token_id + 1: the rows before are cut off, so that they begin at 0. It does not count
    padding tokens; hf_rope counts all tokens of the attention mask, which is the same where every padding token is
    masked.
    """

    prefix = "roberta"
    names = {
        **{**EMBEDDINGS, **POSITIONS, **PROJECTIONS, **LAYERS, **POOLER},
        **{**LM_HEAD, **CLASSIFIERS, **DENSE_CLASSIFIER},
    }
    dropped = COMPUTED
    gelu_head = True
    refused_heads = {"ForCausalLM": "only decoders of BERT and RoFormer are: convert the encoder alone"}

    def check(self, config, head):
        super().check(config, head)
        if config.pad_token_id is None:
            refuse(config, "pad_token_id", "its positions begin after that: set it, as a rule to 1")

    def settings(self, config, head):
        scheme = absolute_or_relative(config)
        found: dict[str, Any] = {"position_embedding_type": scheme}
        if head == "ForMultipleChoice":  # which has hidden_dropout_prob in this family
            found["classifier_dropout"] = None
        if scheme not in RELATIVE_KEYS:
            found["max_position_embeddings"] = config.max_position_embeddings - config.pad_token_id - 1
        return found

    def adapt(self, tensors, config, head, report):
        super().adapt(tensors, config, head, report)
        cut_rows(tensors, config.pad_token_id + 1, report)


class MPNetSource(Source):
    """MPNet (Song et al. 2020): T5's buckets and an absolute table, which begins at 2 whatever `pad_token_id` is."""

    prefix = "mpnet"
    names = {
        **{**EMBEDDINGS, **LAYERS, **POOLER, **LM_HEAD, **CLASSIFIERS, **DENSE_CLASSIFIER},
        "embeddings.position_embeddings": "position.absolute",
        "encoder.relative_attention_bias": "position.bias",
        "encoder.layer.{}.attention.attn.q": "layers.{}.attention.query",
        "encoder.layer.{}.attention.attn.k": "layers.{}.attention.key",
        "encoder.layer.{}.attention.attn.v": "layers.{}.attention.value",
        "encoder.layer.{}.attention.attn.o": "layers.{}.attention.output",
        "encoder.layer.{}.attention.LayerNorm": "layers.{}.attention_norm",
    }
    dropped = COMPUTED
    gelu_head = True
    offset = 2

    def check(self, config, head):
        super().check(config, head)
        refuse(config, "relative_attention_num_buckets", "the native class sorts into 32 buckets", unless=(32,))
        refuse(config, "pad_token_id", "the native class counts positions from token 1 as padding", unless=(1,))

    def settings(self, config, head):
        return {
            "position_embedding_type": "t5",
            "position_options": {"num_buckets": 32, "max_distance": 128, "absolute_embeddings": True},
            "max_position_embeddings": config.max_position_embeddings - self.offset,
            "type_vocab_size": 0,
        }

    def adapt(self, tensors, config, head, report):
        cut_rows(tensors, self.offset, report)


def cut_rows(tensors: dict, count: int, report: Report) -> None:
    """Cuts the first rows off the absolute table: those of padding and before it."""
    if TABLE in tensors:
        tensors[TABLE] = tensors[TABLE][count:]
        report.notes.append(f"The first {count} rows of {TABLE} are cut off: no token has these positions.")


class ElectraSource(Source):
    """ELECTRA (Clark et al. 2020): the encoder, the generator's masked-LM head, the fine-tuned heads."""

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
    gelu_head = True
    refused_heads = {
        "ForPreTraining": "hf_rope has no discriminator head: convert ElectraModel.from_pretrained(...)",
        "ForCausalLM": "only decoders of BERT and RoFormer are: convert ElectraModel.from_pretrained(...)",
    }

    def check(self, config, head):
        super().check(config, head)
        if head == "ForMultipleChoice":
            check_summary(config)
            refuse(config, "summary_use_proj", "hf_rope's pooler has a dense layer", unless=(True,))

    def settings(self, config, head):
        found = {
            "position_embedding_type": absolute_or_relative(config),
            "embedding_size": config.embedding_size,
            "pooler_activation": "gelu",
        }
        return found | (summary_settings(config) if head == "ForMultipleChoice" else {})


class AlbertSource(Source):
    """ALBERT (Lan et al. 2019): layers that share their weights, written out."""

    prefix = "albert"
    names = {
        **{**EMBEDDINGS, **CLASSIFIERS, "embeddings.position_embeddings": POSITIONS["embeddings.position_embeddings"]},
        "encoder.embedding_hidden_mapping_in": "embedding_projection",
        **{f"encoder.layer.{{}}.attention.{x}": f"layers.{{}}.attention.{x}" for x in ("query", "key", "value")},
        "encoder.layer.{}.attention.distance_embedding": "layers.{}.attention.position.distance_embeddings",
        "encoder.layer.{}.attention.dense": "layers.{}.attention.output",
        "encoder.layer.{}.attention.LayerNorm": "layers.{}.attention_norm",
        "encoder.layer.{}.ffn": "layers.{}.intermediate",
        "encoder.layer.{}.ffn_output": "layers.{}.output",
        "encoder.layer.{}.full_layer_layer_norm": "layers.{}.output_norm",
        "pooler": "pooler.dense",
        "predictions": "lm_head.decoder",
        "predictions.decoder": "lm_head.decoder",
        "predictions.dense": "lm_head.dense",
        "predictions.LayerNorm": "lm_head.norm",
    }
    heads = {"ForPreTraining": "ForMaskedLM"}
    dropped = {**COMPUTED, r"^sop_classifier\.": "hf_rope has no sentence-order head"}
    shared_layer = re.compile(r"^encoder\.albert_layer_groups\.(\d+)\.albert_layers\.(\d+)\.(.*)$")

    def check(self, config, head):
        super().check(config, head)
        groups = range(1, config.num_hidden_layers + 1)
        refuse(config, "num_hidden_groups", "it must be from 1 to num_hidden_layers", unless=groups)
        if config.embedding_size == config.hidden_size:
            projected = "equal to hidden_size, it is still projected (encoder.embedding_hidden_mapping_in)"
            refuse(config, "embedding_size", f"{projected}, and hf_rope has no projection between equal sizes")

    def settings(self, config, head):
        return {
            "position_embedding_type": absolute_or_relative(config),
            "embedding_size": config.embedding_size,
            "num_hidden_layers": config.num_hidden_layers * config.inner_group_num,
            "classifier_dropout": config.classifier_dropout_prob,
        }

    def adapt(self, tensors, config, head, report):
        super().adapt(tensors, config, head, report)
        shared = [(match, tensors.pop(key)) for key in [*tensors] if (match := self.shared_layer.match(key))]
        inner = config.inner_group_num
        for match, tensor in shared:
            group, position, rest = int(match[1]), int(match[2]), match[3]
            for layer in range(config.num_hidden_layers):
                if int(layer / (config.num_hidden_layers / config.num_hidden_groups)) == group:
                    tensors[f"encoder.layer.{layer * inner + position}.{rest}"] = tensor
        report.notes.append(
            f"The weights of {config.num_hidden_groups * inner} shared layers are written out into "
            f"{config.num_hidden_layers * inner}: in training the copies go apart."
        )


class HfRopeSource(Source):
    """hf_rope itself, for another position scheme or rotary's other pairing."""

    prefix = "model"
    decodes = True

    def settings(self, config, head):
        own = {field.name for field in fields(HfRopeConfig)} - {"architectures", "dtype", "transformers_version"}
        return {key: value for key, value in config.to_dict().items() if key in own}

    def names_of(self, config):
        return None


SOURCES: dict[str, Source] = {
    "bert": BertSource(),
    "roberta": RobertaSource(),
    "xlm-roberta": RobertaSource(),
    "camembert": RobertaSource(),
    "electra": ElectraSource(),
    "albert": AlbertSource(),
    "mpnet": MPNetSource(),
    "deberta": DebertaSource(),
    "deberta-v2": DebertaV2Source(),
    "roformer": RoFormerSource(),
    "jina_embeddings_v3": JinaSource(),
    "nomic_bert": NomicBertSource(),
    "gte": GteSource(),
    "hf_rope": HfRopeSource(),
}
"""By the `model_type` of the configuration."""

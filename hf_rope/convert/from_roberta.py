"""RoBERTa (Liu et al. 2019), and XLM-RoBERTa and CamemBERT, which have its architecture."""

from .source import (
    CLASSIFIERS,
    COMPUTED,
    DENSE_CLASSIFIER,
    EMBEDDINGS,
    LAYERS,
    LM_HEAD,
    POOLER,
    POSITIONS,
    PROJECTIONS,
    RELATIVE_KEYS,
    TABLE,
    Source,
    absolute_or_relative,
    drop_unread_positions,
    refuse,
)

GELU = "its masked-LM head has gelu whatever the layers have: convert the encoder alone"


class RobertaSource(Source):
    """Its positions begin at pad_token_id + 1: the rows before are cut off, so that they begin at 0.

    It does not count padding tokens; hf_rope counts all tokens of the attention mask, which is the same where every
    padding token is masked.
    """

    prefix = "roberta"
    names = {
        **{**EMBEDDINGS, **POSITIONS, **PROJECTIONS, **LAYERS, **POOLER},
        **{**LM_HEAD, **CLASSIFIERS, **DENSE_CLASSIFIER},
    }
    dropped = COMPUTED
    refused_heads = {"ForCausalLM": "only decoders of BERT and RoFormer are: convert the encoder alone"}

    def check(self, config, head):
        super().check(config, head)
        if head == "ForMaskedLM":
            refuse(config, "hidden_act", ("gelu",), GELU)
        if config.pad_token_id is None:
            raise ValueError(
                "The source has pad_token_id=None, and its positions begin after it: set it, as a rule to 1."
            )

    def settings(self, config, head):
        scheme = absolute_or_relative(config)
        if scheme in RELATIVE_KEYS:
            return {"position_embedding_type": scheme}
        rows = config.max_position_embeddings - config.pad_token_id - 1
        return {"position_embedding_type": scheme, "max_position_embeddings": rows}

    def adapt(self, tensors, config, head, report):
        drop_unread_positions(tensors, config, report)
        cut_rows(tensors, config.pad_token_id + 1, report)


def cut_rows(tensors, count: int, report) -> None:
    """Cuts the first rows off the absolute table: those of padding and before it."""
    if TABLE in tensors:
        tensors[TABLE] = tensors[TABLE][count:]
        report.notes.append(f"The first {count} rows of {TABLE} are cut off: no token has these positions.")

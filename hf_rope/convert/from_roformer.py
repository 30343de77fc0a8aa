"""RoFormer (Su et al. 2021): `rotary`, interleaved. Not RoFormer-V2, which has no biases and another norm."""

import torch
import transformers
from packaging.version import Version

from ..model.relative import sinusoid
from .source import (
    CLASSIFIERS,
    COMPUTED,
    CROSS_ATTENTION,
    DENSE_CLASSIFIER,
    EMBEDDINGS,
    LAYERS,
    PREDICTIONS,
    PROJECTIONS,
    Source,
    check_summary,
    refuse,
    summary_settings,
)
from .weights import Report

ANGLES = "encoder.embed_positions.weight"
CAUSAL_SINCE = "5.18"
"""The transformers whose native decoders are causal again."""


class RoFormerSource(Source):
    prefix = "roformer"
    names = {
        **{**EMBEDDINGS, **PROJECTIONS, **LAYERS, **CROSS_ATTENTION},
        **{**PREDICTIONS, **CLASSIFIERS, **DENSE_CLASSIFIER},
        "embeddings_project": "embedding_projection",
        "sequence_summary.summary": "pooler.dense",
    }
    dropped = COMPUTED
    reads = (
        *("summary_type", "summary_use_proj", "summary_activation", "summary_last_dropout"),
        *("summary_proj_to_labels", "summary_first_dropout", "norm_type", "use_bias"),
    )
    decodes = True

    def check(self, config, head):
        super().check(config, head)
        refuse(config, "norm_type", "hf_rope has LayerNorm; this is RoFormer-V2", unless=("layer_norm",))
        refuse(config, "use_bias", "hf_rope has biases; this is RoFormer-V2", unless=(True,))
        if head == "ForMultipleChoice":
            if not hasattr(config, "summary_type"):
                raise ValueError(
                    "The source has no summary_type, and RoFormerForMultipleChoice then pools the last token, padding "
                    "or not: convert RoFormerModel, or train with summary_type='first'."
                )
            check_summary(config)

    def settings(self, config, head):
        found = {
            "position_embedding_type": "rotary",
            "position_options": {"pairing": "interleaved", "rotary_value": config.rotary_value},
            "embedding_size": config.embedding_size,
            "pooler_activation": config.hidden_act,
        }
        return found | (summary_settings(config) if head == "ForMultipleChoice" else {})

    def adapt(self, tensors, config, head, report):
        note_decoder(config, report)
        if (table := tensors.pop(ANGLES, None)) is not None:
            sin, cos = sinusoid(torch.arange(len(table)), table.shape[1], torch.float32)
            difference = float((table.cpu().float() - torch.cat((sin, cos), -1)).abs().max())
            if difference > 1e-2:
                raise ValueError(
                    f"{ANGLES} differs by {difference:.2g} from the sines and cosines of RoFormer, which are computed "
                    "here: these positions cannot be converted."
                )
            report.dropped[ANGLES] = "sines and cosines, computed at every forward"
        if head == "ForMultipleChoice" and not getattr(config, "summary_use_proj", False):
            weight = tensors["embeddings.word_embeddings.weight"]
            size = config.hidden_size
            tensors["sequence_summary.summary.weight"] = torch.eye(size, dtype=weight.dtype, device=weight.device)
            tensors["sequence_summary.summary.bias"] = torch.zeros(size, dtype=weight.dtype, device=weight.device)
            for leaf in ("weight", "bias"):
                report.new[f"sequence_summary.summary.{leaf}"] = "the identity: the source pools without a projection"


def note_decoder(config, report: Report) -> None:
    """Says where the native decoder of the transformers at hand computes something else."""
    if config.is_decoder and Version(transformers.__version__) < Version(CAUSAL_SINCE):
        report.notes.append(
            f"A RoFormer decoder of transformers {transformers.__version__} sees later tokens, and hf_rope's does not: "
            f"from transformers {CAUSAL_SINCE} on they are equal."
        )

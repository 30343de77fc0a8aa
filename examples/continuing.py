"""Where a training goes on from a checkpoint: its configuration as an hf_rope model, and its weights.

The checkpoint is one of hf_rope or any that `hf_rope.convert` reads, and may go on under another position scheme.
"""

from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel

from hf_rope import HfRopeConfig, HfRopeForMaskedLM
from hf_rope.convert import convert


def continued_config(name: str, scheme: str | None, length: int, overrides: dict[str, Any]) -> HfRopeConfig:
    """The configuration of a checkpoint as an hf_rope model, for texts of `length` tokens.

    Args:
        scheme: the positions to go on with; None for the checkpoint's own.
        overrides: further changes.
    """
    try:
        model, report = convert(name, scheme, overrides.get("position_options"), return_report=True)
        config = HfRopeConfig.from_dict(model.config.to_dict(), **overrides)
    except (OSError, ValueError, TypeError, StrictDataclassError) as error:
        raise SystemExit(" ".join(str(error).split())) from error
    print("\n".join([f"{report.source} as {config.position_embedding_type}", *report.notes]))
    limit = model.base_model.position.max_length
    if limit is not None and length > limit:
        raise SystemExit(
            f"The positions of {name} end at {limit}, and pieces of text have up to {length} tokens: lower --lengths, "
            "or go on under others, such as --position rotary."
        )
    scaling = (config.rope_parameters or {}).get("rope_type", "default")
    if limit is None and scaling == "default":  # else it is the length that the scaling begins at
        config.max_position_embeddings = max(length, config.max_position_embeddings)
    return config


def load_checkpoint(name: str, config: HfRopeConfig) -> PreTrainedModel:
    """The masked LM of `config` in float32 with a checkpoint's weights; what the checkpoint lacks is new."""
    try:
        converted = convert(name, config.position_embedding_type, config.position_options)
        weights = converted.state_dict()
        return HfRopeForMaskedLM.from_pretrained(None, config=config, state_dict=weights, dtype=torch.float32)
    except (OSError, ValueError, TypeError) as error:
        raise SystemExit(str(error)) from error
    except RuntimeError as error:  # after a table of the tensors that do not fit
        raise SystemExit(
            f"The weights of {name} do not have the sizes of --config_overrides, as listed above: leave these out."
        ) from error

"""Tiny models, and the cases that every property test runs over."""

import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from itertools import product
from typing import Any

import pytest
import torch

from hf_rope import SCHEMES, HfRopeConfig, HfRopeModel

SIZES: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "none-scaled": {"scale_embedding": True},
    "sinusoidal-factorised": {"embedding_size": 20},
    "sinusoidal-unscaled": {"scale_embedding": False},
    "learned-factorised": {"embedding_size": 20},
    "shaw-keys-only": {"position_options": {"relative_values": False, "max_distance": 3}},
    "shaw-short": {"position_options": {"max_distance": 3}},
    "t5-small": {"position_options": {"num_buckets": 8, "max_distance": 12}},
    "t5-absolute": {"position_options": {"absolute_embeddings": True}, "embedding_size": 20},
    "tupe-tied": {"position_options": {"untie_cls": False}},
    "tupe-relative": {"position_options": {"relative_bias": True, "num_buckets": 8, "max_distance": 12}},
    "deberta-c2p": {"position_options": {"pos_att_type": ["c2p"], "position_buckets": 0, "max_relative_positions": 6}},
    "deberta-p2c": {"position_options": {"pos_att_type": ["p2c"], "position_buckets": 8, "max_relative_positions": 16}},
    "deberta-v1": {
        "position_options": {
            "share_att_key": False,
            "norm_rel_ebd": False,
            "position_buckets": 0,
            "max_relative_positions": 7,
        }
    },
    "deberta-buckets": {"position_options": {"position_buckets": 8, "max_relative_positions": 16}},
    "deberta-absolute": {
        "position_options": {"absolute_embeddings": True, "position_buckets": 8, "max_relative_positions": 16}
    },
    "alibi-symmetric": {"position_options": {"form": "symmetric"}},
    "alibi-6-heads": {"position_options": {"form": "symmetric"}, "num_attention_heads": 6, "hidden_size": 36},
    "alibi-one-sided": {"position_options": {"form": "one_sided"}, "num_attention_heads": 6, "hidden_size": 36},
    "kerple-power": {"position_options": {"kernel": "power"}},
    "fire-narrow": {"position_options": {"width": 5, "threshold": 3}},
    "rotary-halves": {"position_options": {"pairing": "halves"}},
    "rotary-value": {"position_options": {"rotary_value": True}},
    "rotary-value-yarn": {
        "position_options": {"rotary_value": True},
        "rope_parameters": {"rope_type": "yarn", "factor": 4.0},
    },
    "rotary-halves-value": {"position_options": {"rotary_value": True, "pairing": "halves"}},
    "rotary-partial": {"rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.5}},
    "rotary-linear": {"rope_parameters": {"rope_type": "linear", "factor": 4.0}},
    "rotary-dynamic": {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}, "max_position_embeddings": 8},
    "rotary-yarn": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
    "rotary-longrope": {
        "rope_parameters": {
            "rope_type": "longrope",
            "factor": 4.0,
            "short_factor": [1.0, 1.5, 2.0, 2.5],
            "long_factor": [2.0, 3.0, 4.0, 5.0],
            "original_max_position_embeddings": 25,
        }
    },
    "rotary-proportional": {"rope_parameters": {"rope_type": "proportional", "partial_rotary_factor": 0.5}},
    "rotary-llama3": {
        "rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    },
    "rotary-elu": {"attention_type": "linear"},
    "rotary-elu-value": {"attention_type": "linear", "position_options": {"rotary_value": True}},
    "rotary-favor": {"attention_type": "linear", "feature_map": "favor", "num_features": 12},
    "rotary-favor-yarn": {
        "attention_type": "linear",
        "feature_map": "favor",
        "rope_parameters": {"rope_type": "yarn", "factor": 4.0},
    },
    "rotary-gated": {"feed_forward_type": "gated", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    "rotary-gated-biases": {"feed_forward_type": "gated"},
    "rotary-favor-gated": {
        **{"attention_type": "linear", "feature_map": "favor", "num_features": 12},
        **{"feed_forward_type": "gated", "attention_bias": False},
    },
    "deberta-no-biases": {
        "position_options": {"position_buckets": 8, "max_relative_positions": 16},
        **{"attention_bias": False, "mlp_bias": False},
    },
    "learned-elu": {"attention_type": "linear"},
    "none-favor": {"attention_type": "linear", "feature_map": "favor", "feature_seed": 3},
}
"""Settings of a scheme beside its defaults, by "scheme-what": more rows, never more test code."""

CASES = [*SCHEMES, *VARIANTS]
QUICK = [*SCHEMES, "rotary-elu", "rotary-favor", "rotary-gated"]
"""The cases of `make test`: every scheme with its defaults, each kind of linear attention, a gate without biases."""
FEW = [next(s for s in SCHEMES if SCHEMES[s].score == "content"), next(s for s in SCHEMES if SCHEMES[s].rotates)]
"""Those of them for what takes seconds a case: a scheme that adds to the scores, and one that rotates."""


def over(
    quick: Collection | None = None, where: Callable[..., bool] = lambda *row: True, **axes: Iterable
) -> pytest.MarkDecorator:
    """Parametrises a test over the product of `axes`, of which `make test` runs a few rows and `make test-full` all.

    The few hold each value of each axis at least once; all other rows are marked `full`. Of
    `over(case=CASES, dense=[False, True])`, `make test` runs every scheme once, and half of them dense.

    Args:
        quick: the values of the first axis that `make test` runs; if left out, all but the VARIANTS beyond QUICK.
        where: tells of the values of a row whether there is such a row; if left out, there are all.
        axes: the values of each argument of the test.
    """
    rows = [row for row in product(*axes.values()) if where(*row)]
    if quick is None:
        quick = [first for first, *_ in rows if first in QUICK or first not in VARIANTS]
    few = covering([row for row in rows if row[0] in quick])
    return pytest.mark.parametrize(
        tuple(axes), [pytest.param(*row, marks=() if row in few else pytest.mark.full) for row in rows]
    )


def covering(rows: list[tuple]) -> list[tuple]:
    """Few of the rows, holding at each place all that any row holds; of rows with something new, the least used one."""
    used: Counter[tuple[int, Any]] = Counter()
    few = []
    while new := [row for row in rows if any(not used[at] for at in enumerate(row))]:
        few.append(min(new, key=lambda row: sum(used[at] for at in enumerate(row))))
        used.update(enumerate(few[-1]))
    return few


def tiny_config(case: str, **changes) -> HfRopeConfig:
    """The configuration of a case: a scheme with its defaults, or one of VARIANTS."""
    return HfRopeConfig(**{**SIZES, "position_embedding_type": case.split("-")[0], **VARIANTS.get(case, {}), **changes})


def tiny_model(case: str, model_class=HfRopeModel, **changes):
    """A model in eval mode whose weights, positional ones and norms included, are large enough to matter."""
    torch.manual_seed(0)
    model = model_class._from_config(tiny_config(case, **changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            center = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            if parameter.numel() == 1:  # such as a length, from which on a scheme computes in another way
                center = float(parameter)
            parameter.copy_(center + 0.3 * torch.randn_like(parameter))
    return model


def set_reads(patch: pytest.MonkeyPatch, free: bool) -> None:
    """Makes reading values free or not for all of the model, as on a CPU or on an accelerator."""
    for name, module in [*sys.modules.items()]:
        if name.startswith("hf_rope.model.") and hasattr(module, "reads_are_free"):
            patch.setattr(module, "reads_are_free", lambda x: free)


def token_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    """Ids that are never the padding id."""
    return torch.randint(1, SIZES["vocab_size"], shape, generator=torch.Generator().manual_seed(seed))


def refused(call: Callable, *mentions: str, error: type[Exception] = ValueError) -> None:
    """Asserts that a call raises one sentence, in which are the setting, its value, the limit and the way out."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert [part for part in mentions if part not in message] == [], message
    assert "\n" not in message
    assert message.endswith(".")
    assert ". " not in message

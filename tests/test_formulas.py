"""Each scheme equals its formula, written as plain loops."""

import pytest
import torch

import reference
from helpers import CASES, over, tiny_model, token_ids
from hf_rope import SCHEMES

LARGE = {"kerple-power": ("r2", [-1.5, 1.5, 2.5, 5.5]), "fire": ("log_threshold", [3.0])}
"""A parameter of a case and its values: exponents on all sides of their limits, a threshold beyond all positions."""


def positions(kind: str, length: int) -> torch.Tensor:
    at = torch.arange(length)
    if kind == "gaps":
        at = torch.tensor([0, 2, 3, 7, 1, 12, 21, 20, 30, 5])[:length]
    if kind == "rows":
        return torch.stack((at, at + 3))
    return at[None]


@over(quick=CASES, case=CASES, kind=["consecutive", "gaps", "rows"], is_decoder=[False, True])
def test_equals_the_plain_loops(case, kind, is_decoder):
    """The last of two rows does, of which the other has other positions where `kind` is rows."""
    compare(tiny_model(case, is_decoder=is_decoder, use_cache=False), positions(kind, 10))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("feed_forward", ["dense", "gated"])
def test_equals_the_plain_loops_without_biases(scheme, feed_forward):
    bare = {"feed_forward_type": feed_forward, "attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}
    model = tiny_model(scheme, **bare)
    own = [name for name, _ in model.layers.named_parameters() if "norm" not in name and "position" not in name]
    assert not [name for name in own if name.endswith("bias")]
    compare(model, positions("consecutive", 10))


@pytest.mark.parametrize("is_decoder", [False, True])
@pytest.mark.parametrize("case", LARGE)
def test_equals_the_plain_loops_at_values_that_small_weights_do_not_reach(case, is_decoder):
    model = tiny_model(case, is_decoder=is_decoder, use_cache=False)
    name, values = LARGE[case]
    with torch.no_grad():
        model.position.get_parameter(name).copy_(torch.tensor(values))
    compare(model, positions("consecutive", 10))


def compare(model, at: torch.Tensor) -> None:
    model, ids = model.double(), token_ids(2, 10)
    with torch.no_grad():
        ours = model(ids, position_ids=at).last_hidden_state[1:]
    # transformers' scaled frequencies are float32, whatever the model is.
    scaled = (model.config.rope_parameters or {}).get("rope_type", "default") != "default"
    torch.testing.assert_close(ours, reference.encode(model, ids[1:], at[-1:]), rtol=0, atol=1e-6 if scaled else 1e-9)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_has_a_formula(scheme):
    assert scheme in {*reference.SCORES, *reference.EMBEDS}

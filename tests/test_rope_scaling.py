"""`rope_parameters`: every type turns as transformers' own embedding does, and follows each input's length alone."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from helpers import CASES, over, tiny_config, tiny_model, token_ids
from hf_rope import SCHEMES

ORIGINAL = 24
FACTORS = {"factor": 4.0, "rope_theta": 500.0}
TYPES = {
    "default": {"rope_theta": 500.0},
    "linear": FACTORS,
    "dynamic": FACTORS,
    "proportional": FACTORS,
    "yarn": {**FACTORS, "original_max_position_embeddings": ORIGINAL, "beta_fast": 4.0},
    "longrope": {
        **{**FACTORS, "original_max_position_embeddings": ORIGINAL},
        **{"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [2.0, 3.0, 4.0, 5.0]},
    },
    "llama3": {
        **{**FACTORS, "original_max_position_embeddings": ORIGINAL},
        **{"low_freq_factor": 1.0, "high_freq_factor": 4.0},
    },
}


def settings(rope_type: str) -> dict:
    """Where the type says what the model was trained with apart, the longest input is longer."""
    parameters = {"rope_type": rope_type, **TYPES[rope_type]}
    longest = ORIGINAL * (4 if "original_max_position_embeddings" in parameters else 1)
    return {"rope_parameters": parameters, "max_position_embeddings": longest}


def test_all_types_of_transformers_are_tested():
    assert set(TYPES) == {"default", *ROPE_INIT_FUNCTIONS}


@pytest.mark.parametrize("length", [ORIGINAL - 1, ORIGINAL, ORIGINAL + 1, 4 * ORIGINAL, 7 * ORIGINAL])
@pytest.mark.parametrize("rope_type", TYPES)
def test_turns_are_those_of_transformers_own_embedding(rope_type, length):
    config = tiny_config("rotary-halves", **settings(rope_type))
    sizes = {"hidden_size": config.hidden_size, "num_attention_heads": config.num_attention_heads}
    native = LlamaRotaryEmbedding(LlamaConfig(**sizes, **settings(rope_type)))
    at = torch.arange(length)[None]
    expected = native(torch.zeros(1), at)
    (ours,), factor = SCHEMES["rotary"](config).rotations(at, torch.float32)
    for turn, theirs in zip((ours.real, ours.imag), expected, strict=True):
        first, second = theirs.chunk(2, dim=-1)
        torch.testing.assert_close(factor * turn[:, 0], first, rtol=0, atol=2e-5)
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("p", [0.25, 0.5, 0.75, 1.0])
def test_proportional_is_p_rope(p):
    """The fastest p of RoPE's own frequencies, and 0 for the slowest."""
    rope = {"rope_type": "proportional", "rope_theta": 500.0, "partial_rotary_factor": p}
    config = tiny_config("rotary", rope_parameters=rope)
    found, factor = SCHEMES["rotary"](config).frequencies(torch.arange(5)[None], torch.float32)
    expected = [500 ** (-2 * t / 8) if t < 4 * p else 0 for t in range(4)]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert factor == 1


@pytest.mark.parametrize("rope_type", [name for name in TYPES if name != "default"])
def test_every_scaling_changes_an_input_beyond_the_trained_length(rope_type):
    scaled = tiny_model("rotary", **settings(rope_type))
    plain = tiny_model("rotary", **{**settings(rope_type), "rope_parameters": {"rope_theta": 500.0}})
    plain.load_state_dict(scaled.state_dict())
    ids = token_ids(1, 4 * ORIGINAL)
    with torch.no_grad():
        assert (scaled(ids).last_hidden_state - plain(ids).last_hidden_state).abs().max() > 1e-2


@pytest.mark.parametrize("rope_type", TYPES)
def test_a_long_call_leaves_nothing_behind(rope_type):
    assert_independent_of_earlier_calls(
        tiny_model("rotary", **settings(rope_type)), ORIGINAL - 4, 4 * ORIGINAL, ORIGINAL + 6
    )


@pytest.mark.parametrize("rope_type", TYPES)
def test_angles_are_computed_where_the_model_is_whatever_the_default_device(rope_type):
    model = tiny_model("rotary", **settings(rope_type))
    ids = token_ids(1, 2 * ORIGINAL)
    with torch.no_grad():
        expected = model(ids).last_hidden_state
        with torch.device("meta"):
            found = model(ids).last_hidden_state
    assert torch.equal(found, expected)


@over(case=CASES)
def test_a_long_call_leaves_nothing_behind_under_any_scheme(case):
    assert_independent_of_earlier_calls(tiny_model(case), 6, 60, 30)


def assert_independent_of_earlier_calls(model, short: int, long: int, between: int) -> None:
    """Asserts that short, long and middling inputs give, one after the other, what each gives in a fresh model."""
    inputs = [token_ids(2, length, seed=length) for length in (short, long, between, short)]
    state, config = model.state_dict(), model.config
    with torch.no_grad():
        for ids in inputs:
            fresh = type(model)(config).eval()
            fresh.load_state_dict(state)
            torch.testing.assert_close(model(ids).last_hidden_state, fresh(ids).last_hidden_state, rtol=0, atol=0)

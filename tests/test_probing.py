"""The properties of positions: two exact cases, and the definitions as plain loops."""

import math

import pytest
import torch

from helpers import CASES, tiny_config, tiny_model
from hf_rope.probing import by_distance, identical_word_scores, position_properties

SCORED = [case for case in CASES if tiny_config(case).attention_type == "softmax"]


def properties(case: str, length: int = 24) -> dict[str, torch.Tensor]:
    """(N, H) shares, where word 5 is repeated."""
    encoder = tiny_model(case).double()
    encoder.set_attn_implementation("eager")
    return position_properties(identical_word_scores(encoder, 5, length))


@pytest.mark.parametrize("case", SCORED)
def test_schemes_that_see_distances_alone_are_translation_invariant_and_no_others(case):
    position = tiny_model(case).position
    found = properties(case)["translation_invariance"]
    if case.startswith("none"):
        assert found.isnan().all()
    elif position.shift_invariant:
        exact = found[:1] if position.changes_values else found  # values tell later layers how near the ends are
        torch.testing.assert_close(exact, torch.ones_like(exact), rtol=0, atol=1e-9)
    elif not position.rotates:
        assert found.max() < 0.999


@pytest.mark.parametrize(
    ("case", "symmetric", "falls"),
    [
        ("alibi", False, True),
        ("alibi-symmetric", True, True),
        ("alibi-6-heads", True, True),
        ("alibi-one-sided", False, False),
    ],
)
def test_which_forms_of_alibi_are_symmetric_and_fall_with_distance(case, symmetric, falls):
    found = properties(case)
    ones = torch.ones_like(found["symmetry"])
    for name, expected in (("symmetry", symmetric), ("monotonicity", falls)):
        assert torch.allclose(found[name], ones, rtol=0, atol=1e-9) == expected, name


def test_properties_are_those_of_the_definitions():
    scores = torch.randn(12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    farthest, distances = 3, range(-3, 4)
    rows = [[float(scores[i, i + r]) for r in distances] for i in range(3, 9)]
    assert by_distance(scores).tolist() == rows
    rows = [[x - sum(row) / 7 for x in row] for row in rows]
    profile = [sum(row[k] for row in rows) / 6 for k in range(7)]
    common, whole = sum(p**2 for p in profile), sum(x**2 for row in rows for x in row) / 6
    even = sum(((profile[k] + profile[6 - k]) / 2) ** 2 for k in range(7))
    steps = [profile[farthest + r + 1] < profile[farthest + r] for r in range(3)]
    steps += [profile[farthest - r - 1] < profile[farthest - r] for r in range(3)]
    found = {name: float(share) for name, share in position_properties(scores).items()}
    expected = {"translation_invariance": common / whole, "symmetry": even / common, "monotonicity": sum(steps) / 6}
    assert found == pytest.approx(expected)


def test_distances_that_share_a_value_do_not_fall():
    """Not by what rounding makes of them: up to 7 here, of 16 that are looked at, a distance has a value of its own."""
    table = torch.arange(64)[:, None] - torch.arange(64)
    scores = -table.abs().clamp(max=7).double() + 1e-15 * torch.randn(64, 64, dtype=torch.float64)
    assert float(position_properties(scores)["monotonicity"]) == pytest.approx(7 / 16)


def test_scores_without_positions_have_no_properties():
    assert all(math.isnan(share) for share in position_properties(torch.full((8, 8), 3.0)).values())

"""What a model's positions have learned, told by sequences of one word.

Wang et al. 2021, "On Position Embeddings in BERT" (ICLR): in a sequence that repeats one word, only positions can
make a query score one key higher than another (identical word probing), so that its scores show the paper's three
properties without any content: translation invariance, symmetry and monotonicity. Two are exact by design: a scheme
that sees distances alone is translation invariant, and ALiBi in its first form is symmetric. The numbers are this
package's: shares, from 0 to 1, of what the softmax sees.

Shapes: N layers, H heads, L length, R = L // 4, the farthest distance that is looked at.
"""

import torch

from .analysis import score_terms
from .model.modeling_hf_rope import HfRopeModel

ROUNDING = 1e-9
"""Scores that differ by less than this share of the largest are equal in float64."""


def identical_word_scores(encoder: HfRopeModel, word: int, length: int) -> torch.Tensor:
    """(N, H, L, L): the scores before the softmax, where one word is repeated; the encoder is float64 and eager."""
    return torch.stack([*score_terms(encoder, torch.full((1, length), word)).values()]).sum(0)


def by_distance(scores: torch.Tensor) -> torch.Tensor:
    """(..., L, L) -> (..., L - 2R, 2R + 1): the keys at the distances j - i from -R to R, of the queries that have all.

    Near the ends of a sequence a query lacks some, and its mean would be one over other distances.
    """
    length = scores.shape[-1]
    farthest = length // 4
    queries = torch.arange(farthest, length - farthest)[:, None]
    return scores[..., queries, queries + torch.arange(-farthest, farthest + 1)]


def position_properties(scores: torch.Tensor) -> dict[str, torch.Tensor]:
    """The three properties of each (L, L) of (..., L, L) scores of an identical word; NaN where they do not differ.

    A query's scores are taken less their mean, which the softmax does not see: s(i, r) at the distance r, and p(r) the
    mean over queries.

    - translation_invariance: the sum of p(r)^2 over that of s(i, r)^2, a mean over i: the share that follows from the
      distance alone.
    - symmetry: the share of the sum of p(r)^2 that is left where p(r) and p(-r) are both replaced by their mean: 1
      where left and right are alike, 0 where one is the other's negative.
    - monotonicity: of all steps from one distance to the next farther one, on both sides, the share in which p falls.
    """
    rows = by_distance(scores)
    rows = rows - rows.mean(-1, keepdim=True)
    profile = rows.mean(-2)
    whole, common = rows.square().mean((-2, -1)), profile.square().mean(-1)
    even = (profile + profile.flip(-1)) / 2
    middle = profile.shape[-1] // 2
    sides = torch.stack((profile[..., middle:], profile[..., : middle + 1].flip(-1)))
    largest = scores.abs().amax((-2, -1)).clamp(min=1)
    falls = (sides.diff(dim=-1) < -ROUNDING * largest[..., None]).double().mean((0, -1))
    properties = {
        "translation_invariance": common / whole,
        "symmetry": even.square().mean(-1) / common,
        "monotonicity": falls,
    }
    differ = whole.sqrt() > ROUNDING * largest
    return {name: share.where(differ, torch.nan) for name, share in properties.items()}

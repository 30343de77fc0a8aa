"""PositionScheme: what a position scheme may add to the encoder, and where.

Shapes: B batch, H heads, Q and K query and key lengths, E head size, D hidden size. Position tensors are
int64 of shape (B, L), or (1, L) where every sequence of the batch has the same positions.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn import functional as F
from transformers.utils.import_utils import is_tracing


class PositionScheme(nn.Module):
    """Base of every scheme: holds all positional parameters of one encoder; each hook does nothing by default.

    A subclass overrides the two or three hooks that it needs. Per-layer hooks get the attention module `attn`,
    whose `layer_idx` says which layer asks and whose `project_query` and `project_key` apply its projections.

    Args:
        config: the model's configuration, already validated.
    """

    kind: ClassVar[str] = "none"
    """How the paper classes it: "APE" (absolute), "RPE" (relative), "RoPE" or "none"."""
    rotates: ClassVar[bool] = False
    """Whether the scheme reads `config.rope_parameters`."""
    by_content: ClassVar[bool] = False
    """Whether the score term depends on query and key: long inputs are then computed in blocks of queries."""

    @strict
    @dataclass
    class Options:
        """Typed settings, filled from `config.position_options`; a scheme without settings keeps this empty one."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.options: Any = self.Options(**config.position_options)
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads

    @classmethod
    def fill_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        """The settings written out in full; raises ValueError or TypeError where one has the wrong type."""
        return asdict(cls.Options(**options))

    @classmethod
    def check(cls, config, options) -> None:
        """Raises ValueError with one sentence that says what in `config` or `options` does not fit."""

    @classmethod
    def attn_implementations(cls, config) -> tuple[str, ...]:
        """The attention kinds that can compute the scheme: a score term rules out flash, a value term all but eager."""
        if cls.value_term is not PositionScheme.value_term:
            return ("eager",)
        if cls.score_term is not PositionScheme.score_term:
            return ("eager", "sdpa", "flex_attention")
        return ("eager", "sdpa", "flex_attention", "flash_attention")

    @property
    def shift_invariant(self) -> bool:
        """Whether adding one number to all positions leaves every output unchanged."""
        return True

    @property
    def length_independent(self) -> bool:
        """Whether a token's place is its position alone, however long the sequence: a decoder's cache is then exact."""
        return True

    @property
    def max_length(self) -> int | None:
        """The longest input that the scheme has positions for; None where there is no limit."""
        return None

    def init_weights(self, std: float) -> None:
        """Fills the parameters that are no module of their own; called by the model's `_init_weights`."""

    def embed(self, x: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """(B, Q, D) -> (B, Q, D): adds positions to the embeddings, before their norm."""
        return x

    def plan(
        self, query_positions: torch.Tensor, key_positions: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, ...]:
        """What all layers share, computed once a forward: a flat tuple of tensors from (B or 1, Q) and (B or 1, K)."""
        return ()

    def layer_plan(self, plan, attn) -> tuple[torch.Tensor, ...]:
        """What a layer's `rotate`, `score_term` and `value_term` get as their plan, computed once a layer."""
        return plan

    def scaling(self) -> float:
        """The factor on query . key."""
        return self.head_dim**-0.5

    def rotate(self, query, key, value, plan, attn):
        """(B,H,Q,E), (B,H,K,E), (B,H,K,E) -> the same shapes, as they enter query . key and probabilities . value."""
        return query, key, value

    def score_term(self, query, key, plan, attn, start: int = 0) -> torch.Tensor | None:
        """(B or 1, H or 1, Q, K) added to the scaled scores, from the query and key before `rotate`; None for none.

        Where the term is `by_content`, query may be a block of the queries, from number `start` on.
        """
        return None

    def value_term(self, probabilities, plan, attn, start: int = 0) -> torch.Tensor | None:
        """(B,H,Q,E) added to the attention's output, from the probabilities (B,H,Q,K); None for none.

        As in `score_term`, the first query is number `start`.
        """
        return None

    def reversed_term(self, plan) -> torch.Tensor | None:
        """(1, H, L, L): the whole score term, the last query's row first, where that is a view of few numbers.

        None for any other term.
        """
        return None

    def require_positions(self, position_ids: torch.Tensor) -> None:
        """Raises ValueError where a position lies beyond the scheme's table; values are not read while tracing."""
        if position_ids.numel() and self.max_length is not None and not is_tracing(position_ids):
            self.require_length(int(position_ids.max()) + 1, self.max_length)

    def require_length(self, length: int, limit: int) -> None:
        """Raises ValueError where an input needs more positions than the scheme's table has."""
        if length > limit:
            raise ValueError(
                f"position_embedding_type={self.config.position_embedding_type!r} has a table for {limit} positions "
                f"(max_position_embeddings={self.config.max_position_embeddings}) and the input needs {length}: "
                "shorten it (truncation=True in the tokenizer), or use a scheme without a table, such as 'rotary'."
            )

    def require_room(self, prompt: int, new: int) -> None:
        """Raises ValueError where a prompt and the tokens to be generated are more than the scheme's table has."""
        if self.max_length is not None and prompt + new > self.max_length:
            raise ValueError(
                f"position_embedding_type={self.config.position_embedding_type!r} has a table for {self.max_length} "
                f"positions (max_position_embeddings={self.config.max_position_embeddings}); the prompt's {prompt} and "
                f"{new} new tokens need {prompt + new}: lower max_new_tokens, shorten the prompt, or use a scheme "
                "without a table, such as 'rotary'."
            )


SCORES_AT_ONCE = 2**22
"""Scores whose terms are held at once where that can be chosen: 16 MB in float32."""

ROWS_AT_ONCE = 64
"""Rows that `band_product` multiplies at once: few columns are wasted, and the product stays in the cache."""


def distances(query_positions: torch.Tensor, key_positions: torch.Tensor) -> torch.Tensor:
    """(B or 1, Q, K) int64: key position minus query position, j - i."""
    return key_positions[:, None, :] - query_positions[:, :, None]


def span(query_positions: torch.Tensor, key_positions: torch.Tensor) -> int:
    """The largest |j - i|; under compile and export, where values cannot be read, the length less one."""
    if is_tracing(query_positions):
        return max(query_positions.shape[-1], key_positions.shape[-1]) - 1
    (low_q, high_q), (low_k, high_k) = query_positions.aminmax(), key_positions.aminmax()
    return max(int(high_q - low_k), int(high_k - low_q), 0)


def are_consecutive(query_positions: torch.Tensor, key_positions: torch.Tensor) -> bool:
    """Whether queries and keys share one row of positions that count up by one (never assumed under tracing)."""
    if query_positions is not key_positions or is_tracing(query_positions) or len(query_positions) > 1:
        return False
    return bool((query_positions.diff() == 1).all())


def distance_index(query_positions: torch.Tensor, key_positions: torch.Tensor) -> tuple[int, tuple[torch.Tensor, ...]]:
    """The span s and, for `distance_scores`, each pair's column in a table of the distances j - i from -s to s.

    The index is left out, an empty tuple, where positions are consecutive: a strided view then does its work.
    """
    reach = span(query_positions, key_positions)
    if are_consecutive(query_positions, key_positions):
        return reach, ()
    return reach, (distances(query_positions, key_positions).clamp(-reach, reach) + reach,)


def distance_scores(
    query: torch.Tensor, table: torch.Tensor, index: Sequence[torch.Tensor], start: int = 0
) -> torch.Tensor:
    """Each query times a table of distances, (E, 2s+1) or (H, E, 2s+1), a column a distance j - i from -s to s.

    (B,H,Q,E) -> (B,H,Q,K): the product of query i, counted from `start`, with the column of j - i, for every key j.
    `index` is what `distance_index` gave.
    """
    if index:
        return take_columns(query @ table, index[0][:, start : start + query.shape[-2]])
    reach = (table.shape[-1] - 1) // 2
    return band_product(query, table, reach - start, reach + 1)


def distance_scores_by_key(
    key: torch.Tensor, table: torch.Tensor, index: Sequence[torch.Tensor], start: int, count: int
) -> torch.Tensor:
    """Each key times a table of distances that runs backwards: a column a distance j - i from s to -s.

    (B,H,K,E) -> (B,H,count,K): the product of key j with the column of j - i, for `count` queries i from `start` on.
    """
    if index:
        columns = table.shape[-1] - 1 - index[0][:, start : start + count]
        if count == 1:  # a decoder's next token: one column a key, not all of them
            rows = table.expand(1, *table.shape) if table.ndim == 2 else table
            return (key * rows.transpose(1, 2)[:, columns[:, 0]].transpose(0, 1)).sum(-1)[:, :, None]
        return take_columns(key @ table, columns.transpose(1, 2)).transpose(-1, -2)
    reach = (table.shape[-1] - 1) // 2
    return band_product(key, table, reach + start, count).transpose(-1, -2)


def band_product(x: torch.Tensor, table: torch.Tensor, first: int, width: int) -> torch.Tensor:
    """out[..., a, b] = x[..., a, :] . table[..., :, first - a + b]: (...,R,E) and (...,E,C) -> (...,R,width).

    Some rows at once are multiplied with the columns that they need, and the result is read through a strided view.
    """
    blocks = []
    for part in x.split(ROWS_AT_ONCE, dim=-2):
        rows = part.shape[-2]
        scores = part @ table[..., first - rows + 1 : first + width]
        if rows > 1:
            # Row a has its first value in column rows-1-a: in flat memory a row begins width+rows-2 after another.
            flat = scores.flatten(-2)[..., rows - 1 : rows - 1 + rows * (width + rows - 2)]
            scores = flat.unflatten(-1, (rows, width + rows - 2))[..., :width]
        blocks.append(scores)
        first -= rows
    return torch.cat(blocks, dim=-2)


def take_columns(scores: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """out[b, h, i, j] = scores[b, h, i, index[b, i, j]]: (B,H,Q,R) and (B or 1,Q,K) -> (B,H,Q,K)."""
    return scores.gather(-1, index[:, None].expand(*scores.shape[:3], index.shape[-1]))


class DistanceBias(PositionScheme):
    """Base of the schemes whose score term is a number a head and distance; `plan` is what `spread` makes of them."""

    def spread(self, values: torch.Tensor, index: Sequence[torch.Tensor]) -> torch.Tensor:
        """As `spread_distances`; in a decoder, what lies ahead in consecutive positions has the smallest number."""
        if self.config.is_decoder and not index:
            behind = values.shape[-1] // 2 + 1
            values = F.pad(values[:, :behind], (0, behind - 1), value=torch.finfo(values.dtype).min)
        return spread_distances(values, index)

    def score_term(self, query, key, plan, attn, start=0):
        return in_order(plan[0]).to(query.dtype)

    def reversed_term(self, plan):
        return plan[0][None] if plan[0].ndim == 3 else None


def spread_distances(values: torch.Tensor, index: Sequence[torch.Tensor]) -> torch.Tensor:
    """(H, 2s+1), a number a head and distance j - i from -s to s -> (B or 1, H, Q, K), a number a pair.

    `index` is what `distance_index` gave. Where it is empty and the pairs are many: (H, L, L), the last query's row
    first, which takes no memory, since each row begins one number after the one before it in the same 2L-1 numbers.
    """
    if index:
        return values[:, index[0]].transpose(0, 1).contiguous()
    rows = values.contiguous().unfold(-1, (values.shape[-1] + 1) // 2, 1)
    return rows if rows.numel() > SCORES_AT_ONCE else in_order(rows)


def in_order(bias: torch.Tensor) -> torch.Tensor:
    """What `spread_distances` gave -> (B or 1, H, Q, K), the first query's row first."""
    return bias if bias.ndim == 4 else bias.flip(-2)[None]


def find_packed_sequences(position_ids: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor | None:
    """(B, L) positions -> (B, L) number of the sequence that each token belongs to; None where no row is packed.

    A row is packed where its real positions are runs 0, 1, 2, ... one after the other, two or more, as
    `DataCollatorWithFlattening` writes them. Any other order of positions is one sequence.
    """
    first = position_ids == 0 if keep is None else (position_ids == 0) & keep
    follows = position_ids == F.pad(position_ids, (1, -1), value=-2) + 1
    runs = first | follows
    if keep is not None:
        runs = runs | ~keep
    packed = runs.all(-1, keepdim=True)
    if not is_tracing(position_ids) and not bool((packed & (first.sum(-1, keepdim=True) > 1)).any()):
        return None
    return torch.where(packed, first.cumsum(-1), 0)


def sinusoid(positions: torch.Tensor, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """sin and cos of position / 10000^(2t/width), each (..., width/2): Vaswani 2017, section 3.5.

    Angles are float32, or float64 for a float64 model, whatever `dtype` the result has.
    """
    precision = torch.promote_types(dtype, torch.float32)
    exponents = torch.arange(0, width, 2, device=positions.device).to(precision) / width
    angles = positions[..., None].to(precision) * 10000.0**-exponents
    return angles.sin().to(dtype), angles.cos().to(dtype)

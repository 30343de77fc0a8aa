"""Distances between tokens, and the two bases of the schemes that add to scores.

`DistanceBias`: a number a head and distance (T5, ALiBi). `ContentScore`: a query or a key times a row of a table that
the distance chooses (Shaw, relative keys, Transformer-XL, DeBERTa). Where positions count up by one, no pair needs an
index: the 2L-1 distances -(L-1) .. L-1 are one row of numbers, and row i of the L x L pairs is a window into it,

    distance j - i        j = 0   1   2          values  v(-2) v(-1) v(0) v(1) v(2)
        i = 0                 0   1   2          row 0               [ v(0) v(1) v(2) ]
        i = 1                -1   0   1          row 1         [ v(-1) v(0) v(1) ]
        i = 2                -2  -1   0          row 2   [ v(-2) v(-1) v(0) ]

so that a strided view takes the place of L x L indices. Everything else, gaps, rows with positions of their own, a
decoder's cached keys, traced graphs, goes by one index a pair, which needs no value read either.

Shapes: B batch, H heads, Q and K query and key lengths, L length, E head size, R rows of a table.
"""

from typing import ClassVar

import torch
from torch.nn import functional as F

from .device import reads_are_free
from .position_base import Compute, LayerPosition, Places, PositionScheme, States

SCORES_AT_ONCE = 2**22
"""Scores whose terms are held at once where that can be chosen: 16 MB in float32."""


def rows_at_once(x: torch.Tensor) -> int:
    """Rows that `bands` multiplies at once on a CPU: few columns are wasted, and the product stays in the cache.

    Before each product of two-byte numbers the table's columns are copied, so that few products are better. The key's
    term of 12 heads, 512 x 512 pairs takes 9.2, 5.9 and 11.2 ms in bfloat16 with 64, 128 and 256 rows (AMX), of 192 x
    1536 pairs 5.7, 4.8 and 5.8; in float32 6.6, 6.0 and 7.9, and 8.8, 9.4 and 12.9.
    """
    return 64 if x.element_size() > 2 else 128


def distances(places: Places) -> torch.Tensor:
    """(B or 1, Q, K) int64: key position minus query position, j - i."""
    return places.keys[:, None, :] - places.queries[:, :, None]


def all_distances(max_distance: int, places: Places) -> torch.Tensor:
    """(2 * max_distance + 1,) int64: the distances j - i, rising."""
    return torch.arange(-max_distance, max_distance + 1, device=places.queries.device)


def bands(x: torch.Tensor, table: torch.Tensor, first: int, width: int) -> list[torch.Tensor]:
    """out[..., a, b] = x[..., a, :] . table[..., :, first - a + b], some rows a after the others: (..., R, width) each.

    x is (..., rows, E) and the table (..., E, C). R rows need R + width - 1 columns of the table, one more on the left
    for every row. All of these are multiplied with all rows, and the band is read out of the product by a strided view;
    on a CPU a few rows at once, since of R rows each computes R - 1 columns too many. For R = width = 3 the product is
    (3, 5), and in flat memory

        row 0   .  .  a  b  c          each row of the band begins 4 = width + R - 2 numbers after the row above it,
        row 1   .  d  e  f  .          so that the view has that many columns, begins at number R - 1 = 2,
        row 2   g  h  i  .  .          and its first `width` columns are the band
    """
    blocks = []
    for part in x.split(rows_at_once(x), dim=-2) if reads_are_free(x) else (x,):
        rows = part.shape[-2]
        scores = part @ table[..., first - rows + 1 : first + width]
        if rows > 1:
            flat = scores.flatten(-2)[..., rows - 1 : rows - 1 + rows * (width + rows - 2)]
            scores = flat.unflatten(-1, (rows, width + rows - 2))[..., :width]
        blocks.append(scores)
        first -= rows
    return blocks


def band_sum(x: torch.Tensor, table: torch.Tensor, first: int) -> torch.Tensor:
    """out[..., a, :] = sum over b of x[..., a, b] table[first - a + b, :]: (...,R,W) and (C,E) -> (...,R,E).

    `bands` in reverse: here the band is written into zeros, with the steps by which it is read there, and the
    product sums over the table's rows.
    """
    blocks = []
    for part in x.split(rows_at_once(x), dim=-2) if reads_are_free(x) else (x,):
        rows, width = part.shape[-2:]
        if rows > 1:
            flat = F.pad(F.pad(part, (0, rows - 2)).flatten(-2), (rows - 1, 1))
            part = flat.unflatten(-1, (rows, width + rows - 1))
        blocks.append(part @ table[..., first - rows + 1 : first + width, :])
        first -= rows
    return joined(blocks, -2)


def joined(blocks: list[torch.Tensor], dim: int) -> torch.Tensor:
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=dim)


def take_columns(scores: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """out[b, h, i, j] = scores[b, h, i, index[b, i, j]]: (B,H,Q,R) and (B or 1,Q,K) -> (B,H,Q,K)."""
    return scores.gather(-1, index[:, None].expand(*scores.shape[:3], index.shape[-1]))


class DistanceBias(PositionScheme):
    """Base of the schemes whose score term is a number a head and distance."""

    score = "distance"

    @classmethod
    def for_layer(cls, config, layer_idx):
        return LayerDistanceBias(config)

    def bias_of(self, distance: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """(...) distances j - i -> (..., H)."""
        raise NotImplementedError

    def compare(self, places, dtype):
        """(B or 1, H, Q, K): a number a pair. Of many consecutive pairs on a CPU (H, L, L), the last query's row first.

        That one takes no memory: each row begins one number after the one before it in the same 2L-1 numbers, where in
        the usual order it would begin one before, and torch has no negative strides.
        """
        if not places.consecutive:
            return self.bias_of(distances(places), dtype).permute(0, 3, 1, 2).contiguous()
        length = places.queries.shape[-1]
        values = self.bias_of(all_distances(length - 1, places), dtype).T
        if self.config.is_decoder:  # what lies ahead; a view has no room for a mask
            values = F.pad(values[:, :length], (0, length - 1), value=torch.finfo(values.dtype).min)
        rows = values.contiguous().unfold(-1, length, 1)
        as_view = reads_are_free(values) and rows.numel() > SCORES_AT_ONCE
        return rows if as_view else rows.flip(-2)[None]


class LayerDistanceBias(LayerPosition):
    """A layer under a bias that all layers share."""

    def score_term(self, states, pairs):
        return (pairs if pairs.ndim == 4 else pairs.flip(-2)[None]).to(states.query.dtype)

    def attend(self, states, pairs, compute, can_split):
        query, key, value, *_ = states
        if can_split and pairs.ndim == 3:
            backwards, _ = compute(query.flip(2), key, value, pairs[None].to(query.dtype), ahead=False)
            return backwards.flip(1), None
        return compute(query, key, value, self.score_term(states, pairs))


class ContentScheme(PositionScheme):
    """Base of the schemes that multiply queries or keys with rows of a table, one a distance."""

    score = "content"
    few_rows: ClassVar[bool] = False
    """Whether layers read all rows of the table, fewer than there are distances, and pairs are indices of these."""

    def row_of(self, distance: torch.Tensor) -> torch.Tensor:
        """(...) distances j - i -> (...), the row of the table."""
        raise NotImplementedError

    def share(self, everywhere, dtype):
        """The rows of the distances from -max_distance to max_distance, (2 * max_distance + 1,); () for all rows."""
        if everywhere.max_distance is None or self.few_rows:
            return ()
        return (self.row_of(all_distances(everywhere.max_distance, everywhere)),)

    def compare(self, places, dtype):
        """(B or 1, Q, K): each pair's number among the rows of `share`; None where positions are consecutive."""
        if places.max_distance is not None and places.consecutive:
            return None
        if places.max_distance is None or self.few_rows:
            return self.row_of(distances(places))
        return distances(places).clamp(-places.max_distance, places.max_distance) + places.max_distance


class ContentScore(LayerPosition):
    """Base of a layer's score term by content: s_ij += query_i . A[r] + key_j . B[r], with the row r of j - i.

    `forward` gives tables, (E, R), (H, E, R) or (B, 1 or H, E, R), a column a row of `ContentScheme.share`: A where
    `by_query`, then B where `by_key`. `by_token` may hold the queries that A meets, where these are others.
    """

    by_query = True
    by_key = False

    def attend(self, states, pairs, compute, can_split):
        """A few sequences at once, and a long one in blocks of queries, where that can be chosen.

        Every sequence has a term of its own: so it stays in the cache, and memory grows with the length, not with its
        square.
        """
        states = self.prepare(states, pairs)
        count, heads, length, _ = states.query.shape
        at_once, rows = count, length
        if can_split:
            row = heads * states.key.shape[-2]
            at_once = max(1, SCORES_AT_ONCE // (row * length))
            step = rows_at_once(states.query)
            rows = max(1, SCORES_AT_ONCE // (row * step)) * step
        if at_once >= count and rows >= length:
            return self.attend_from(states, pairs, compute, 0, length)
        sequences = []
        for first in range(0, count, at_once):
            cut = slice(first, first + at_once)
            part = states._replace(
                query=states.query[cut],
                key=states.key[cut],
                value=states.value[cut],
                by_token=tuple(x[cut] for x in states.by_token),
            )
            blocks = [
                self.attend_from(part, pairs, compute, start, min(rows, length - start))[0]
                for start in range(0, length, rows)
            ]
            sequences.append(joined(blocks, 1))
        return joined(sequences, 0), None

    def prepare(self, states: States, pairs: torch.Tensor | None) -> States:
        """With the tables as products read them, once for all sequences: for keys without an index, backwards.

        Seen from key j, the columns run backwards: i = j + (i - j), and the distance i - j is what counts up.
        """
        tables = [*states.tables]
        if self.by_key and pairs is None:
            tables[-1] = tables[-1].flip(-1)
        if reads_are_free(states.query):  # else each product of two-byte numbers copies its columns out of rows
            tables = [x.contiguous() if x.ndim > 2 else x for x in tables]
        return states._replace(tables=tuple(tables))

    def attend_from(self, states: States, pairs: torch.Tensor | None, compute: Compute, start: int, count: int):
        """Attention of `count` queries from number `start` on to all keys."""
        term = self.term_from(states, pairs, start, count)
        return compute(
            states.query[:, :, start : start + count],
            states.key,
            states.value,
            term,
            value_term=self.value_term(states, pairs, start),
            start=start,
        )

    def term_from(self, states: States, pairs: torch.Tensor | None, start: int, count: int) -> torch.Tensor:
        """(B,H,count,K): the score term of `count` queries from number `start` on."""
        tables, terms = list(states.tables), []
        if pairs is not None and count < pairs.shape[1]:
            pairs = pairs[:, start : start + count]
        if self.by_query:
            query = (states.by_token or (states.query,))[0][:, :, start : start + count]
            terms.append(by_query(query, tables.pop(0), pairs, start, states.key.shape[-2]))
        if self.by_key:
            terms.append(by_key(states.key, tables.pop(0), pairs, start, count))
        return terms[0] if len(terms) == 1 else terms[0] + terms[1]

    def score_term(self, states, pairs):
        return self.term_from(self.prepare(states, pairs), pairs, 0, states.query.shape[-2])

    def value_term(self, states: States, pairs: torch.Tensor | None, start: int):
        """A function of the probabilities (B,H,Q,K) of the queries from `start` on -> (B,H,Q,E); None for none."""
        return None


def repeated(rows: torch.Tensor, samples: int) -> torch.Tensor:
    """(R, ...) -> (samples, R, ...); as they are for one."""
    return rows if samples == 1 else rows.expand(samples, *rows.shape)


def columns(rows: torch.Tensor) -> torch.Tensor:
    """(R, E) -> (E, R), and (B, R, E) -> (B, 1, E, R), which all heads share."""
    rows = rows.transpose(-1, -2)
    return rows if rows.ndim == 2 else rows[:, None]


def by_query(
    query: torch.Tensor, table: torch.Tensor, pairs: torch.Tensor | None, start: int, keys: int
) -> torch.Tensor:
    """(B,H,Q,E) and (E,R) or (H,E,R) -> (B,H,Q,K): query i, counted from `start`, times the column of j - i.

    Without `pairs` a column is a distance from -s to s, and that of j - i is number j - i + s.
    """
    if pairs is not None:
        return take_columns(query @ table, pairs)
    return joined(bands(query, table, table.shape[-1] // 2 - start, keys), -2)


def by_key(key: torch.Tensor, table: torch.Tensor, pairs: torch.Tensor | None, start: int, count: int) -> torch.Tensor:
    """(B,H,K,E) and (E,R) or (H,E,R) -> (B,H,count,K): key j times the column of j - i, for queries i from `start`.

    Without `pairs` the columns are in reverse. Few keys are turned at once, while they are in the cache: adding across
    what lies by key would take twice the time in bfloat16.
    """
    if pairs is None:
        return joined([x.transpose(-1, -2) for x in bands(key, table, table.shape[-1] // 2 + start, count)], -1)
    if count == 1 and table.ndim < 4:  # a decoder's next token: one column a key, not all of them
        rows = table.expand(1, *table.shape) if table.ndim == 2 else table
        return (key * rows.transpose(1, 2)[:, pairs[:, 0]].transpose(0, 1)).sum(-1)[:, :, None]
    return take_columns(key @ table, pairs.transpose(1, 2)).transpose(-1, -2)


def sinusoid(positions: torch.Tensor, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """sin and cos of position / 10000^(2t/width), each (..., width/2): Vaswani 2017, section 3.5.

    Angles are float32, or float64 for a float64 model, whatever `dtype` the result has.
    """
    precision = torch.promote_types(dtype, torch.float32)
    exponents = torch.arange(0, width, 2, device=positions.device).to(precision) / width
    angles = positions[..., None].to(precision) * 10000.0**-exponents
    return angles.sin().to(dtype), angles.cos().to(dtype)

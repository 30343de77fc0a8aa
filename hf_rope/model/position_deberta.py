"""Disentangled attention: He et al. 2020 (DeBERTa, arXiv 2006.03654), eq. 4; RoFormer eq. 10."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers.utils.import_utils import is_torchdynamo_exporting

from .position_base import States
from .position_learned import WithAbsoluteTable
from .relative import ContentScheme, ContentScore, repeated


class DebertaPosition(ContentScheme, WithAbsoluteTable):
    """s_ij = [Qc_i . Kc_j + Qc_i . Kr_delta + Kc_j . Qr_delta] / sqrt(3d), delta = clamp(i - j + k, 0, 2k - 1).

    The divisor is sqrt(d * (1 + number of position terms)). The paper indexes the last term with delta(j, i); the
    published checkpoints, native DeBERTa and this scheme use delta(i, j). Kr and Qr come from one table of 2k rows
    through the layer's own key and query projections (`share_att_key`, v2 and v3) or through projections of their own
    (v1). k is `position_buckets`, or `max_relative_positions` without buckets. No length limit.
    """

    kind = "RPE"
    lr_multipliers: ClassVar = {"embeddings": 30.0}

    @strict
    @dataclass
    class Options:
        """Named as in DeBERTa's configuration.

        pos_att_type: the position terms, "c2p" (content to position) and "p2c"; max_relative_positions: distances
        from here on are one; position_buckets: logarithmic buckets a side, 0 for none; share_att_key: project the
        table by the layer's query and key projections; norm_rel_ebd: whether the table passes a LayerNorm;
        absolute_embeddings: add a learned absolute table as well (`position_biased_input`).
        """

        pos_att_type: list[str] = field(default_factory=lambda: ["c2p", "p2c"])
        max_relative_positions: int = 512
        position_buckets: int = 256
        share_att_key: bool = True
        norm_rel_ebd: bool = True
        absolute_embeddings: bool = False

    def __init__(self, config):
        super().__init__(config)
        size = config.hidden_size
        self.farthest = self.options.position_buckets or self.options.max_relative_positions
        self.embeddings = nn.Embedding(2 * self.farthest, size)
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps) if self.options.norm_rel_ebd else nn.Identity()
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    @classmethod
    def check(cls, config, options):
        terms = options.pos_att_type
        if not terms or len(set(terms)) < len(terms) or not set(terms) <= {"c2p", "p2c"}:
            raise ValueError(f"position_options['pos_att_type'] is {terms}; it must hold 'c2p', 'p2c' or both.")
        if options.max_relative_positions < 2:
            raise ValueError(
                f"position_options['max_relative_positions'] is {options.max_relative_positions}; it must be 2 or more."
            )
        buckets = options.position_buckets
        if buckets and not (buckets >= 4 and buckets // 2 < options.max_relative_positions - 1):
            raise ValueError(
                f"position_options['position_buckets'] is {buckets}; it must be 0, for none, or 4 or more with half of "
                f"it below max_relative_positions - 1, {options.max_relative_positions - 1}."
            )

    @classmethod
    def for_layer(cls, config, layer_idx):
        return LayerDeberta(config, cls.Options(**config.position_options))

    def row_of(self, distance):
        behind = -distance
        if self.options.position_buckets:
            behind = log_bucket(behind, self.options.position_buckets, self.options.max_relative_positions)
        return (behind + self.farthest).clamp(0, 2 * self.farthest - 1)

    def share(self, everywhere, dtype):
        """The normed table, (2k, D), and the rows that are needed, (2 * max_distance + 1,), or nothing more for all."""
        rows = torch.arange(2 * self.farthest, device=everywhere.queries.device)
        return self.dropout(self.norm(self.embeddings(rows))), *super().share(everywhere, dtype)


class LayerDeberta(ContentScore):
    """One layer's projections of the table: its own, or those of its queries and keys."""

    def __init__(self, config, options):
        super().__init__(config)
        self.by_query, self.by_key = "c2p" in options.pos_att_type, "p2c" in options.pos_att_type
        self.terms = len(options.pos_att_type)
        self.share_att_key = options.share_att_key
        if not options.share_att_key:
            size = config.hidden_size
            if self.by_query:
                self.key_projection = nn.Linear(size, size)
            if self.by_key:
                self.query_projection = nn.Linear(size, size)

    def scaling(self):
        return (self.head_dim * (1 + self.terms)) ** -0.5

    def forward(self, query, key, value, shared, project, samples=1):
        project, tables = project if self.share_att_key else self.own, []
        if self.by_query:
            tables.append(self.project_table(project, "key", samples, *shared))
        if self.by_key:
            tables.append(self.project_table(project, "query", samples, *shared))
        return States(query, key, value, tables=tuple(tables))

    def own(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        return self.key_projection(rows) if name == "key" else self.query_projection(rows)

    def project_table(
        self, project, name: str, samples: int, table: torch.Tensor, rows: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(2k, D), (R,) -> (H, E, R) or (samples, H, E, R), scaled: the fewer of all rows and those go through.

        An exported graph projects all: which are fewer depends on the length, and it is for any.
        """
        few = rows is not None and not is_torchdynamo_exporting() and len(rows) < len(table)
        projected = project(name, repeated(table[rows] if few else table, samples))
        by_head = (projected * self.scaling()).unflatten(-1, (self.num_heads, self.head_dim))
        by_head = by_head.transpose(-3, -2).transpose(-2, -1)  # as movedim, which ONNX by tracing cannot read
        return by_head if few or rows is None else by_head[..., rows]


def log_bucket(behind: torch.Tensor, buckets: int, max_position: int) -> torch.Tensor:
    """|r| <= B/2: r; else sign(r) (mid + ceil((mid - 1) ln(|r| / mid) / ln((max - 1) / mid))), mid = B/2, r = i - j."""
    middle = buckets // 2
    size = behind.abs()
    # Both logarithms in float32, so that |r| = max - 1 gives exactly 1 and not a bucket more.
    farthest = torch.log(torch.full((), (max_position - 1) / middle, device=behind.device))
    ratio = torch.log(size.clamp(min=1) / middle) / farthest
    far = torch.ceil(ratio * (middle - 1)).long() + middle
    return torch.where(size <= middle, behind, far * behind.sign())

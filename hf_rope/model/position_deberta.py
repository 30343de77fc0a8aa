"""Disentangled attention: He et al. 2020 (DeBERTa, arXiv 2006.03654), eq. 4; RoFormer eq. 10."""

from dataclasses import dataclass, field

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers.utils.import_utils import is_torchdynamo_exporting

from .position_base import distance_index, distance_scores, distance_scores_by_key
from .position_learned import WithAbsoluteTable


class DebertaPosition(WithAbsoluteTable):
    """s_ij = [Qc_i . Kc_j + Qc_i . Kr_delta + Kc_j . Qr_delta] / sqrt(3d), delta = clamp(i - j + k, 0, 2k - 1).

    The divisor is sqrt(d * (1 + number of position terms)). The paper indexes the last term with delta(j, i); the
    published checkpoints, native DeBERTa and this scheme use delta(i, j). Kr and Qr come from one table of 2k rows
    through the layer's own key and query projections (`share_att_key`, v2 and v3) or through projections of their own
    (v1). k is `position_buckets`, or `max_relative_positions` without buckets. No length limit.
    """

    kind = "RPE"
    by_content = True

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
        size, layers = config.hidden_size, config.num_hidden_layers
        self.reach = self.options.position_buckets or self.options.max_relative_positions
        self.embeddings = nn.Embedding(2 * self.reach, size)
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps) if self.options.norm_rel_ebd else nn.Identity()
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        if not self.options.share_att_key:
            if "c2p" in self.options.pos_att_type:
                self.key_projections = nn.ModuleList(nn.Linear(size, size) for _ in range(layers))
            if "p2c" in self.options.pos_att_type:
                self.query_projections = nn.ModuleList(nn.Linear(size, size) for _ in range(layers))

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

    def scaling(self):
        return (self.head_dim * (1 + len(self.options.pos_att_type))) ** -0.5

    def plan(self, query_positions, key_positions, dtype):
        """The normed table, (2k, D), its row for each distance j - i, (2s+1,), and the index of the pairs."""
        reach, index = distance_index(query_positions, key_positions)
        behind = torch.arange(reach, -reach - 1, -1, device=query_positions.device)
        if self.options.position_buckets:
            behind = log_bucket(behind, self.options.position_buckets, self.options.max_relative_positions)
        rows = (behind + self.reach).clamp(0, 2 * self.reach - 1)
        return self.dropout(self.norm(self.embeddings.weight)), rows, *index

    def layer_plan(self, plan, attn):
        """The table for each term, (H, E, 2s+1), backwards for p2c, and the index of the pairs."""
        table, rows, *index = plan
        tables = []
        if "c2p" in self.options.pos_att_type:
            project = attn.project_key if self.options.share_att_key else self.key_projections[attn.layer_idx]
            tables.append(self.by_distance(project, table, rows))
        if "p2c" in self.options.pos_att_type:
            project = attn.project_query if self.options.share_att_key else self.query_projections[attn.layer_idx]
            tables.append(self.by_distance(project, table, rows.flip(0)))
        return *tables, *index

    def by_distance(self, project, table: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Projects the table's rows, the fewer of all and those asked for: (2k, D), (R,) -> (H, E, R), scaled.

        An exported graph projects all: which are fewer depends on the length, and it is for any.
        """
        few = not is_torchdynamo_exporting() and len(rows) < len(table)
        projected = project(table[rows] if few else table).unflatten(-1, (self.num_heads, self.head_dim))
        by_head = (projected * self.scaling()).permute(1, 2, 0)
        return by_head if few else by_head[..., rows]

    def score_term(self, query, key, plan, attn, start=0):
        terms = []
        tables, index = plan[: len(self.options.pos_att_type)], plan[len(self.options.pos_att_type) :]
        if "c2p" in self.options.pos_att_type:
            terms.append(distance_scores(query, tables[0], index, start))
        if "p2c" in self.options.pos_att_type:
            terms.append(distance_scores_by_key(key, tables[-1], index, start, query.shape[-2]))
        return terms[0] if len(terms) == 1 else terms[0].add_(terms[1])


def log_bucket(behind: torch.Tensor, buckets: int, max_position: int) -> torch.Tensor:
    """|r| <= B/2: r; else sign(r) (mid + ceil((mid - 1) ln(|r| / mid) / ln((max - 1) / mid))), mid = B/2, r = i - j."""
    middle = buckets // 2
    size = behind.abs()
    # Both logarithms in float32, so that |r| = max - 1 gives exactly 1 and not a bucket more.
    ratio = torch.log(size.clamp(min=1) / middle) / torch.log(torch.tensor((max_position - 1) / middle))
    far = torch.ceil(ratio * (middle - 1)).long() + middle
    return torch.where(size <= middle, behind, far * behind.sign())

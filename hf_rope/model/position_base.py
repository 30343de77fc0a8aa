"""PositionScheme and LayerPosition: what a position scheme may add to the encoder, and where.

A scheme is two modules. `model.position` is called once a forward and holds the parameters that all layers share;
`layer.attention.position` is called once a layer and holds those of that layer alone. Each reads its parameters in its
own `forward` and nowhere else, so that whatever stands around a module (an adapter, offloading, a shard, a hook) works.

Shapes: B batch, H heads, L length, Q and K query and key lengths, E head size, D hidden size. Position tensors are
int64 of shape (B, L), or (1, L) where every sequence of the batch has the same positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from huggingface_hub.dataclasses import strict
from torch import nn

from .device import reads_are_free

Project = Callable[[str, torch.Tensor], torch.Tensor]
"""("query" or "key", (..., D)) -> (..., D): rows through that projection of the layer, which is called as a module."""


class Places(NamedTuple):
    """The positions of queries and keys, and what is known of them without reading a value.

    Args:
        queries: (B or 1, Q).
        keys: (B or 1, K).
        consecutive: queries and keys are the same row of positions, which counts up by one.
        max_distance: no |key - query| that counts is larger; None where that is not known.
        segments: (B, L), the number of each token's sequence, 0 to L; None where a row is one sequence.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    consecutive: bool = False
    max_distance: int | None = None
    segments: torch.Tensor | None = None


class States(NamedTuple):
    """What a layer's attention is computed from: (B,H,Q,E), (B,H,K,E), (B,H,K,E), and a scheme's own tensors.

    Args:
        query, key, value: as they enter query . key and probabilities . value.
        by_token: further tensors with one row a token, (B,H,Q or K,...), cut with the sequences as query and key are.
        tables: what all sequences share.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    by_token: tuple[torch.Tensor, ...] = ()
    tables: tuple[torch.Tensor, ...] = ()


Compute = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]
"""compute(query, key, value, term=None, value_term=None, start=0, ahead=True): softmax attention, (B, Q, H * E).

`term` (B or 1, H or 1, Q, K) is added to the scaled scores; `value_term` takes the probabilities (B,H,Q,K) to what is
added to the output, (B,H,Q,E); `start` is the number of the first query, where the queries are a part of them;
`ahead` whether a decoder has yet to leave out what lies ahead, which a term may have done.
"""


class PositionScheme(nn.Module):
    """Base of every scheme, and the scheme without positions: what all layers share. Each hook does nothing by default.

    Args:
        config: the model's configuration, already validated.
    """

    kind: ClassVar[str] = "none"
    """How the paper classes it: "APE" (absolute), "RPE" (relative), "RoPE" or "none"."""
    score: ClassVar[Literal["none", "distance", "content"]] = "none"
    """What it adds to scores: nothing, numbers that depend on the two places alone, or on query or key as well."""
    changes_values: ClassVar[bool] = False
    """Whether it adds to the output, from the probabilities, which only eager attention has."""
    rotates: ClassVar[bool] = False
    """Whether it reads `config.rope_parameters`."""
    scale_embedding: ClassVar[bool] = False
    """Whether word embeddings are multiplied by sqrt(their width) where the configuration does not say."""
    lr_multipliers: ClassVar[dict[str, float]] = {}
    """Which of its own parts learn best at another learning rate than the model's: by attribute, how many times it."""

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
        if cls.changes_values:
            return ("eager",)
        if cls.score != "none":
            return ("eager", "sdpa", "flex_attention")
        return ("eager", "sdpa", "flex_attention", "flash_attention")

    @classmethod
    def for_layer(cls, config, layer_idx: int) -> "LayerPosition":
        """The module of one layer."""
        return LayerPosition(config)

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

    def forward(
        self, x: torch.Tensor, position_ids: torch.Tensor, everywhere: Places, groups: Sequence[Places]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], tuple[torch.Tensor | None, ...]]:
        """All that a forward needs of the scheme outside its layers.

        Args:
            x: (B, L, embedding_size), the sum of word and token-type embeddings.
            position_ids: (B or 1, L).
            everywhere: the places of all tokens as the layers see them; it reaches as far as the farthest group.
            groups: those of each group of sequences that attend to themselves.

        Returns:
            x with positions, `share`'s tensors, and `compare`'s tensor for each group, or None.
        """
        shared = self.share(everywhere, x.dtype)
        return self.embed(x, position_ids), shared, tuple(self.compare(group, x.dtype) for group in groups)

    def embed(self, x: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """(B, L, embedding_size) -> the same: adds positions to the embeddings, before their norm."""
        return x

    def share(self, everywhere: Places, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """What the layers share: a flat tuple of tensors."""
        return ()

    def compare(self, places: Places, dtype: torch.dtype) -> torch.Tensor | None:
        """What the layers share for every pair of a query and a key of some sequences; None for nothing."""
        return None

    def require_positions(self, position_ids: torch.Tensor) -> None:
        """Raises ValueError where a position lies beyond the scheme's table and values can be read."""
        if position_ids.numel() and self.max_length is not None and reads_are_free(position_ids):
            self.require_length(int(position_ids.max()) + 1)

    def require_length(self, length: int) -> None:
        """Raises ValueError where an input needs more positions than the scheme's table has."""
        if self.max_length is not None and length > self.max_length:
            raise ValueError(
                f"position_embedding_type={self.config.position_embedding_type!r} has a table for {self.max_length} "
                f"positions (max_position_embeddings={self.config.max_position_embeddings}) and the input needs "
                f"{length}: shorten it (truncation=True in the tokenizer), or use a scheme without a table, such as "
                "'rotary'."
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


class LayerPosition(nn.Module):
    """What a scheme does in one layer, and the parameters of that layer alone; it does nothing by default."""

    lr_multipliers: ClassVar[dict[str, float]] = {}
    """As `PositionScheme`'s, of the layer's own parts."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads

    def init_weights(self, std: float) -> None:
        """Fills the parameters that are no module of their own; called by the model's `_init_weights`."""

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        shared: tuple[torch.Tensor, ...],
        project: Project,
        samples: int = 1,
    ) -> States:
        """(B,H,Q,E), (B,H,K,E), (B,H,K,E) and `PositionScheme.share`'s tensors -> what `attend` works with.

        All parameters are read here; `attend`, which may be called once a group of sequences, reads none.

        Args:
            project: the layer's own projections.
            samples: B where somebody looks on who counts rows as samples (gradients a sample): rows that all sequences
                share then go through each module once a sample; else 1.
        """
        return States(query, key, value)

    def scaling(self) -> float:
        """The factor on query . key."""
        return self.head_dim**-0.5

    def attend(
        self, states: States, pairs: torch.Tensor | None, compute: Compute, can_split: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention of some sequences to themselves: (B, Q, H * E), and the probabilities or None.

        Args:
            states: of these sequences.
            pairs: `PositionScheme.compare`'s tensor for them.
            compute: softmax attention, `Compute`.
            can_split: some sequences, and some queries, may be computed without the others.
        """
        return compute(states.query, states.key, states.value)

    def score_term(self, states: States, pairs: torch.Tensor | None) -> torch.Tensor | None:
        """(B or 1, H or 1, Q, K): all that is added to the scaled scores; None for nothing. For those who look."""
        return None

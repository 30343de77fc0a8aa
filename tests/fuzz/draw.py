"""What is drawn: a model, a batch and a way to run it."""

from dataclasses import dataclass, field, fields
from typing import Any

import torch

from heads import HEADS
from helpers import tiny_config, tiny_model
from hf_rope import SCHEMES, HfRopeConfig

LMS = ("masked-lm", "causal-lm")
LABELLED = (*LMS, "tokens")
"""Heads with a label a token, whose losses are taken in float32."""
BY_TOKEN = ("encoder", *LABELLED)
"""Heads of which every number is a token's: rows may be packed, and a 4-D mask says all that there is to say."""
SQUARE = ("truths", "lowest", "infinite")
"""4-D masks: boolean, or additive with the smallest number or -inf."""


@dataclass(frozen=True, repr=False)
class Draw:
    """A model, a batch and a way to run it. `check(Draw(...))`, as a failure prints it, runs one again.

    Args:
        case, head, changes: the model; `changes` are those of the case's configuration.
        tight: whether tables have no more positions than are needed.
        rows: the lengths of the sequences that are packed in each row; () for a row of padding.
        left: padding on the left of each row; () for none.
        holes: the number of the token in each row before which one place of padding lies, 0 for none; () for none.
        extra: padding on the right of the longest row.
        mask: none, long, bool, float, or one of SQUARE.
        queries: whether a 4-D mask has a row for each query.
        positions: of each row: counted (from 0 in each sequence), offset, gaps, permuted or any; () for the default.
        shared: whether positions are (1, L), and all as those of the first row.
        bounds: whether `cu_seq_lens_q` tells the sequences.
        types, embeds: whether token types, and embeddings in the place of ids, are given.
        states: whether a decoder attends to states of an encoder, of another number in each row.
        labels: whether there are any, and a loss.
        shifted: whether a causal LM gets `shift_labels`.
        items: `num_items_in_batch`; 0 for none.
        attention: eager, sdpa, `mine` or `told`.
        train: whether the model is in training.
        recorded: what is: hidden, attentions (and hidden states), or nothing.
        hook: the module with a hook, or none.
        reads: False as on an accelerator, where no value is to be read.
        few: how many rows of scores are computed at once; 0 for as many as usual.
        checkpoint: gradient checkpointing, reentrant or not; None for none.
        cache: `use_cache`.
        pieces: where a decoder's batch is cut, to be computed with a cache, piece by piece.
        compiled: whether the model is compiled.
        seed: of ids, positions, labels and so on.
    """

    case: str = "none"
    head: str = "encoder"
    changes: dict[str, Any] = field(default_factory=dict)
    tight: bool = False
    rows: tuple[tuple[int, ...], ...] = ((1,),)
    left: tuple[int, ...] = ()
    holes: tuple[int, ...] = ()
    extra: int = 0
    mask: str = "long"
    queries: bool = True
    positions: tuple[str, ...] = ()
    shared: bool = False
    bounds: bool = False
    types: bool = True
    embeds: bool = False
    states: bool = False
    labels: bool = False
    shifted: bool = False
    items: int = 0
    attention: str = "eager"
    train: bool = False
    recorded: str = ""
    hook: str = ""
    reads: bool = True
    few: int = 0
    checkpoint: bool | None = None
    cache: bool | None = None
    pieces: tuple[int, ...] = ()
    compiled: bool = False
    seed: int = 0

    def __repr__(self):
        standard = vars(Draw())
        drawn = {x.name: getattr(self, x.name) for x in fields(self)}
        return f"Draw({', '.join(f'{name}={x!r}' for name, x in drawn.items() if x != standard[name])})"

    def _repr_pretty_(self, printer, cycle) -> None:
        """As hypothesis prints it."""
        printer.text(repr(self))

    @property
    def settings(self) -> dict[str, Any]:
        return {**HEADS[self.head].config, **self.changes}

    @property
    def config(self) -> HfRopeConfig:
        return tiny_config(self.case, **self.settings)

    @property
    def decodes(self) -> bool:
        return self.config.is_decoder

    @property
    def square(self) -> bool:
        return self.mask in SQUARE

    @property
    def follows_length(self) -> bool:
        """Whether positions follow the length of a sequence, which a 4-D mask does not tell."""
        config = self.config
        with torch.device("meta"):
            return not SCHEMES[config.position_embedding_type](config).length_independent

    def build(self, **room: int):
        """The model in float64; `room` changes the size of its table."""
        model = tiny_model(self.case, HEADS[self.head].model_class, **{**self.settings, **room}).double()
        model.set_attn_implementation(self.attention)
        return model.train(self.train)

"""What a model's positions do, as numbers: the terms of its scores, where it attends, and what a shift changes.

Shapes: N layers, H heads, L length, E head size, D hidden size.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from transformers import PreTrainedTokenizerBase

from .convert import convert
from .convert.checkpoint import read_tokenizer
from .model.configuration_hf_rope import HfRopeConfig
from .model.modeling_hf_rope import HfRopeModel
from .model.position_base import Places, PositionScheme
from .model.positions import SCHEMES
from .text_files import is_text

TERMS = ("content-content", "content-position", "position-content", "position-position", "rotation")
SHIFTS = (1, 16, 256, 4096)


@dataclass
class AttentionByDistance:
    """Where each head attends.

    Args:
        distances: (2W - 1,) int64, the distances j - i within windows of W tokens.
        pairs: (2W - 1,) int64, the number of pairs of tokens, none of them special, at each distance.
        mean: (N, H, 2W - 1), their mean probability; NaN where there is no pair.
        special: (N, H), the share of these queries' attention that goes to special tokens.
    """

    distances: np.ndarray
    pairs: np.ndarray
    mean: np.ndarray
    special: np.ndarray

    @property
    def mean_distance(self) -> np.ndarray:
        """(N, H): how far each head attends, in tokens, the mean of |j - i| over all attention that `mean` is of."""
        mass = np.nan_to_num(self.mean) * self.pairs
        return (mass * np.abs(self.distances)).sum(-1) / mass.sum(-1)


@dataclass
class Findings:
    """What `inspect` found in one model.

    Args:
        checkpoint, scheme, shift_invariant: the model, its scheme, and what the scheme declares.
        tokens: the tokens that `terms` and `probabilities` are of.
        terms: (N, H, L, L) for each of TERMS, see `score_terms`.
        probabilities: (N, H, L, L), the model's attention.
        attention: what `attention_by_distance` gives.
        shifts: for each shift the greatest change of a hidden state, see `shift_changes`.
        largest: the largest size of a hidden state.
        decay: curves of `long_term_decay` by their settings, the model's own first; empty where nothing rotates.
    """

    checkpoint: str
    scheme: str
    shift_invariant: bool
    tokens: list[str]
    terms: dict[str, np.ndarray]
    probabilities: np.ndarray
    attention: AttentionByDistance
    shifts: dict[int, float | None]
    largest: float
    decay: dict[str, np.ndarray]

    def spread(self) -> dict[str, np.ndarray]:
        """(N, H) for each term: its standard deviation over the keys, the mean over queries.

        The softmax does not see what all keys of a query have in common, so this is how much the term matters.
        """
        return {name: term.std(-1).mean(-1) for name, term in self.terms.items()}

    def save(self, folder: Path) -> None:
        """Writes the arrays as arrays.npz, and the rest as findings.json."""
        arrays: dict[str, Any] = {"probabilities": self.probabilities}
        arrays |= {f"attention/{name}": array for name, array in vars(self.attention).items()}
        arrays |= {f"terms/{name}": term for name, term in self.terms.items()}
        arrays |= {f"decay/{name}": curve for name, curve in self.decay.items()}
        np.savez_compressed(folder / "arrays.npz", **arrays)
        numbers = {
            "checkpoint": self.checkpoint,
            "scheme": self.scheme,
            "declared shift invariant": self.shift_invariant,
            "greatest change by shift": self.shifts,
            "largest hidden state": self.largest,
            "tokens": self.tokens,
            "spread of each term": {name: spread.tolist() for name, spread in self.spread().items()},
            "mean distance": self.attention.mean_distance.tolist(),
            "share on special tokens": self.attention.special.tolist(),
        }
        (folder / "findings.json").write_text(json.dumps(numbers, indent=1))


def inspect(
    checkpoint: str | Path,
    text: str,
    *,
    tokens: int = 24,
    window: int | None = None,
    longest: int = 512,
    rope_parameters: Sequence[dict[str, Any]] = (),
) -> Findings:
    """Looks at a checkpoint of hf_rope, or of an architecture that `convert` knows, in float64 and eager attention.

    Args:
        checkpoint: a folder or a name on the Hub, with its tokenizer.
        text: a sentence for the terms, or a longer text, whose beginning the terms are then of.
        tokens: the number of tokens that the terms are of, or as many as the model has positions for.
        window: attention is averaged over windows of the text of so many tokens; 128 if left out, or what the model has
            positions for.
        longest: the longest distance of the decay.
        rope_parameters: further settings to draw the decay for, as in the configuration.

    Raises:
        ValueError, TypeError: something cannot be read or does not fit; one sentence says what.
    """
    encoder, tokenizer = load(checkpoint)
    require_scores(encoder)
    position = encoder.position
    if tokens < 3 or longest < 1 or (window is not None and window < 3):
        raise ValueError(
            f"tokens={tokens}, window={window} and longest={longest}: the first two must be 3 or more, the last 1."
        )
    decay = {}
    if position.rotates:
        decay["the model's"] = long_term_decay(position, longest)
    for parameters in rope_parameters:
        decay[describe(parameters)] = long_term_decay(with_rope(encoder.config, parameters), longest)
    ids, _ = encode(tokenizer, text, min(tokens, position.max_length or tokens), encoder.config.vocab_size)[0]
    window = window or min(128, position.max_length or 128)
    windows = encode(tokenizer, text, window, encoder.config.vocab_size)
    attention = attention_by_distance(encoder, track(windows, "attention, windows of the text"))
    terms = score_terms(encoder, ids[None])
    with torch.no_grad():
        probabilities = torch.cat(encoder(ids[None], output_attentions=True).attentions)
    shifts, largest = shift_changes(encoder, ids[None], SHIFTS)
    return Findings(
        checkpoint=str(checkpoint),
        scheme=encoder.config.position_embedding_type,
        shift_invariant=position.shift_invariant,
        tokens=[str(tokenizer.convert_ids_to_tokens(number)) for number in ids.tolist()],
        terms={name: term.numpy() for name, term in terms.items()},
        probabilities=probabilities.numpy(),
        attention=attention,
        shifts=shifts,
        largest=largest,
        decay={name: curve.numpy() for name, curve in decay.items()},
    )


def load(checkpoint: str | Path) -> tuple[HfRopeModel, PreTrainedTokenizerBase]:
    """The encoder in float64 with eager attention, and the tokenizer."""
    encoder: Any = convert(checkpoint).base_model
    encoder.set_attn_implementation("eager")
    tokenizer = read_tokenizer(str(checkpoint))
    if tokenizer is None:
        raise ValueError(f"{checkpoint} has no tokenizer, and the text needs one: save it there with save_pretrained.")
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} is not a fast tokenizer, which alone cuts a text into windows.")
    return encoder.double().eval(), tokenizer


def require_scores(encoder: HfRopeModel) -> None:
    """Raises ValueError where attention has no scores before a softmax, or hides some of them."""
    if encoder.config.attention_type != "softmax":
        raise ValueError(
            f"attention_type={encoder.config.attention_type!r} has no scores to take apart: inspect a model with "
            "attention_type='softmax'."
        )
    if encoder.config.is_decoder:
        raise ValueError(
            "is_decoder is True, and a decoder's tokens attend to those before them alone, which the terms do not know "
            "of: inspect an encoder."
        )


def encode(
    tokenizer: PreTrainedTokenizerBase, text: str, window: int, vocab_size: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The text in windows: (L,) ids and (L,) bool, True at special tokens; refuses a text of fewer than two words."""
    if not is_text(text):
        raise ValueError("The text holds bytes that are no UTF-8: correct it.")
    encoded = tokenizer(
        text,
        truncation=True,
        max_length=window,
        return_overflowing_tokens=True,
        return_special_tokens_mask=True,
        verbose=False,
    )
    rows = [torch.tensor(row) for row in encoded["input_ids"]]
    special = [torch.tensor(row).bool() for row in encoded["special_tokens_mask"]]
    if sum(len(row) - int(mask.sum()) for row, mask in zip(rows, special, strict=True)) < 2:
        raise ValueError(f"The text {text[:40]!r} has fewer than two tokens beside the special ones: give a sentence.")
    if (greatest := max(int(row.max()) for row in rows)) >= vocab_size:
        raise ValueError(f"The tokenizer gives id {greatest} and the model has {vocab_size} words: they do not fit.")
    return list(zip(rows, special, strict=True))


@torch.no_grad()
def score_terms(
    encoder: HfRopeModel, input_ids: torch.Tensor, position_ids: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """The scores before the softmax as a sum of terms: (1, L) ids without padding -> (N, H, L, L) for each of TERMS.

    Every scheme's score of a query q and a key k is q M k + q a + b k + c, where M, a, b and c depend on the two
    positions. Which of them is there is read from the scheme's own hooks:

    - content-content: q . k, scaled.
    - content-position: q a, such as Shaw's and DeBERTa's content to position, Transformer-XL's (b).
    - position-content: b k, such as DeBERTa's position to content, and Transformer-XL's (c), u . k.
    - position-position: c, such as the biases of T5, ALiBi and TUPE, and Transformer-XL's (d).
    - rotation: q M k less the scaled q . k, what a turn changes. A turn multiplies and adds nothing, so that this is of
      both contents and both positions, and no term of its own is left for either.

    A scheme that adds positions to the embeddings gives the first layer's queries and keys a part of content and one of
    position (`split_embeddings`), and their four products go to the four terms. The projections' biases are content.
    From the second layer on the two are mixed: there the whole hidden state is content, and position is what the scheme
    adds in that layer.
    """
    require_scores(encoder)
    if position_ids is None:
        position_ids = torch.arange(input_ids.shape[1])[None]
    states = encoder(input_ids, position_ids=position_ids, output_hidden_states=True).hidden_states
    places = Places(position_ids, position_ids)
    words = encoder.embeddings(input_ids, None, None)
    _, shared, (pairs,) = encoder.position(words, position_ids, places, [places])
    content, added = split_embeddings(encoder, input_ids, position_ids)
    terms = []
    for layer, x in zip(encoder.layers, states[:-1], strict=True):
        attn: Any = layer.attention
        parts = (content, added) if attn.layer_idx == 0 else (x, torch.zeros_like(x))
        terms.append(layer_terms(attn, shared, pairs, *parts))
    return {name: torch.stack([layer[name][0] for layer in terms]) for name in TERMS}


def position_share(encoder: HfRopeModel, input_ids: torch.Tensor) -> float:
    """How much positions count in the first layer's scores: 0 where they are not seen, 1 where as much as content.

    (1, L) ids. The spread over the keys, as in `Findings.spread`, of all terms but content-content together, over that
    of content-content alone; each is a mean over queries and heads.
    """
    terms = score_terms(encoder, input_ids)
    content = terms.pop("content-content")[0]
    positions = torch.stack([term[0] for term in terms.values()]).sum(0)
    return float(positions.std(-1).mean() / content.std(-1).mean())


def split_embeddings(
    encoder: HfRopeModel, input_ids: torch.Tensor, position_ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first layer's input as a part of content and a part of position, (1, L, D) each.

    The LayerNorm is linear once its divisor is given, the standard deviation of words and positions together: each part
    less its own mean, over that divisor. The norm's bias and the projection's are content, as the token types are.
    """
    norm, project = encoder.embedding_norm, encoder.embedding_projection
    words = encoder.embeddings(input_ids, None, None)
    both = encoder.position.embed(words, position_ids)
    scale = norm.weight / (both.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
    content, added = ((x - x.mean(-1, keepdim=True)) * scale for x in (words, both - words))
    return project(content + norm.bias), project(added) - project(0 * added)


def layer_terms(attn, shared, pairs, content: torch.Tensor, added: torch.Tensor) -> dict[str, torch.Tensor]:
    """The terms of one layer, (1, H, L, L), from its input's parts, (1, L, D) each, and what its scheme shares."""

    def product(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return attn.position.scaling() * query @ key.transpose(-1, -2)

    def score(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        states = attn.place(query, key, key, shared)
        term = attn.position.score_term(states, pairs)
        return product(states.query, states.key) + (0 if term is None else term)

    q, k = (attn.by_head(project(content)) for project in (attn.query, attn.key))
    q_added, k_added = (attn.by_head(project(added) - project(0 * added)) for project in (attn.query, attn.key))
    zero = torch.zeros_like(q)
    constant = score(zero, zero)
    terms = {
        "content-content": product(q, k),
        "content-position": product(q, k_added) + score(q, zero) - constant,
        "position-content": product(q_added, k) + score(zero, k) - constant,
        "position-position": product(q_added, k_added) + score(q_added, zero) + score(zero, k_added) - constant,
    }
    q, k = q + q_added, k + k_added
    terms["rotation"] = score(q, k) - score(q, zero) - score(zero, k) + constant - product(q, k)
    return terms


@torch.no_grad()
def attention_by_distance(
    encoder: HfRopeModel, windows: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> AttentionByDistance:
    """The mean over windows of text, each (L,) ids and (L,) bool, True at special tokens; the encoder is eager."""
    sums: dict[int, torch.Tensor] = {}
    pairs: dict[int, int] = {}
    on_special, queries = torch.zeros(1), 0
    for ids, special in windows:
        probabilities = torch.cat(encoder(ids[None], output_attentions=True).attentions)[:, :, ~special]
        on_special = on_special + probabilities[..., special].sum((-1, -2))
        queries += probabilities.shape[2]
        between = probabilities[..., ~special]
        places = torch.arange(len(ids))[~special]
        gaps = places[None] - places[:, None]
        for gap in gaps.unique().tolist():
            sums[gap] = sums.get(gap, 0) + between[..., gaps == gap].sum(-1)
            pairs[gap] = pairs.get(gap, 0) + int((gaps == gap).sum())
    distances = list(range(-max(sums), max(sums) + 1))
    missing = torch.full_like(on_special, torch.nan)
    means = [sums[gap] / pairs[gap] if gap in sums else missing for gap in distances]
    counts = [pairs.get(gap, 0) for gap in distances]
    mean, special_share = torch.stack(means, -1), on_special / queries
    return AttentionByDistance(np.array(distances), np.array(counts), mean.numpy(), special_share.numpy())


@torch.no_grad()
def shift_changes(
    encoder: HfRopeModel, input_ids: torch.Tensor, shifts: Iterable[int]
) -> tuple[dict[int, float | None], float]:
    """The greatest change of a last hidden state where all positions move by n, for each n, and the largest state.

    (1, L) ids. None where the scheme has no table for such positions. Rounding alone is about 1e-14 in float64; a
    scheme that declares `shift_invariant` shows no more than that.
    """
    still = torch.arange(input_ids.shape[1])[None]
    before = encoder(input_ids, position_ids=still).last_hidden_state
    changes: dict[int, float | None] = {}
    for shift in shifts:
        try:
            after = encoder(input_ids, position_ids=still + shift).last_hidden_state
            changes[shift] = float((after - before).abs().max())
        except ValueError:  # the scheme's own refusal of a position beyond its table
            changes[shift] = None
    return changes, float(before.abs().max())


def long_term_decay(position: PositionScheme, longest: int) -> torch.Tensor:
    """RoFormer's fig. 2: (longest + 1,), the mean of |S_1| to |S_(d/2)| for the distances r from 0 to `longest`.

    S_i is the sum of e^(i r theta_t) over t < i (sec. 3.4.3, eq. 35 to 37): the score at distance r is at most the sum
    of their sizes times a number of the contents alone. Frequencies are the model's own, scaled as its
    `rope_parameters` say, those of an input of `longest` + 1 tokens where they follow the length; their factor on
    queries and keys, such as YaRN's, counts squared.

    Raises:
        ValueError: the scheme does not rotate.
    """
    if not position.rotates:
        rotating = " or ".join(name for name, scheme in SCHEMES.items() if scheme.rotates)
        raise ValueError(
            f"position_embedding_type={position.config.position_embedding_type!r} does not rotate and has no long-term "
            f"decay of this kind: inspect a model with {rotating}."
        )
    scheme: Any = position
    distances = torch.arange(longest + 1)
    frequencies, factor = scheme.frequencies(distances[None], torch.float64)
    angles = distances[:, None] * frequencies.reshape(-1, frequencies.shape[-1])[-1]  # one sequence, one set of them
    return factor**2 * torch.polar(torch.ones_like(angles), angles).cumsum(-1).abs().mean(-1)


def with_rope(config: HfRopeConfig, parameters: dict[str, Any]) -> PositionScheme:
    """The scheme under other `rope_parameters`; a theta that is left out is the model's."""
    changed = HfRopeConfig.from_dict(config.to_dict(), rope_parameters=parameters)
    return SCHEMES[changed.position_embedding_type](changed)


def describe(parameters: dict[str, Any]) -> str:
    """`rope_parameters` as a label."""
    return ", ".join(f"{key.removeprefix('rope_')} {value}" for key, value in parameters.items())

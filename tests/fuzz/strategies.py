"""Which draws there are, as strategies of hypothesis."""

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from fuzz.batch import real_tokens
from fuzz.draw import BY_TOKEN, LMS, SQUARE, Draw
from heads import CHOICES, HEADS
from helpers import CASES
from hf_rope import SCHEMES
from hf_rope.model.modeling_hf_rope import ATTENTIONS

OFTEN = [head for head in HEADS if head != "pre-training"] + ["encoder", "causal-lm"] * 4
"""All heads, and those that can be run in most ways more often."""


def some(**kinds: st.SearchStrategy) -> st.SearchStrategy[dict]:
    return st.fixed_dictionaries({}, optional=kinds)


def once_in(times: int) -> st.SearchStrategy[bool]:
    return st.sampled_from([False] * (times - 1) + [True])


def one_of(*values) -> st.SearchStrategy:
    return st.sampled_from(values)


LENGTHS = st.one_of(st.integers(1, 3), st.integers(1, 12))
BUCKETS = {"num_buckets": one_of(4, 8, 32), "max_distance": one_of(9, 12, 128)}
DEBERTA = some(
    pos_att_type=one_of(["c2p"], ["p2c"], ["c2p", "p2c"]),
    share_att_key=st.booleans(),
    norm_rel_ebd=st.booleans(),
    absolute_embeddings=st.booleans(),
)
OPTIONS = {
    "shaw": some(max_distance=st.integers(1, 6), relative_values=st.booleans()),
    "t5": some(absolute_embeddings=st.booleans(), **BUCKETS),
    "tupe": some(untie_cls=st.booleans(), relative_bias=st.booleans(), **BUCKETS),
    "deberta": st.builds(
        lambda sizes, others: {"position_buckets": sizes[0], "max_relative_positions": sizes[1], **others},
        one_of((0, 2), (0, 5), (0, 16), (4, 4), (4, 8), (8, 16), (256, 512)),
        DEBERTA,
    ),
    "alibi": some(form=one_of("symmetric", "one_sided", "learned")),
    "kerple": some(kernel=one_of("log", "power")),
    "fire": some(width=one_of(1, 8, 32), threshold=one_of(1, 5, 100)),
    "rotary": some(pairing=one_of("interleaved", "halves"), rotary_value=st.booleans()),
}
LONGROPE = {"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [2.0, 3.0, 4.0, 5.0], "factor": 4.0}
ROPE = st.one_of(
    st.builds(lambda theta: {"rope_theta": theta}, one_of(10.0, 500.0, 10000.0)),
    st.just({"rope_theta": 100.0, "partial_rotary_factor": 0.5}),
    st.builds(lambda kind: {"rope_type": kind, "factor": 3.0}, one_of("linear", "dynamic", "yarn")),
    st.builds(
        lambda first: {"rope_type": "longrope", "original_max_position_embeddings": first, **LONGROPE},
        st.integers(2, 12),
    ),
)


@st.composite
def own_options(draw, scheme: str) -> dict[str, Any]:
    """A scheme's own settings, and linear attention where it allows that."""
    changes: dict[str, Any] = {}
    if scheme in OPTIONS and draw(st.booleans()):
        changes["position_options"] = draw(OPTIONS[scheme])
    if SCHEMES[scheme].score == "none" and not SCHEMES[scheme].changes_values and draw(once_in(3)):
        favor = {"feature_map": "favor", "num_features": 8}
        changes |= {"attention_type": "linear", **(favor if draw(st.booleans()) else {})}
    if SCHEMES[scheme].rotates:
        changes["rope_parameters"] = draw(ROPE)
        if changes["rope_parameters"].get("rope_type") == "dynamic":
            changes["max_position_embeddings"] = draw(st.integers(2, 12))
    return changes


@st.composite
def models(draw) -> Draw:
    """A scheme with its options, a head, and the sizes that a layout could depend on."""
    case, head = draw(st.sampled_from(CASES)), draw(st.sampled_from(OFTEN))
    changes: dict[str, Any] = {"num_hidden_layers": draw(st.integers(1, 2))}
    if case in SCHEMES:
        changes |= draw(own_options(case))
    if draw(once_in(4)):
        changes["embedding_size"] = 20
    if draw(once_in(4)):
        changes["scale_embedding"] = draw(st.booleans())
    if draw(st.booleans()):
        changes["type_vocab_size"] = 0
    if HEADS[head].model == "HfRopeForSequenceClassification":
        changes["classifier_pooling"] = draw(one_of("cls", "mean"))
    if head == "causal-lm" or (head == "encoder" and draw(st.booleans())):
        changes |= {"is_decoder": True, "use_cache": draw(st.booleans()), "add_cross_attention": draw(once_in(4))}
    if draw(once_in(5)):
        changes["unpad_inputs"] = False
    if head in LMS:
        changes["sparse_prediction"] = draw(one_of(None, True, False))
    return Draw(case=case, head=head, changes=changes, tight=draw(once_in(3)))


@st.composite
def batches(draw, found: Draw) -> Draw:
    """Rows of sequences, full or padded, with positions and what marks the padding; or a decoder's, in pieces."""
    by_token, softmax = found.head in BY_TOKEN, found.config.attention_type == "softmax"
    cut = found.decodes and not found.follows_length and draw(once_in(3))
    square = by_token and softmax and not (cut or found.follows_length) and draw(once_in(6))
    packs = by_token and not cut and draw(st.booleans())
    bounds = packs and not square and draw(once_in(4))
    found = replace(found, bounds=bounds, **draw(rows_and_padding(found.head, packs, bounds)))

    masks = SQUARE if square else ("long", "long", "bool", "float")
    if real_tokens(found).all() and draw(st.booleans()):
        masks = ("none",)
    positions, shared = ("counted",) * (bounds and draw(st.booleans())), False
    if not bounds and (packs or draw(st.booleans())):
        kinds = ["counted", "offset", *([] if cut else ["gaps", "permuted"])]
        if by_token and not cut:
            kinds += ["any", *["counted"] * 4 * packs]  # both may be packed
        shared = not cut and len(found.rows) > 1 and draw(once_in(4))
        if shared and not by_token:
            kinds.remove("counted")  # a row of it may begin in one sequence and end in another
        positions = tuple(draw(st.sampled_from(kinds)) for _ in found.rows)
    found = replace(
        found,
        mask=draw(st.sampled_from(masks)),
        queries=packs or "any" in positions or found.decodes or draw(st.booleans()),
        positions=positions,
        shared=shared,
    )
    if not cut:
        return found
    length = real_tokens(found).shape[1]
    pieces = draw(st.sets(st.integers(1, max(1, length - 1)), max_size=3))
    return replace(found, cache=True, pieces=tuple(sorted(x for x in pieces if x < length)))


@st.composite
def rows_and_padding(draw, head: str, packs: bool, bounds: bool) -> dict[str, Any]:
    """The lengths of the sequences; padding on the right, on the left, on either side, between tokens, or nowhere."""
    count = 1 if bounds else draw(one_of(1, 2, 2, 3, 4))
    if head == "multiple-choice":
        count = CHOICES * draw(st.integers(1, 2))
    row = st.lists(LENGTHS, min_size=draw(st.integers(1, 2)) if packs else 1, max_size=4 if packs else 1)
    if draw(once_in(4)):
        first = tuple(draw(row))
        return {"rows": tuple(draw(one_of(first, first[::-1])) for _ in range(count))}
    rows = [tuple(draw(row)) for _ in range(count)]
    if head in BY_TOKEN and count > 1 and draw(once_in(8)):
        rows[draw(st.integers(0, count - 1))] = ()
    holes = [0 if bounds or not draw(once_in(6)) else draw(st.integers(0, 6)) for _ in rows]
    widths = [sum(row) + (0 < hole < sum(row)) for row, hole in zip(rows, holes, strict=True)]
    side, extra = draw(one_of("right", "left", "either")), draw(one_of(0, 0, 1, 3))
    left = {
        "right": [0 for _ in rows],
        "left": [max(widths) - width + extra for width in widths],
        "either": [draw(st.integers(0, 5)) for _ in rows],
    }[side]
    return {"rows": tuple(rows), "left": tuple(left), "holes": tuple(holes), "extra": extra * (side != "left")}


@st.composite
def ways(draw, found: Draw) -> Draw:
    """How the batch is run."""
    config = found.config
    kinds = [x for x in ("eager", "sdpa") if x in ATTENTIONS[config.attention_type].attn_implementations(config)]
    softmax, cut = config.attention_type == "softmax", found.cache is not None
    if softmax and "sdpa" in kinds:
        kinds.append("mine")
    if softmax and SCHEMES[config.position_embedding_type].score == "none":
        kinds.append("told")
    way: dict[str, Any] = {"attention": draw(st.sampled_from(kinds)), "train": draw(st.booleans())}
    if draw(once_in(5)) and not cut:
        probable = softmax and way["attention"] == "eager"
        way["recorded"] = draw(one_of("hidden", "attentions")) if probable else "hidden"
    elif draw(once_in(5)):
        hooked = ["embeddings", "layers.0", "layers.0.attention.query", *(["lm_head"] if found.head in LMS else [])]
        way["hook"] = draw(st.sampled_from(hooked))
    way["reads"] = not draw(once_in(4))
    way["few"] = draw(one_of(0, 0, 0, 1, 2, 5))
    if way["train"] and not cut and draw(once_in(6)):
        way["checkpoint"] = draw(st.booleans())
    elif found.decodes and not cut:
        way["cache"] = draw(one_of(None, True, False))
    return replace(found, **way)


@st.composite
def draws(draw, compiled: bool = False) -> Draw:
    found = draw(batches(draw(models())))
    if compiled:
        kinds = ATTENTIONS[found.config.attention_type].attn_implementations(found.config)[:2]  # eager, and sdpa
        way = {"compiled": True, "pieces": (), "train": draw(st.booleans()), "attention": draw(st.sampled_from(kinds))}
        found = replace(found, **way, changes={**found.changes, "num_hidden_layers": 1})
    else:
        found = draw(ways(found))
    return replace(
        found,
        types=draw(st.booleans()),
        embeds=draw(once_in(4)),
        states=found.config.add_cross_attention and draw(st.booleans()),
        labels=found.head != "encoder" and not found.pieces and draw(one_of(True, True, False)),
        shifted=any(found.holes) or draw(st.booleans()),
        items=draw(one_of(0, 0, 3, 7)),
        seed=draw(st.integers(0, 2**16)),
    )

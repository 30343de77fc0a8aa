"""An input that no model can take is refused before it is computed: argument, limit and way out."""

import pytest
import torch

import hf_rope
from heads import HEADS
from helpers import refused, tiny_model, token_ids
from hf_rope import SCHEMES, HfRopeForMaskedLM, HfRopeForMultipleChoice, HfRopeForTokenClassification, HfRopeModel

IDS = token_ids(2, 7)
AT = torch.arange(7)[None]
STATES = torch.zeros(2, 7, 32)
MASKS = [(2, 8), (1, 7), (7,), (2, 7, 7), (2, 1, 8, 8), (2, 1, 7, 8), (3, 1, 7, 7)]
# name: the arguments, and what the refusal mentions
VALUES = {
    "neither": ({}, "takes input_ids or inputs_embeds", "got neither"),
    "both": ({"input_ids": IDS, "inputs_embeds": STATES}, "one of them", "got both"),
    "id beyond the vocabulary": ({"input_ids": IDS * 0 + 99}, "input_ids holds 99", "0 to 98", "resize"),
    "negative id": ({"input_ids": IDS - 99}, "input_ids holds -", "0 to 98 (vocab_size=99)"),
    "one row": ({"input_ids": IDS[0]}, "input_ids has shape (7,)", "(batch, length)"),
    "no tokens": ({"input_ids": IDS[:, :0]}, "has shape (2, 0)", "one token at least"),
    "no rows": ({"input_ids": IDS[:0]}, "has shape (0, 7)", "one token at least"),
    "embeddings of another width": (
        *({"inputs_embeds": STATES[..., 1:]}, "inputs_embeds has shape (2, 7, 31)"),
        "(batch, length, embedding_size=32)",
    ),
    "embeddings without batch": ({"inputs_embeds": STATES[0]}, "inputs_embeds has shape (7, 32)", "(batch, length, "),
    "negative positions": (
        *({"input_ids": IDS, "position_ids": AT - 2}, "position_ids holds -2"),
        "positions start at 0",
    ),
    **{
        f"positions of shape {tuple(at.shape)}": (
            *({"input_ids": IDS, "position_ids": at}, f"position_ids has shape {tuple(at.shape)}"),
            "(2, 7) or (1, 7)",
        )
        for at in (AT[:, 1:], AT.repeat(3, 1), AT[0])
    },
    **{
        f"mask of shape {shape}": (
            *({"input_ids": IDS, "attention_mask": torch.ones(shape)}, f"attention_mask has shape {shape}"),
            "the input's, (2, 7)",
        )
        for shape in MASKS
    },
    "type beyond the table": (
        *({"input_ids": IDS, "token_type_ids": torch.full_like(IDS, 2)}, "token_type_ids holds 2"),
        *("0 to 1 (type_vocab_size=2)", "a larger type_vocab_size"),
    ),
    "negative type": ({"input_ids": IDS, "token_type_ids": -IDS}, "token_type_ids holds -", "0 to 1"),
    "types of another length": (
        *({"input_ids": IDS, "token_type_ids": IDS[:, 1:] * 0}, "token_type_ids has shape (2, 6)"),
        "the input's is (2, 7)",
    ),
    "tokens that see no later one": (
        *({"input_ids": IDS, "is_causal": True}, "is_causal is True and is_decoder is False"),
        "leave is_causal out",
    ),
    "a mask of scores": (
        *({"input_ids": IDS, "attention_mask": torch.zeros(2, 7).index_fill(1, torch.tensor([6]), -1e9)},),
        *("attention_mask holds -1e+09", "1 at real tokens and 0 at padding"),
    ),
}
TYPES = {
    "float ids": ({"input_ids": IDS.float()}, "input_ids has dtype torch.float32", "whole numbers", "pass .long"),
    "bool ids": ({"input_ids": IDS > 5}, "input_ids has dtype torch.bool", "whole numbers"),
    "list of ids": ({"input_ids": IDS.tolist()}, "input_ids is a list", "pass a tensor (return_tensors='pt'"),
    "whole embeddings": (
        {"inputs_embeds": STATES.long()},
        "inputs_embeds has dtype torch.int64",
        "ids go to input_ids",
    ),
    "float positions": ({"input_ids": IDS, "position_ids": AT / 2}, "position_ids has dtype torch.float32", "whole"),
    "a mask of pairs of whole numbers": (
        {"input_ids": IDS, "attention_mask": torch.ones(2, 1, 7, 7, dtype=torch.long)},
        *("attention_mask has dtype torch.int64", "it must be bool", "pass .bool()"),
    ),
    "float types": ({"input_ids": IDS, "token_type_ids": IDS / 1}, "token_type_ids has dtype torch.float32", "whole"),
}


@pytest.mark.parametrize("row", VALUES.values(), ids=VALUES)
def test_values_and_shapes(row):
    arguments, *mentions = row
    for scheme in ("none", "rotary", "learned"):
        refused(lambda scheme=scheme: tiny_model(scheme)(**arguments), *mentions)


@pytest.mark.parametrize("row", TYPES.values(), ids=TYPES)
def test_types(row):
    arguments, *mentions = row
    for scheme in ("none", "rotary", "learned"):
        refused(lambda scheme=scheme: tiny_model(scheme)(**arguments), *mentions, error=TypeError)


@pytest.mark.parametrize("shape", [(2, 7), (2, 1, 7, 7), (2, 4, 7, 7), (1, 1, 7, 7), (2, 1, 1, 7)], ids=str)
def test_masks_of_every_fitting_shape_are_taken(shape):
    mask = torch.ones(shape, dtype=torch.long if len(shape) == 2 else torch.bool)
    assert tiny_model("none")(IDS, attention_mask=mask).last_hidden_state.isfinite().all()


BOUNDS = torch.tensor([0, 3, 7])
OF_HEADS = {
    "labels of another shape": (
        *(HfRopeForMaskedLM, {"input_ids": IDS, "labels": IDS[:, 1:]}),
        "labels has shape (2, 6)",
    ),
    "labels a row": (
        *(HfRopeForTokenClassification, {"input_ids": IDS, "labels": IDS[:, 0]}),
        "labels has shape (2,); ",
    ),
    "choices left out": (HfRopeForMultipleChoice, {"input_ids": IDS}, "has shape (2, 7)", "(batch, choices, length"),
    "no choices": (HfRopeForMultipleChoice, {}, "one of them", "got neither"),
    "bounds of two rows": (
        *(HfRopeModel, {"input_ids": IDS, "cu_seq_lens_q": BOUNDS}),
        *("cu_seq_lens_q", "of one row", "the batch has 2"),
    ),
    "bounds too short": (
        *(HfRopeModel, {"input_ids": IDS[:1], "cu_seq_lens_q": BOUNDS[:2]}),
        *("cu_seq_lens_q is [0, 3]", "length, 7"),
    ),
    "bounds that fall": (
        *(HfRopeModel, {"input_ids": IDS[:1], "cu_seq_lens_q": BOUNDS[[0, 1, 1, 2]]}),
        *("cu_seq_lens_q", "must rise from 0"),
    ),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("row", OF_HEADS.values(), ids=OF_HEADS)
def test_inputs_of_heads(row, training):
    model_class, arguments, *mentions = row
    model = tiny_model("rotary", model_class).train(training)
    refused(lambda: model(**arguments), *mentions)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "head", [head for head in HEADS.values() if head.labels and head.labels.get("labels", STATES).dtype == torch.long]
)
def test_labels_that_are_no_class(head, training):
    model = head.build().train(training)
    assert model(**head.batch(), **head.labels).loss.isfinite()
    for wrong in (1000, -1):
        labels = head.labels["labels"].clone()
        labels.view(-1)[1] = wrong
        refused(
            lambda labels=labels: model(**head.batch(), labels=labels), f"labels holds {wrong}, outside 0 to", "-100"
        )
    refused(lambda: model(**head.batch(), labels=[0]), "labels is a list", error=TypeError)


def test_places_of_an_answer_before_the_first_token():
    model = tiny_model("rotary", hf_rope.HfRopeForQuestionAnswering)
    places = {"start_positions": torch.tensor([-1, 2]), "end_positions": torch.tensor([3, 2])}
    refused(lambda: model(IDS, **places), "start_positions holds -1", "counted from 0")


LONG = {
    "ids": {"input_ids": token_ids(1, 65)},
    "embeddings": {"inputs_embeds": torch.zeros(1, 65, 32)},
    "padding on the right": {
        "input_ids": token_ids(2, 65),
        "attention_mask": torch.tensor([[1] * 65, [1] * 9 + [0] * 56]),
    },
    "far positions": {"input_ids": token_ids(1, 2), "position_ids": torch.tensor([[0, 64]])},
    "far positions in one row": {"input_ids": token_ids(2, 2), "position_ids": torch.tensor([[0, 1], [0, 64]])},
}


@pytest.mark.parametrize("inputs", LONG.values(), ids=LONG)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_input_longer_than_max_position_embeddings(scheme, inputs):
    model = tiny_model(scheme)
    if model.position.max_length is None:
        assert model(**inputs).last_hidden_state.isfinite().all()
        return
    limit = (f"'{scheme}' has a table for 64 positions (max_position_embeddings=64)", "the input needs 65")
    refused(lambda: model(**inputs), *limit, "shorten", "truncation=True", "a scheme without a table")

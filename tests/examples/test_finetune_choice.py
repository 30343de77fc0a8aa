"""finetune_choice.py."""

import pytest
from transformers import AutoModelForMultipleChoice, AutoTokenizer

import finetune_choice
from scripts import load_complete

CHOSEN = [
    {"text": "he stood", "choices": ["at the end", "in town", "a man"], "label": 0},
    {"text": "she sat", "choices": ["the road", "down", "of"], "label": 1},
]


@pytest.mark.parametrize("in_columns", [False, True])
def test_choices_come_as_a_list_or_in_columns(finetune, tmp_path, in_columns):
    rows, arguments = CHOSEN, []
    if in_columns:
        rows = [{**row, **dict(zip("xyz", row["choices"], strict=True))} for row in CHOSEN]
        rows = [{key: value for key, value in row.items() if key != "choices"} for row in rows]
        arguments = ["--choice_columns", *"xyz"]
    results = finetune(finetune_choice, rows, *arguments)
    assert results["test"]["guessing"] == pytest.approx(1 / 3)
    assert results["test"]["accuracy"] in (0, 0.5, 1)
    model = load_complete(AutoModelForMultipleChoice, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    batch = tokenizer(["he stood"] * 3, CHOSEN[0]["choices"], padding=True, return_tensors="pt")
    assert model(**{key: value[None] for key, value in batch.items()}).logits.shape == (1, 3)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([CHOSEN[0], {**CHOSEN[1], "choices": ["a", "b"]}], r"\[2, 3\] choices; they must have the same"),
        ([{**CHOSEN[0], "label": 3}], "holds 3; with 3 choices it must be 0 to 2"),
    ],
    ids=["number of choices", "label"],
)
def test_choosing_refuses(finetune, tmp_path, rows, sentence):
    with pytest.raises(SystemExit, match=sentence):
        finetune(finetune_choice, rows)
    assert not (tmp_path / "out").exists()

"""finetune_tokens.py."""

import pytest
from datasets import Dataset
from transformers import AutoModelForTokenClassification, AutoTokenizer

import finetune_tokens
from scripts import load_complete

TAGGED = [
    {"tokens": ["Mr.", "Holmes", "of", "London", "spoke"], "tags": ["O", "B-PER", "O", "B-LOC", "O"]},
    {"tokens": ["New", "York", "is", "large"], "tags": ["B-LOC", "I-LOC", "O", "O"]},
]


def test_tags_are_learnt_at_first_pieces_and_entities_are_counted(finetune, tmp_path, folder):
    results = finetune(finetune_tokens, TAGGED)
    assert results["test"]["most_frequent_accuracy"] == pytest.approx(5 / 9)
    assert results["test"]["most_frequent_f1"] == results["test"]["words_left_out"] == 0
    assert 0 <= results["test"]["f1"] <= 1
    model = load_complete(AutoModelForTokenClassification, tmp_path / "out")
    assert model.config.id2label == {0: "B-LOC", 1: "B-PER", 2: "I-LOC", 3: "O"}
    tokenizer, names = AutoTokenizer.from_pretrained(folder / "tokenizer"), list(model.config.label2id)
    rows = Dataset.from_list(TAGGED)
    for limit in (6, 128):
        encoded = finetune_tokens.encode(rows, ("tokens", "tags"), names, tokenizer, limit)
        for row, original in zip(encoded, TAGGED, strict=True):
            kept = [label for label in row["labels"] if label != -100]
            assert [names[label] for label in kept] == original["tags"][: len(kept)]
            first = [i for i, label in enumerate(row["labels"]) if label != -100]
            words = tokenizer.convert_ids_to_tokens([row["input_ids"][i] for i in first])
            assert all(original["tokens"][i].lower().startswith(word) for i, word in enumerate(words))
            assert (len(kept) == len(original["tags"])) == (limit == 128)


def test_entities_count_only_whole_and_where_tags_mark_them():
    truth = [["B-PER", "I-PER", "O", "B-LOC"]]
    found = finetune_tokens.score(truth, [["B-PER", "O", "O", "B-LOC"]])
    assert found == {"accuracy": 0.75, "precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert finetune_tokens.score([["NOUN", "VERB"]], [["NOUN", "NOUN"]]) == {"accuracy": 0.5}


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"tokens": "a b", "tags": ["O"]}, "The column 'tokens' must hold lists of strings"),
        ({"tokens": ["a"], "tags": ["O", "X"]}, "A row has 1 words and 2 tags: a"),
        ({"tokens": [], "tags": []}, "it must hold text|holds no text"),
    ],
)
def test_tagging_refuses(finetune, tmp_path, row, sentence):
    with pytest.raises(SystemExit, match=sentence):
        finetune(finetune_tokens, [row])
    assert not (tmp_path / "out").exists()


def test_a_tag_that_only_the_evaluation_has_is_refused(finetune):
    with pytest.raises(SystemExit, match="The tag 'B-ORG' occurs in the evaluation data only"):
        finetune(finetune_tokens, TAGGED, validation=[{"tokens": ["a"], "tags": ["B-ORG"]}])

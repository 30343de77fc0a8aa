"""The tasks of `hf_rope.compare`: what follows from the seed, the right answers, and how texts are read and scored."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import PerceiverTokenizer

from helpers import refused
from hf_rope.compare.tasks import TASKS
from hf_rope.compare.tasks.labelled import Answers, Labelled
from hf_rope.compare.tasks.language import BytesTask
from hf_rope.compare.tasks.right_answer import RightAnswer
from hf_rope.masking import NO_LABEL
from studies import BYTES, write_rows

ANSWERS = {kind: task for kind, task in TASKS.items() if issubclass(task, RightAnswer)}
LABELLED = {kind: task for kind, task in TASKS.items() if issubclass(task, Labelled)}
READ = {key: value for key, value in BYTES.items() if key != "kind"}
OWN = {
    "growing_masked_lm": {"windows": [4, 8, 16], "test_lengths": []},
    "classification": {"texts": ["sentence1", "sentence2"]},
    "regression": {"texts": ["sentence1", "sentence2"]},
}
ROWS = {"classification": "mrpc", "regression": "stsb", "token_classification": "ewt_pos"}


@pytest.fixture(autouse=True)
def rows(tmp_path, monkeypatch):
    """Labelled rows in the working directory."""
    write_rows(tmp_path)
    monkeypatch.chdir(tmp_path)


def built(kind: str, **settings):
    if issubclass(TASKS[kind], BytesTask):
        settings = {**READ, **OWN.get(kind, {}), **settings}
    elif kind in LABELLED:
        files = {split: [f"{ROWS[kind]}/{split}.jsonl"] for split in ("train", "validation")}
        settings = {**files, **OWN.get(kind, {}), **settings}
    task = TASKS[kind](**settings)
    task.check()
    task.load({name: Path(name) for name in task.files()})
    return task


def examples(dataset, number: int = 24) -> list:
    return [dataset[i] for i in range(number)]


def equal(one: list, other: list) -> bool:
    return all(torch.equal(x[key], y[key]) for x, y in zip(one, other, strict=True) for key in x)


@pytest.mark.parametrize("kind", TASKS)
def test_examples_follow_from_the_seed_and_their_number(kind):
    task, again = built(kind, length=16), built(kind, length=16)
    first = examples(task.training(0, 24))
    torch.manual_seed(1)
    assert equal(first, examples(again.training(0, 24)))
    assert equal(first[5:6], [again.training(0, 24)[5]])
    assert not equal(first, examples(task.training(1, 24)))
    assert not equal(first[:4], examples(task.evaluation(), 4))
    assert {x.shape for example in first for x in example.values() if x.ndim} == {(16,)}
    assert task.evaluation(32)[0]["input_ids"].shape == (32,)


@pytest.mark.parametrize("kind", TASKS)
def test_ids_and_labels_fit_the_model(kind):
    task = built(kind, length=16)
    config = task.config()
    for example in [*examples(task.training(0, 24)), *examples(task.evaluation(32), 2)]:
        ids, labels = example["input_ids"], example.get("labels")
        assert ids.min() >= 0
        assert ids.max() < config["vocab_size"]
        if kind in ANSWERS:
            asked = labels[labels != NO_LABEL]
            assert len(asked)
            assert asked.min() >= 0
            assert asked.max() < config["num_labels"]
            assert (labels[example["attention_mask"] == 0] == NO_LABEL).all()


RIGHT = {
    "copy": ([4, 2, 9, 17, 17, 17, 17], [None, None, None, 4, 2, 9, None]),
    "reverse": ([4, 2, 9, 17, 17, 17], [None, None, None, 9, 2, 4]),
    "token_at_distance": ([4, 2, 9, 3, 5], [None, None, None, 4, 2]),
    "token_at_place": ([4, 2, 9, 3, 5], [3] * 5),
    "first_repeat": ([4, 2, 9, 2, 4], [2] * 5),
    "sort_by_position": ([4, 2, 9, 2, 5], [2, 2, 4, 5, 9]),
    "dyck_depth": ([1, 1, 2, 1, 2, 2], [1, 2, 1, 2, 1, 0]),
    "parity": ([2, 1, 2, 2, 1], [1, 1, 0, 1, 1]),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_answers_are_right(kind):
    ids, labels = RIGHT[kind]
    answers = built(kind, length=16).answers(torch.tensor(ids)).tolist()
    assert answers == [NO_LABEL if label is None else label for label in labels]


def test_without_a_repeat_there_is_none():
    assert built("first_repeat", length=16).answers(torch.tensor([4, 2, 9])).tolist() == [0, 0, 0]


def test_brackets_never_close_what_is_not_open():
    task = built("dyck_depth", length=160, symbols=3)
    depths = [task.answers(task.draw(160, torch.Generator().manual_seed(seed))) for seed in range(20)]
    assert {int(depth) for row in depths for depth in row} == {0, 1, 2, 3}


@pytest.mark.parametrize("kind", ANSWERS)
def test_what_the_answers_are_depends_on_the_order(kind):
    """So that a model without positions cannot give them: where its input is shuffled, its output is shuffled alike."""
    task, generator = built(kind, length=16), torch.Generator().manual_seed(0)
    for _ in range(50):
        ids = task.draw(12, generator)
        order = torch.arange(12)
        order[:6] = torch.randperm(6, generator=generator)  # blanks stay where they are
        answers = task.answers(ids)
        asked = answers != NO_LABEL
        if not torch.equal(task.answers(ids[order])[asked], answers[order][asked]):
            return
    pytest.fail("no order of any sequence had other answers")


def test_training_lengths_are_all_from_the_shortest_to_the_longest():
    task = built("parity", length=10, shortest=5)
    lengths = {int(example["attention_mask"].sum()) for example in examples(task.training(0, 200), 200)}
    assert lengths == {5, 6, 7, 8, 9, 10}


def test_bytes_are_numbered_as_the_tokenizer_does():
    text = "It was — no, 'it is'.\n"
    expected = PerceiverTokenizer()(text, add_special_tokens=False)["input_ids"]
    assert built("masked_lm").encode(text).tolist() == expected


def test_windows_grow_and_every_step_has_the_same_bytes():
    task = built("growing_masked_lm", length=16)
    training, collate = task.training(0, 24), task.collator()
    batches = [collate([training[i] for i in range(at, at + 4)]) for at in range(0, 24, 4)]
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(16, 4)] * 2 + [(8, 8)] * 2 + [(4, 16)] * 2
    whole = built("masked_lm", length=16).training(0, 24)
    for at, batch in enumerate(batches):
        unmasked = batch["input_ids"].where(batch["labels"] == NO_LABEL, batch["labels"])
        assert torch.equal(unmasked.flatten(), torch.cat([whole[4 * at + i]["input_ids"] for i in range(4)]))
    assert collate([task.evaluation()[i] for i in range(4)])["input_ids"].shape == (4, 16)


def test_the_loss_by_place_is_the_mean_over_the_masked_bytes_of_each_part():
    task = built("masked_lm_by_place", length=8, parts=4)
    logits = torch.randn(6, 8, 262, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(6, 262, (6, 8), generator=torch.Generator().manual_seed(1))
    labels[:, 1] = labels[0, :4] = labels[:, 6:] = NO_LABEL
    kept = task.predictions(logits, labels)
    found = task.compute_metrics(Answers(kept.numpy(), labels.numpy()))["loss_by_place"]
    losses = -logits.log_softmax(-1)
    for part, loss in enumerate(found):
        asked = [(i, j) for i in range(6) for j in (2 * part, 2 * part + 1) if labels[i, j] != NO_LABEL]
        if part == 3:
            assert not asked
            assert math.isnan(loss)
        else:
            assert loss == pytest.approx(
                sum(float(losses[i, j, labels[i, j]]) for i, j in asked) / len(asked), abs=1e-5
            )


def test_as_many_bytes_are_measured_at_a_time_however_long_windows_are():
    task = built("masked_lm_by_place", length=16)
    assert [task.evaluation_batch(length, 8) for length in (16, 32, 128, 256)] == [8, 4, 1, 1]
    assert built("masked_lm", length=16).evaluation_batch(256, 8) == 8


def test_windows_cover_the_text_once_an_epoch_in_another_order():
    task = built("causal_lm", length=16)
    number = len(task.bytes["train"]) // 16
    dataset = task.training(0, 2 * number)
    first, second = (
        [bytes(dataset[i]["input_ids"].sub(6).tolist()) for i in range(at, at + number)] for at in (0, number)
    )
    assert first != second
    assert sorted(first) == sorted(second)
    assert sorted(first) == sorted(
        bytes((task.bytes["train"][i : i + 16] - 6).tolist()) for i in range(0, number * 16, 16)
    )


def test_a_batch_of_few_bytes_has_a_masked_one():
    """A loss over none is no number, in which a whole evaluation would end."""
    collator = built("masked_lm", length=16, mlm_probability=0.01).collator()
    for first in range(20):
        ids = torch.arange(first, first + 4) + 6
        labels = collator([{"input_ids": ids, "special_tokens_mask": torch.zeros_like(ids)}])["labels"]
        assert (labels != NO_LABEL).any()


def test_masks_are_15_percent_and_follow_from_the_batch():
    task = built("masked_lm", length=16)
    batch = examples(task.training(0, 500), 500)
    first, again = (task.collator()([dict(example) for example in batch]) for _ in range(2))
    assert torch.equal(first["input_ids"], again["input_ids"])
    masked = first["labels"] != -100
    assert 0.13 < masked.float().mean() < 0.17
    hidden = first["input_ids"][masked] == task.tokenizer.mask_token_id
    assert 0.75 < hidden.float().mean() < 0.85
    other = task.collator()([dict(example) for example in batch[1:]])
    assert not torch.equal(first["labels"][1:], other["labels"])


def test_baselines_know_frequencies_only(tmp_path):
    for name, text in (("train", "aab" * 30), ("validation", "ab" * 40)):
        (tmp_path / name).write_text(text)
    files = {"train": [str(tmp_path / "train")], "validation": [str(tmp_path / "validation")]}
    task = built("causal_lm", length=16, **files)
    expected = -(math.log(61 / 352) + math.log(31 / 352)) / 2
    assert task.baseline()["loss"] == pytest.approx(expected)
    assert task.baseline()["bits_per_byte"] == pytest.approx(expected / math.log(2))
    assert 0.5 <= built("parity", length=16).baseline()["accuracy"] < 0.6


def text_of(ids: torch.Tensor) -> str:
    return PerceiverTokenizer().decode(ids.tolist()).replace("[PAD]", "_")


def test_texts_are_put_between_special_tokens_and_cut_to_the_length():
    pair = built("classification", length=24).evaluation()[3]
    assert text_of(pair["input_ids"]) == "[CLS]one 3[SEP]two 3[SEP]" + "_" * 11
    assert pair["attention_mask"].tolist() == [1] * 13 + [0] * 11
    assert pair["labels"] == 1
    row = {"sentence1": "a longer sentence", "sentence2": "short", "label": 0}
    cut = built("classification", length=16).example(row, 16)
    assert text_of(cut["input_ids"]) == "[CLS]a longer[SEP]short[SEP]"


def test_a_word_is_told_at_its_first_byte():
    task = built("token_classification", length=16)
    example = task.example({"tokens": ["I", "réad", "it", "12"], "tags": ["PRON", "VERB", "PRON", "NUM"]}, 16)
    assert text_of(example["input_ids"]) == "[CLS]I réad it 12[SEP]_"
    assert task.classes == {"NUM": 0, "PRON": 1, "VERB": 2}
    told = {place: label for place, label in enumerate(example["labels"].tolist()) if label != NO_LABEL}
    assert told == {1: 1, 3: 2, 9: 1, 12: 0}
    assert [x for x in task.example(task.rows["train"][0], 9)["labels"].tolist() if x != NO_LABEL] == [1, 2]


def test_scores_of_labelled_texts_are_those_of_the_definitions():
    labels = torch.tensor([0, 0, 1, 1, 1, 0]).numpy()
    found = built("classification", length=16).compute_metrics(
        Answers(torch.tensor([0, 1, 1, 1, 0, 0]).numpy(), labels)
    )
    assert found == {"accuracy": pytest.approx(4 / 6), "f1": pytest.approx(2 * 2 / (2 * 2 + 1 + 1))}
    task = built("regression", length=16)
    order = Answers(torch.tensor([1.0, 4.0, 9.0, 16.0]).numpy(), torch.tensor([0.0, 2.0, 1.0, 3.0]).numpy())
    assert task.compute_metrics(order) == {"spearman": pytest.approx(1 - 6 * 2 / (4 * 15))}
    assert task.predictions(torch.tensor([[2.0], [3.0]]), None).tolist() == [2.0, 3.0]
    tags = torch.tensor([[NO_LABEL, 1, 0], [2, NO_LABEL, NO_LABEL]])
    answers = Answers(torch.tensor([[1, 1, 1], [2, 0, 0]]).numpy(), tags.numpy())
    assert built("token_classification", length=16).compute_metrics(answers) == {"accuracy": pytest.approx(2 / 3)}


def test_baselines_of_labelled_texts_answer_the_same_everywhere(tmp_path):
    for split, labels in (("train", "abb"), ("validation", "abaa")):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps({"text": "t", "label": x}) + "\n" for x in labels))
    files = {split: [str(tmp_path / f"{split}.jsonl")] for split in ("train", "validation")}
    found = built("classification", length=16, texts=["text"], **files).baseline()
    assert found == {"accuracy": 0.25, "f1": pytest.approx(2 / (2 + 3))}
    assert built("regression", length=16).baseline() == {"mse": pytest.approx(35 / 48)}
    assert built("token_classification", length=16).baseline() == {"accuracy": pytest.approx(1 / 3)}
    assert built("token_classification", length=6).baseline() == {"accuracy": pytest.approx(1 / 2)}


PAIR = {"sentence1": "a", "sentence2": "b"}
UNFIT = {
    "texts": ("classification", {"texts": ["a", "b", "c"]}, None, "texts is ['a', 'b', 'c']"),
    "texts of words": ("token_classification", {"texts": ["a", "b"]}, None, "texts is ['a', 'b']"),
    "length": ("classification", {"length": 3}, None, "length is 3"),
    "test length": ("classification", {"test_lengths": [2]}, None, "length is 2"),
    "no rows": ("classification", {}, [], "train has no rows"),
    "no field": ("classification", {}, [{**PAIR, "lable": 1}], "'label'"),
    "no row": ("classification", {}, [1], "Line 1 of"),
    "no text": ("classification", {}, [{"sentence1": 1, "sentence2": "b", "label": 1}], "1 in 'sentence1'"),
    "no words": ("token_classification", {}, [{"tokens": [1], "tags": ["X"]}], "[1] in 'tokens'"),
    "one class": ("classification", {}, [{**PAIR, "label": 1}], "all labels of train are 1"),
    "a class that is none": ("classification", {}, [{**PAIR, "label": 0.5}], "0.5"),
    "an unknown class": ("classification", {}, [{**PAIR, "label": x} for x in (2, 3)], "validation has the label 0"),
    "no number": ("regression", {}, [{**PAIR, "label": "5"}], "'5'"),
    "endless number": ("regression", {}, [{**PAIR, "label": float("inf")}], "inf"),
    "a list for a class": ("classification", {}, [{**PAIR, "label": [1]}], "[1]"),
    "a word for classes": ("token_classification", {}, [{"tokens": ["a", "b"], "tags": "xy"}], "'xy'"),
    "no labels": ("token_classification", {}, [{"tokens": [], "tags": []}], "train has no labels"),
    "half a character": ("classification", {}, [{**PAIR, "sentence1": "\ud83d", "label": 1}], "Line 1 of"),
    "words and classes": ("token_classification", {}, [{"tokens": ["a"], "tags": []}], "1 words and 0 classes"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_labelled_texts_that_do_not_fit_are_refused(name, tmp_path):
    kind, settings, rows, mention = UNFIT[name]
    if rows is not None:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = {**settings, "train": [str(tmp_path / "rows.jsonl")]}
    refused(lambda: built(kind, **{"length": 16, **settings}), mention)

"""The tasks of `hf_rope.compare`: what follows from the seed, and the right answers."""

import math
from pathlib import Path

import pytest
import torch
from transformers import PerceiverTokenizer

from hf_rope.compare.tasks import TASKS
from hf_rope.compare.tasks.base import NO_LABEL
from hf_rope.compare.tasks.right_answer import RightAnswer
from studies import BYTES

ANSWERS = {kind: task for kind, task in TASKS.items() if issubclass(task, RightAnswer)}
SETTINGS = {key: value for key, value in BYTES.items() if key != "kind"}


def built(kind: str, **settings):
    task = TASKS[kind](**(settings if kind in ANSWERS else {**SETTINGS, **settings}))
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
    assert {x.shape for example in first for x in example.values()} == {(16,)}
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


def test_rows_of_texts_are_read(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "one long text"}\n{"text": "and another one"}\n')
    task = built("causal_lm", length=8, train=[str(path)])
    assert bytes((task.bytes["train"] - 6).tolist()) == b"one long text\nand another one"

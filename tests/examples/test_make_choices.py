"""make_choices.py."""

import json

import pytest

import make_choices
from scripts import run_script


def test_made_choices_hold_the_next_passage_at_the_label(folder, tmp_path, monkeypatch):
    text = " ".join(str(number) for number in range(1000))
    (tmp_path / "numbers.txt").write_text(f"{text}\n{text}\n")
    files = ["--train_file", tmp_path / "numbers.txt", "--validation_file", tmp_path / "numbers.txt"]
    sizes = ["--words", 10, "--rows", 80, "--choices", 4]
    for name in ("one", "two"):
        run_script(make_choices, monkeypatch, *files, *sizes, "--output_dir", tmp_path / name)
    assert (tmp_path / "one/train.jsonl").read_text() == (tmp_path / "two/train.jsonl").read_text()
    for split, number in {"train": 80, "validation": 10}.items():
        rows = [json.loads(line) for line in (tmp_path / f"one/{split}.jsonl").read_text().splitlines()]
        assert len(rows) == number
        for row in rows:
            assert len(row["choices"]) == 4
            assert int(row["choices"][row["label"]].split()[0]) == int(row["text"].split()[-1]) + 1
    assert {row["label"] for row in rows} > {0}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--words", "9999"], "The texts hold 0 passages of 9999 words; 5 are needed"),
        (["--words", "5", "--train_file", "{tmp_path}/short.txt"], "No text holds two passages of 5 words"),
        (["--choices", "1"], "--choices 1, --words 40 and --rows 8000 must be 2, 1 and 8 or more"),
    ],
)
def test_make_choices_refuses(folder, tmp_path, monkeypatch, arguments, sentence):
    files = ["--train_file", folder / "books.txt", "--validation_file", folder / "books.txt"]
    (tmp_path / "short.txt").write_text("\n".join(["one two three four five six"] * 9))
    arguments = [argument.format(tmp_path=tmp_path) for argument in arguments]
    with pytest.raises(SystemExit, match=sentence):
        run_script(make_choices, monkeypatch, *files, "--output_dir", tmp_path / "made", *arguments)
    assert not (tmp_path / "made").exists()

"""loading.py: the files that a user names."""

import json

import pytest

from loading import DataArguments, load_files, load_split


@pytest.mark.parametrize("name", ["part[1].txt", "part*.txt", "part?.txt"])
def test_a_file_is_read_whatever_its_name(tmp_path, name):
    (tmp_path / "part1.txt").write_text("another")
    (tmp_path / name).write_text("mine")
    assert load_files([str(tmp_path / name)], ["text"])["text"][:] == ["mine"]


def test_words_of_a_csv_file_stay_words(tmp_path):
    (tmp_path / "words.csv").write_text("text,label\nNA,1\nnull,2\n,3\nNone,4\n")
    rows = load_files([str(tmp_path / "words.csv")], ["text", "label"])
    assert rows["text"][:] == ["NA", "null", None, "None"]
    assert rows["label"][:] == [1, 2, 3, 4]


def test_columns_of_other_kinds_in_two_files_are_refused(tmp_path):
    for name, label in (("a", "1"), ("b", "good")):
        (tmp_path / f"{name}.csv").write_text(f"text,label\nx,{label}\n")
    with pytest.raises(SystemExit, match=r"Files hold other kinds of values in one column, .*a\.csv has .*b\.csv has "):
        load_files([str(tmp_path / f"{name}.csv") for name in "ab"], ["text", "label"])


def test_rows_without_text_are_left_out_of_every_split(tmp_path):
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, [{"text": None}, {"text": " "}, {"text": "a"}])))
    assert load_split(DataArguments(), "test", ["text"], [str(tmp_path / "test.jsonl")])["text"][:] == ["a"]

"""train_tokenizer.py."""

import pytest
from transformers import AutoTokenizer

import train_tokenizer
from scripts import run_script


@pytest.mark.parametrize("cased", [False, True])
def test_tokenizer_loads_and_keeps_or_drops_capitals(folder, tmp_path, monkeypatch, cased):
    arguments = ["--train_file", folder / "books.txt", folder / "reviews.jsonl", "--vocab_size", 400]
    run_script(train_tokenizer, monkeypatch, *arguments, "--output_dir", tmp_path / "t", *["--cased"] * cased)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "t")
    assert len(tokenizer) == 400
    assert (tokenizer.tokenize("A Man") == tokenizer.tokenize("a man")) is not cased
    assert tokenizer.decode(tokenizer("a man", "the man")["input_ids"]) == "[CLS] a man [SEP] the man [SEP]"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "There is no train text: give --train_file, or --dataset_name"),
        (["--train_file", "{folder}/books.txt", "--vocab_size", "5"], "--vocab_size is 5; it must be 10 or more"),
    ],
)
def test_tokenizer_training_refuses(folder, tmp_path, monkeypatch, arguments, sentence):
    arguments = [argument.format(folder=folder) for argument in arguments]
    with pytest.raises(SystemExit, match=sentence):
        run_script(train_tokenizer, monkeypatch, *arguments, "--output_dir", tmp_path / "t")

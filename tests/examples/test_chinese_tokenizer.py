"""chinese_tokenizer.py, and what a tokenizer of Chinese words needs."""

import json
import math
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForMaskedLM, AutoTokenizer

import chinese_tokenizer
import pretrain_mlm
from helpers import over
from scripts import TINY, load_complete, run_script


@pytest.fixture
def news(tmp_path) -> Path:
    """Chinese text and a vocabulary of its characters."""
    text = ["我们的企业发展经济", "今天我们工作", "经济发展"]
    (tmp_path / "news.txt").write_text("\n".join(text), encoding="utf-8")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set("".join(text)))]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return tmp_path


@over(words=[0, 3], given=[True, False])
def test_chinese_is_read_by_characters_or_by_words(news, monkeypatch, given, words):
    vocabulary = ["--vocab_file", news / "vocab.txt"] if given else ["--vocab_size", 60]
    arguments = ["--train_file", news / "news.txt", *vocabulary, "--words", words, "--output_dir", news / "t"]
    run_script(chinese_tokenizer, monkeypatch, *arguments)
    tokenizer = AutoTokenizer.from_pretrained(news / "t")
    whole = ["我们", "发展", "经济"] if words else list("我们发展经济")
    assert tokenizer.tokenize("我们发展经济") == whole
    assert tokenizer.tokenize("今天") == ["今", "天"]
    assert type(tokenizer).__name__ == ("RoFormerTokenizer" if words else "BertTokenizer")
    if given:
        assert tokenizer.convert_tokens_to_ids("[MASK]") == 4

    steps = ["--max_steps", 1, "--per_device_train_batch_size", 1, "--block_size", 8, "--position", "rotary"]
    files = ["--train_file", news / "news.txt", "--validation_file", news / "news.txt", "--tokenizer", news / "t"]
    sizes = ["--config_overrides", json.dumps(TINY), "--output_dir", news / "mlm"]
    run_script(pretrain_mlm, monkeypatch, *files, *steps, *sizes)
    assert AutoTokenizer.from_pretrained(news / "mlm/rotary").tokenize("我们发展经济") == whole
    assert load_complete(AutoModelForMaskedLM, news / "mlm/rotary").config.vocab_size == len(tokenizer)
    results = json.loads((news / "mlm/results.json").read_text())
    assert 0 < results["rotary"]["unigram_loss"] < math.log(len(tokenizer))


def test_words_without_rjieba_are_refused_when_made_and_when_loaded(news, pretrain, monkeypatch):
    arguments = ["--train_file", news / "news.txt", "--vocab_file", news / "vocab.txt", "--words", 3]
    run_script(chinese_tokenizer, monkeypatch, *arguments, "--output_dir", news / "t")
    monkeypatch.setitem(sys.modules, "rjieba", None)
    with pytest.raises(SystemExit, match="needs rjieba, which is not installed: pip install rjieba, or leave --words"):
        run_script(chinese_tokenizer, monkeypatch, *arguments, "--output_dir", news / "again")
    with pytest.raises(SystemExit, match=r"No tokenizer can be loaded from .* need to install rjieba"):
        pretrain(news / "mlm", "--tokenizer", news / "t")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--vocab_file", "nowhere.txt"], r"nowhere\.txt is not there"),
        (["--vocab_file", "{folder}/books.txt"], r"books\.txt has no line \[PAD\]"),
        (["--words", "-1"], "--words is -1; it must be 0 or more"),
    ],
)
def test_chinese_tokenizer_refuses(folder, tmp_path, monkeypatch, arguments, sentence):
    arguments = [argument.format(folder=folder) for argument in arguments]
    files = ["--train_file", folder / "books.txt", "--output_dir", tmp_path / "made"]
    with pytest.raises(SystemExit, match=sentence):
        run_script(chinese_tokenizer, monkeypatch, *files, *arguments)
    assert not (tmp_path / "made").exists()

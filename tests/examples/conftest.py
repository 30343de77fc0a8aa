"""Tiny text, tokenizers and checkpoints, and functions that run a script on them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel

import pretrain_mlm
import train_tokenizer
from hf_rope import HfRopeConfig, HfRopeForMaskedLM
from scripts import EXAMPLES, STEPS, TINY, run_script


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """Text of each kind and a tokenizer."""
    folder = tmp_path_factory.mktemp("examples")
    books = (EXAMPLES / "data/books/train.txt").read_text().splitlines()
    reviews = (EXAMPLES / "data/reviews/train.jsonl").read_text().splitlines()
    (folder / "books.txt").write_text("\n".join(books[:60]))
    (folder / "reviews.jsonl").write_text("\n".join(reviews[:100]))
    pairs = ["first,second,label", *(f"{a},{b},{('other', 'same')[a == b]}" for a in "abcd" for b in "abc")]
    (folder / "pairs.csv").write_text("\n".join(pairs))
    (folder / "one_class.csv").write_text("text,label\na,1\nb,1\n")
    (folder / "new_class.csv").write_text("text,label\na,7\n")
    (folder / "floats.jsonl").write_text('{"text": "a", "label": 0.0}')
    (folder / "lists.jsonl").write_text('{"text": "a", "label": ["a"]}')
    (folder / "unknown.txt").write_text("\u4e2d " * 99)
    (folder / "words.jsonl").write_text('{"text": ["a", "b"]}')
    (folder / "empty.txt").write_text(" \n")
    (folder / "book.pdf").write_text("text")
    (folder / "broken.json").write_text('{"text": ')
    train_tokenizer.train_tokenizer(books[:60], 300).save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture
def pretrain(folder, monkeypatch):
    """Runs pretrain_mlm.py; further arguments come last and so win."""

    def run(output: Path, *arguments) -> None:
        files = ["--train_file", folder / "books.txt", "--validation_file", folder / "reviews.jsonl"]
        sizes = ["--tokenizer", folder / "tokenizer", "--block_size", 32, "--config_overrides", json.dumps(TINY)]
        run_script(pretrain_mlm, monkeypatch, *files, *sizes, *STEPS, "--output_dir", output, *arguments)

    return run


@pytest.fixture(scope="session")
def bert(folder) -> Path:
    """A native checkpoint with its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer), **TINY)).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    return folder / "bert"


@pytest.fixture(scope="session")
def checkpoint(folder) -> Path:
    """A tiny pre-trained rotary encoder with its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    HfRopeForMaskedLM(HfRopeConfig(vocab_size=len(tokenizer), **TINY)).save_pretrained(folder / "checkpoint")
    tokenizer.save_pretrained(folder / "checkpoint")
    return folder / "checkpoint"


@pytest.fixture(scope="session")
def variants(checkpoint, bert, folder) -> dict[str, Path]:
    """The checkpoint, each time with one thing that is wrong, and those that are right."""
    places = {"checkpoint": checkpoint, "bert": bert}
    for name in ("untokenized", "unpadded", "left", "cut"):
        places[name] = Path(shutil.copytree(checkpoint, folder / name))
    for path in places["untokenized"].glob("tokenizer*"):
        path.unlink()
    for name, change in {"unpadded": {"pad_token": None}, "left": {"padding_side": "left"}}.items():
        path = places[name] / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    weights = places["cut"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    config = HfRopeConfig(vocab_size=300, position_embedding_type="learned", max_position_embeddings=16, **TINY)
    places["table"] = folder / "table"
    HfRopeForMaskedLM(config).save_pretrained(places["table"])
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(places["table"])
    return places


@pytest.fixture
def finetune(checkpoint, tmp_path, monkeypatch):
    """Runs a fine-tuning script on rows; further arguments come last and so win. Returns its results.json."""

    def run(script, rows: list[dict], *arguments, validation: list[dict] | None = None) -> dict:
        files = []
        for split, part in {"train": rows, "validation": validation or rows, "test": rows}.items():
            path = tmp_path / f"{split}.jsonl"
            path.write_text("\n".join(map(json.dumps, part)))
            files += [f"--{split}_file", path]
        steps = ["--model", checkpoint, "--output_dir", tmp_path / "out", "--max_steps", 2]
        run_script(script, monkeypatch, *files, *steps, *arguments)
        return json.loads((tmp_path / "out/results.json").read_text())

    return run

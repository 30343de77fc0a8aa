"""pretrain_mlm.py: every scheme sees the same batches, and a run can be resumed."""

import json
import math

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForMaskedLM, AutoTokenizer

import pretrain_mlm


def test_every_scheme_sees_the_same_batches_and_is_saved(pretrain, tmp_path, monkeypatch):
    seen: dict[str, list] = {}
    collate, train = pretrain_mlm.BatchSeededMasking.torch_call, pretrain_mlm.pretrain

    def record(self, examples):
        batch = collate(self, examples)
        seen[current].append((batch["input_ids"], batch["labels"]))
        return batch

    def start(config, *arguments, **settings):
        nonlocal current
        current = config.position_embedding_type
        seen[current] = []
        return train(config, *arguments, **settings)

    current = ""
    monkeypatch.setattr(pretrain_mlm.BatchSeededMasking, "torch_call", record)
    monkeypatch.setattr(pretrain_mlm, "pretrain", start)
    pretrain(tmp_path / "mlm", "--position", "rotary", "shaw")

    assert len(seen["rotary"]) > 4
    assert len(seen["rotary"]) == len(seen["shaw"])
    for ours, theirs in zip(seen["rotary"], seen["shaw"], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert all((labels != -100).any() for _, labels in seen["rotary"])

    results = json.loads((tmp_path / "mlm/results.json").read_text())
    for scheme in ("rotary", "shaw"):
        model = AutoModelForMaskedLM.from_pretrained(tmp_path / "mlm" / scheme)
        assert model.config.position_embedding_type == scheme
        assert results[scheme]["parameters"] == model.num_parameters()
        assert results[scheme]["perplexity"] == pytest.approx(math.exp(results[scheme]["validation_loss"]))
        assert results[scheme]["tokens_per_second"] > 0
        history = json.loads((tmp_path / "mlm" / scheme / "log_history.json").read_text())
        assert [row["step"] for row in history if "eval_loss" in row] == [2, 4, 4]


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(pretrain, tmp_path):
    pretrain(tmp_path / "whole", "--lr_scheduler_type", "constant")
    pretrain(tmp_path / "parts", "--lr_scheduler_type", "constant", "--max_steps", 2)
    pretrain(tmp_path / "parts", "--lr_scheduler_type", "constant", "--resume")
    whole, parts = (
        AutoModelForMaskedLM.from_pretrained(tmp_path / x / "rotary").state_dict() for x in ("whole", "parts")
    )
    for name, weight in whole.items():
        torch.testing.assert_close(parts[name], weight)


def test_masks_depend_on_the_batch_alone(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    collator = pretrain_mlm.BatchSeededMasking(tokenizer)
    one, two = ([{"input_ids": list(range(start, start + 64))}] for start in (5, 6))
    first, other, again = collator(one), collator(two), collator(one)
    assert torch.equal(first["labels"], again["labels"])
    assert torch.equal(first["input_ids"], again["input_ids"])
    assert not torch.equal(first["labels"] == -100, other["labels"] == -100)


def test_unigram_loss_of_even_words_is_the_log_of_their_number(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    words = [token for token in range(len(tokenizer)) if token not in tokenizer.all_special_ids]
    even = Dataset.from_dict({"input_ids": [words] * 50})
    assert pretrain_mlm.unigram_loss(even, even, tokenizer) == pytest.approx(math.log(len(words)), abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--train_file", "nowhere.txt"], r"nowhere\.txt is not there, or is no file"),
        (["--train_file", "{folder}/empty.txt"], r"empty\.txt is empty"),
        (["--train_file", "{folder}/book.pdf"], r"ends in '\.pdf'; these are read: \.txt, \.json, \.jsonl, \.csv"),
        (["--train_file", "{folder}/broken.json"], r"broken\.json cannot be read as json"),
        (["--train_file", "{folder}/pairs.csv"], r"no column 'text'; it has: first, second, label"),
        (["--position", "rotray"], "'rotray' is unknown; the nearest is 'rotary', all are: none, "),
        (["--config_overrides", "{{"], "--config_overrides is no JSON"),
        (["--config_overrides", "[1]"], "must be a JSON object"),
        (["--config_overrides", '{{"hidden_size": 30, "num_attention_heads": 4}}'], "hidden_size=30 is not a multiple"),
        (["--tokenizer", "{folder}/nowhere"], "No tokenizer can be loaded from"),
        (["--block_size", "100000"], "shorter than one block of 100000 tokens"),
        (["--output_dir", "{folder}"], "already holds something: --resume goes on with it"),
    ],
)
def test_pretraining_refuses(folder, pretrain, tmp_path, arguments, sentence):
    with pytest.raises(SystemExit, match=sentence):
        pretrain(tmp_path / "mlm", *(argument.format(folder=folder) for argument in arguments))

"""pretrain_mlm.py: the same batches for every scheme, runs that are resumed or go on from a checkpoint, stages."""

import json
import math
import shutil
from functools import wraps
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

import pretrain_mlm
from continuing import continued_config, load_checkpoint
from hf_rope import HfRopeForMaskedLM
from hf_rope.convert import convert
from loading import load_files
from scripts import TINY, load_complete, run_script
from stages import Stage, plan_stages, rows_in_order
from text_rows import make_rows

WIDER = {**TINY, "hidden_size": 64}


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


def test_a_checkpoint_that_was_cut_off_is_passed_over(pretrain, tmp_path):
    pretrain(tmp_path, "--max_steps", 2)
    cut = Path(shutil.copytree(tmp_path / "rotary/checkpoint-2", tmp_path / "rotary/checkpoint-3"))
    for name in ("trainer_state.json", "optimizer.pt"):
        (cut / name).unlink()
    pretrain(tmp_path, "--resume")
    assert not cut.exists()
    history = json.loads((tmp_path / "rotary/log_history.json").read_text())
    assert history[-1]["step"] == 4


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        (
            ["--position", "rotary"],
            ["--position", "rotary", "--config_overrides", json.dumps(WIDER)],
            "_size=32, and would",
        ),
        (
            ["--position", "learned"],
            ["--position", "learned", "--block_size", 48],
            "max_position_embeddings=32, and would go on with 48: give --resume the options of before",
        ),
    ],
    ids=["size", "table"],
)
def test_a_run_is_resumed_with_the_weights_that_it_has(pretrain, tmp_path, before, after, sentence):
    pretrain(tmp_path, *before, "--max_steps", 2)
    with pytest.raises(SystemExit, match=sentence):
        pretrain(tmp_path, *after, "--resume")


def test_a_run_from_a_checkpoint_is_resumed(pretrain, tmp_path, checkpoint):
    for options in (["--max_steps", 2], ["--resume", "--block_size", 48]):
        pretrain(tmp_path, "--model", checkpoint, "--config_overrides", "{}", *options)
    assert json.loads((tmp_path / "results.json").read_text())["rotary"]["validation_loss"] > 0


def test_results_of_a_scheme_stay_whatever_becomes_of_the_next(pretrain, tmp_path, monkeypatch):
    train = pretrain_mlm.pretrain

    def fail(config, *arguments, **settings):
        if config.position_embedding_type == "t5":
            raise KeyboardInterrupt
        return train(config, *arguments, **settings)

    monkeypatch.setattr(pretrain_mlm, "pretrain", fail)
    with pytest.raises(KeyboardInterrupt):
        pretrain(tmp_path, "--position", "rotary", "t5", "--max_steps", 2)
    first = json.loads((tmp_path / "results.json").read_text())
    assert list(first) == ["rotary"]
    monkeypatch.setattr(pretrain_mlm, "pretrain", train)
    pretrain(tmp_path, "--position", "t5", "--max_steps", 2, "--resume")
    second = json.loads((tmp_path / "results.json").read_text())
    assert list(second) == ["rotary", "t5"]
    assert second["rotary"] == first["rotary"]


def test_a_loss_without_a_perplexity_is_written_as_one(pretrain, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain_mlm.Trainer, "evaluate", lambda self, **_: {"eval_loss": 800.0})
    pretrain(tmp_path, "--eval_strategy", "no", "--max_steps", 1)
    result = json.loads((tmp_path / "results.json").read_text())["rotary"]
    assert (result["validation_loss"], result["perplexity"]) == (800, None)


def test_a_training_that_diverged_ends_in_an_error(pretrain, tmp_path):
    with pytest.raises(SystemExit, match=r"The loss after training is (nan|inf), so the model in .* is of no use"):
        pretrain(tmp_path, "--learning_rate", "1e30", "--bf16", "False")


def test_masks_depend_on_the_batch_alone(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    collator = pretrain_mlm.BatchSeededMasking(tokenizer)
    one, two = ([{"input_ids": list(range(start, start + 64))}] for start in (5, 6))
    first, other, again = collator(one), collator(two), collator(one)
    assert torch.equal(first["labels"], again["labels"])
    assert torch.equal(first["input_ids"], again["input_ids"])
    assert not torch.equal(first["labels"] == -100, other["labels"] == -100)


@pytest.mark.parametrize(
    ("source", "position", "scheme"),
    [
        ("checkpoint", [], "rotary"),
        ("bert", ["t5"], "t5"),
        pytest.param("bert", [], "learned", marks=pytest.mark.full),
    ],
)
def test_training_goes_on_from_a_checkpoint(source, position, scheme, request, pretrain, tmp_path):
    """A learning rate of 0 shows where it begins: with the checkpoint's weights, and new ones where it has none."""
    start = request.getfixturevalue(source)
    options = ["--model", start, "--config_overrides", "{}", "--learning_rate", 0, "--max_steps", 1]
    options += ["--per_device_eval_batch_size", 64, *(["--position", *position] if position else [])]
    pretrain(tmp_path, *options, "--eval_strategy", "no")
    result = json.loads((tmp_path / "results.json").read_text())[scheme]
    assert result["loss_before"] == pytest.approx(result["validation_loss"], abs=1e-6)
    model = load_complete(AutoModelForMaskedLM, tmp_path / scheme)
    expected = convert(start).base_model.state_dict()
    found = model.base_model.state_dict()
    kept = [key for key in found if key in expected and "position." not in key]
    assert len(kept) > 30
    assert any("position." in key for key in found) == (scheme != "rotary")
    for key in found if not position else kept:
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=0)


def test_a_checkpoint_in_half_precision_goes_on_in_float32_with_what_is_changed(checkpoint, tmp_path):
    AutoModelForMaskedLM.from_pretrained(checkpoint).bfloat16().save_pretrained(tmp_path)
    config = continued_config(str(tmp_path), None, 600, {"hidden_dropout_prob": 0.3})
    model = load_checkpoint(str(tmp_path), config)
    assert {x.dtype for x in model.state_dict().values()} == {torch.float32}
    assert model.config.max_position_embeddings == 600
    assert model.model.dropout.p == 0.3


STAGES = [
    *("--pack_documents", "--lengths", 16, 32, "--rope_thetas", 100, 200, "--per_device_eval_batch_size", 64),
    *("--lr_scheduler_type", "constant", "--eval_strategy", "no"),
]


def test_stages_move_length_and_theta(pretrain, tmp_path, monkeypatch):
    seen: list[tuple] = []
    forward = HfRopeForMaskedLM.forward

    @wraps(forward)  # Trainer looks at its arguments
    def record(self, **inputs):
        if self.training:
            seen.append((self.config.rope_parameters["rope_theta"], int(inputs["position_ids"].max()) + 1))
        return forward(self, **inputs)

    monkeypatch.setattr(HfRopeForMaskedLM, "forward", record)
    pretrain(tmp_path, *STAGES)
    assert seen == [(100, 16)] * 2 + [(200, 32)] * 2
    assert AutoConfig.from_pretrained(tmp_path / "rotary").rope_parameters["rope_theta"] == 200


@pytest.mark.full
def test_resumed_stages_end_where_uninterrupted_ones_do(pretrain, tmp_path):
    pretrain(tmp_path / "whole", *STAGES)
    pretrain(tmp_path / "parts", *STAGES, "--stage_steps", 2, 1, "--max_steps", 3, "--save_steps", 1)
    pretrain(tmp_path / "parts", *STAGES, "--resume")
    whole, parts = (AutoModelForMaskedLM.from_pretrained(tmp_path / x / "rotary") for x in ("whole", "parts"))
    assert whole.config.rope_parameters == parts.config.rope_parameters
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], weight)


@pytest.mark.parametrize("documents", [True, False])
def test_rows_hold_pieces_of_the_length_that_is_asked_for(folder, documents):
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    texts = load_files([str(folder / "books.txt")], ["text"])
    rows = make_rows(texts, tokenizer, 16, 40, documents)
    tokens = 0
    for row in rows:
        assert len(row["input_ids"]) == len(row["position_ids"]) <= 40
        assert max(row["position_ids"]) < 16
        starts = [token for token, at in zip(row["input_ids"], row["position_ids"], strict=True) if at == 0]
        assert not documents or {*starts} == {tokenizer.cls_token_id}
        tokens += len(row["input_ids"])
    whole = sum(map(len, tokenizer(texts["text"][:], add_special_tokens=not documents)["input_ids"]))
    pieces = sum(row["position_ids"].count(0) for row in rows)
    assert tokens == (whole + 2 * pieces if documents else whole // 16 * 16)


def test_steps_of_stages_are_equal_or_given():
    assert plan_stages([8, 16, 32], [], [], 10) == [Stage(3, 8), Stage(3, 16), Stage(4, 32)]
    assert plan_stages([8], [1.0, 2.0], [5, 1], -1) == [Stage(5, 8, 1.0), Stage(1, 8, 2.0)]
    assert plan_stages([8], [], [], -1) == [Stage(-1, 8)]


def test_every_epoch_of_a_stage_has_all_rows_in_another_order():
    rows = [Dataset.from_dict({"input_ids": [[stage * 10 + i] for i in range(4)]}) for stage in range(2)]
    stages = [Stage(3, 8), Stage(1, 8)]
    order = [ids for (ids,) in rows_in_order(rows, stages, rows_a_step=3, seed=0)["input_ids"]]
    first, second, third = order[:4], order[4:8], order[8:9]
    assert sorted(first) == sorted(second) == [0, 1, 2, 3]
    assert first != second
    assert third[0] < 4
    assert {*order[9:]} < {10, 11, 12, 13}
    assert len(order) == 12


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
        (["--rope_thetas", "inf"], "--rope_thetas has inf; it must be above 0 and finite"),
        (["--config_overrides", '{{"hidden_size": "x"}}'], "Validation error for field 'hidden_size': .* got str"),
        (["--model", "{bert}", "--config_overrides", '{{"hidden_size": "x"}}'], "field 'hidden_size': .* got str"),
        (["--validation_file", "{folder}/unknown.txt"], "The validation text holds no word that the tokenizer knows"),
        (["--validation_file", "{folder}/words.jsonl"], "The column 'text' must hold strings, not lists"),
        (["--block_size", "0"], "--block_size is 0; it must be 1 or more"),
        (["--position", "rotary", "rotary"], "--position is rotary rotary: name each scheme once"),
        (["--mlm_probability", "0"], "--mlm_probability is 0.0; it must be above 0, and 1 at most"),
        (["--mlm_probability", "nan"], "--mlm_probability is nan; it must be above 0, and 1 at most"),
        (["--config_overrides", '{{"is_decoder": true}}'], "is_decoder=True sees no token after its own"),
        (["--gradient_accumulation_steps", "0"], "--gradient_accumulation_steps is 0; it must be 1 or more"),
        (["--learning_rate", "inf"], "--learning_rate is inf; it must be a finite number, 0 or more"),
        (["--resume_from_checkpoint", "x"], "--resume_from_checkpoint x is not read here: --resume goes on from"),
        (["--tokenizer", "{folder}/untokenized"], "untokenized': it has no file of one; save it there"),
        (["--tokenizer", "{folder}/unpadded"], "unpadded' has no pad token, which batches need: set its pad_token"),
        (
            ["--position", "rotary", "learned", "--config_overrides", '{{"max_position_embeddings": 16}}'],
            "max_position_embeddings=16 ends the positions of 'learned', and pieces of text have up to 32 tokens",
        ),
        (["--output_dir", "{folder}"], "already holds something: --resume goes on with it"),
        (["--lengths", "16", "32", "--rope_thetas", "1", "2", "3"], "--lengths has 2 values, and there are 3 stages"),
        (["--lengths", "0"], "--lengths has 0; it must be above 0"),
        (["--rope_thetas", "-1"], "--rope_thetas has -1.0; it must be above 0"),
        (["--lengths", "16", "32", "--max_steps", "1"], "--max_steps is 1, too few for 2 stages"),
        (["--lengths", "16", "32", "--stage_steps", "2", "3"], "add up to 5, and --max_steps is 4: leave one out"),
        (["--lengths", "64"], "--lengths has 64, and a row has --block_size 32 tokens"),
        (["--lengths", "2", "--pack_documents"], "Pieces of 2 tokens have no room beside the tokenizer's 2 special"),
        (["--position", "t5", "--rope_thetas", "100"], "--rope_thetas has no effect on 't5', which does not rotate"),
        (["--config_overrides", '{{"vocab_size": 100}}'], "The tokenizer has 300 tokens and the model 100"),
        (["--model", "{folder}/nowhere"], "nowhere has no config.json that can be read"),
        (["--model", "{bert}", "--position", "rotray"], "'rotray' is unknown; the nearest is 'rotary'"),
        (["--model", "{bert}", "--block_size", "600"], "bert end at 512, and pieces of text have up to 600 tokens"),
        (
            ["--model", "{bert}", "--config_overrides", '{{"hidden_size": 64}}'],
            "bert do not have the sizes of --config_overrides",
        ),
    ],
)
def test_pretraining_refuses(folder, bert, variants, pretrain, tmp_path, arguments, sentence):
    with pytest.raises(SystemExit, match=sentence):
        pretrain(tmp_path / "mlm", *(argument.format(folder=folder, bert=bert) for argument in arguments))


def test_pretraining_refuses_to_begin_without_a_tokenizer(folder, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="There is no tokenizer: give --tokenizer, or --model"):
        run_script(pretrain_mlm, monkeypatch, "--train_file", folder / "books.txt", "--output_dir", tmp_path / "mlm")

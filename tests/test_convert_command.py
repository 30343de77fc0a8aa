"""`hf-rope convert` and `hf-rope to-native` write a whole folder or nothing."""

import copy
import json
import shutil

import pytest
import torch
import transformers
from safetensors import SafetensorError

import hf_rope
from helpers import tiny_model
from hf_rope.convert import convert, to_native
from hf_rope.convert.check import sample
from native_models import MASKED, assert_equal, command, cut, native, refused, save_with_tokenizer, write_old_bert


@pytest.fixture
def source(tmp_path):
    return save_with_tokenizer(native("bert", MASKED), tmp_path / "source")


def test_command_writes_model_code_and_tokenizer(source, tmp_path):
    target = tmp_path / "new" / "target"
    result = command(source, target, "--check")
    assert result.exit_code == 0, result.output
    assert "greatest difference from the source's own class" in result.output
    assert "HfRopeForMaskedLM" in result.output
    assert {"config.json", "model.safetensors", "modeling_hf_rope.py", "tokenizer_config.json"} <= {
        path.name for path in target.iterdir()
    }
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(source)
    assert_equal(theirs, transformers.AutoModelForMaskedLM.from_pretrained(target))
    tokenizers = [transformers.AutoTokenizer.from_pretrained(folder) for folder in (source, target)]
    assert tokenizers[0]("a rotary one")["input_ids"] == tokenizers[1]("a rotary one")["input_ids"] == [2, 5, 9, 7, 3]
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_command_to_another_scheme_says_that_it_needs_training(source, tmp_path):
    (tmp_path / "target").mkdir()
    options = {"form": "one_sided"}
    given = ("--position", "alibi", "--position-options", json.dumps(options))
    result = command(source, tmp_path / "target", *given)
    assert result.exit_code == 0, result.output
    assert "needs training" in result.output
    config = json.loads((tmp_path / "target" / "config.json").read_text())
    assert (config["position_embedding_type"], config["position_options"]) == ("alibi", options)


def test_command_says_where_there_is_no_tokenizer(tmp_path):
    native("electra").save_pretrained(tmp_path / "source")
    result = command(tmp_path / "source", tmp_path / "target", "--check")
    assert result.exit_code == 0, result.output
    assert "has no tokenizer" in result.output


@pytest.mark.parametrize("length", [1, 8])
@pytest.mark.parametrize(
    ("name", "tokenizer", "unused"),
    [("bert", True, 0), ("roformer", True, 0), ("bert", False, 0), ("roberta", False, 2)],
)
def test_check_takes_no_more_tokens_than_there_are_positions(name, tokenizer, unused, length, tmp_path):
    model = native(name, max_position_embeddings=length + unused)
    if tokenizer:
        save_with_tokenizer(model, tmp_path / "source")
    else:
        model.save_pretrained(tmp_path / "source")
    result = command(tmp_path / "source", tmp_path / "target", "--check")
    assert result.exit_code == 0, result.output
    assert "greatest difference from the source's own class" in result.output


def test_check_masks_padding_also_where_the_tokenizer_is_not_set_to(source):
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, model_input_names=["input_ids"])
    assert list(tokenizer("a")) == ["input_ids"]
    batch = sample(convert(source).config, tokenizer)
    assert batch["attention_mask"].sum(-1).tolist() == [batch["input_ids"].shape[1], 6]


def test_command_refuses_in_one_sentence_and_writes_nothing(source, tmp_path):
    refused(command(tmp_path / "nowhere", tmp_path / "target"), tmp_path, "has no config.json that can be read")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    refused(command(tmp_path / "nowhere", tmp_path / "taken"), tmp_path, "exists and is not an empty folder")
    refused(command(source, tmp_path / "target", "--position", "alibi", "--check"), tmp_path, "'alibi' is new")
    cut(source)
    refused(command(source, tmp_path / "target"), tmp_path, "not a complete safetensors file")
    shutil.rmtree(source)
    save_with_tokenizer(native("bert", vocab_size=10), source)
    found = "input_ids holds 13, outside 0 to 9 (vocab_size=10): the tokenizer and the model do not fit"
    refused(command(source, tmp_path / "target", "--check"), tmp_path, found)
    assert (tmp_path / "taken" / "file").exists()


def test_check_refuses_what_differs_and_what_no_class_computes(source, tmp_path, monkeypatch):
    wrong = convert(source, return_report=True)
    with torch.no_grad():
        wrong[0].model.layers[1].attention.output.bias[0] += 1e-3
    with monkeypatch.context() as patch:
        patch.setattr("hf_rope.cli.convert_checkpoint", lambda *_, **__: copy.deepcopy(wrong))
        refused(command(source, tmp_path / "target", "--check"), tmp_path, "is allowed, so nothing is written")
    write_old_bert(source, tiny_model("relative_key", hf_rope.HfRopeForMaskedLM), "relative_key")
    refused(command(source, tmp_path / "target", "--check"), tmp_path, "no class of transformers 5 computes")
    assert command(source, tmp_path / "target").exit_code == 0


@pytest.mark.parametrize("error", [OSError, SafetensorError])
def test_a_write_that_fails_leaves_nothing(error, source, tmp_path, monkeypatch):
    """As on a full disk."""

    def fail(*_, **__):
        raise error("No space left on device")

    monkeypatch.setattr(hf_rope.HfRopeForMaskedLM, "save_pretrained", fail)
    refused(command(source, tmp_path / "target"), tmp_path, "No space left on device")


@pytest.fixture(params=["bert", "roformer-summary"])
def ours(request, source, tmp_path):
    """An hf_rope folder with a tokenizer, and the native model that it was converted from."""
    theirs = native(request.param, MASKED)
    convert(theirs).save_pretrained(tmp_path / "ours")
    transformers.AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path / "ours")
    shutil.rmtree(source)
    (tmp_path / "ours").rename(source)
    return source, theirs


def test_to_native_writes_a_native_folder_with_the_tokenizer(ours, tmp_path):
    folder, theirs = ours
    target = tmp_path / "new" / "target"
    result = command(folder, target, "--check", name="to-native")
    assert result.exit_code == 0, result.output
    assert "greatest difference from the source's own class" in result.output
    assert f"HfRopeForMaskedLM,{folder}->{type(theirs).__name__}" in "".join(result.output.split())
    assert not [*target.glob("*.py")]
    again = transformers.AutoModelForMaskedLM.from_pretrained(target)
    assert type(again) is type(theirs)
    assert_equal(theirs, again)
    tokenizer = transformers.AutoTokenizer.from_pretrained(target)
    assert tokenizer("a rotary one")["input_ids"] == [2, 5, 9, 7, 3]
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_to_native_refuses_in_one_sentence_and_writes_nothing(ours, tmp_path, monkeypatch):
    folder, theirs = ours

    def back(*arguments):
        return command(*arguments, name="to-native")

    wrong = to_native(folder, return_report=True)
    with torch.no_grad():
        next(wrong[0].parameters())[5:] += 1e-2
    with monkeypatch.context() as patch:
        patch.setattr("hf_rope.cli.checkpoint_to_native", lambda *_, **__: copy.deepcopy(wrong))
        refused(back(folder, tmp_path / "target", "--check"), tmp_path, "is allowed, so nothing is written")
    refused(back(tmp_path / "nowhere", tmp_path / "target"), tmp_path, "has no config.json that can be read")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    refused(back(folder, tmp_path / "taken"), tmp_path, "exists and is not an empty folder")
    cut(folder)
    refused(back(folder, tmp_path / "target"), tmp_path, "not a complete safetensors file")
    shutil.rmtree(folder)
    tiny_model("alibi", hf_rope.HfRopeForMaskedLM).save_pretrained(folder)
    refused(back(folder, tmp_path / "target"), tmp_path, "only learned and rotary have a native class to go back to")
    shutil.rmtree(folder)
    theirs.save_pretrained(folder)
    refused(back(folder, tmp_path / "target"), tmp_path, "which has no conversion; known: hf_rope")

"""length.py: the loss by the length of the input."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

import length
import pretrain_mlm
from hf_rope import SCHEMES
from scripts import TINY, run_script


@pytest.fixture
def by_length(folder, monkeypatch):
    """Runs length.py on tiny sizes; further arguments come last and so win."""

    def run(output: Path, *arguments) -> dict:
        files = ["--train_file", folder / "books.txt", "--validation_file", folder / "reviews.jsonl"]
        sizes = ["--trained_length", 16, "--lengths", 16, 32, 64, "--eval_tokens", 256, "--vocab_size", 300]
        steps = ["--max_steps", 2, "--per_device_train_batch_size", 4, "--config_overrides", json.dumps(TINY)]
        run_script(length, monkeypatch, *files, *sizes, *steps, "--output_dir", output, *arguments)
        return json.loads((output / "results.json").read_text())

    return run


@pytest.mark.parametrize(
    "schemes", [["learned", "rotary"], pytest.param(list(SCHEMES), marks=pytest.mark.full)], ids=["two", "all"]
)
def test_loss_by_length_is_measured_for_every_scheme_and_scaling(schemes, by_length, tmp_path, capsys):
    results = by_length(tmp_path / "out", "--position", *schemes)
    rows = length.summarise(results)
    assert list(results["runs"]) == schemes
    for scheme in schemes:
        names = [name for name in rows if name.split(", ")[0] == scheme]
        assert names == [scheme, *(f"{scheme}, {x}" for x in length.SCALINGS if SCHEMES[scheme].rotates)]
        model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out/seed-0" / scheme)
        for name in names:
            assert list(rows[name]) == ["16", "32", "64"]
            for size, losses in rows[name].items():
                assert (losses is None) == (int(size) > (model.model.position.max_length or 64))
                assert losses is None or (len(losses) == 1 and math.isfinite(losses[0]))
    markdown = (tmp_path / "out/results.md").read_text()
    assert re.search(r"^\| learned \| [\d.]+ \| - \| - \|$", markdown, re.MULTILINE)
    assert (tmp_path / "out/loss_by_length.png").stat().st_size > 1000
    assert "dynamic" in capsys.readouterr().out


@pytest.mark.full
def test_loss_by_length_goes_on_and_trains_nothing_twice(by_length, tmp_path, monkeypatch):
    trained = []

    def record(config, *arguments, **options):
        trained.append(config.position_embedding_type)
        return pretrain_mlm.pretrain(config, *arguments, **options)

    monkeypatch.setattr(length, "pretrain", record)
    first = by_length(tmp_path / "out", "--position", "t5", "--lengths", 16, 64)
    second = by_length(tmp_path / "out", "--position", "t5", "--lengths", 16, 32, 64, "--seeds", 0, 1)
    assert trained == ["t5", "t5"]
    assert re.search(r"^\| t5 (\| [\d.]+ \([\d.]+ to [\d.]+\) ){3}\|$", (tmp_path / "out/results.md").read_text(), re.M)
    before, after = (x["runs"]["t5"]["0"]["losses"]["t5"] for x in (first, second))
    assert after.keys() == {"16", "32", "64"}
    assert {key: after[key] for key in before} == before


def test_loss_by_length_is_the_mean_over_masked_tokens(by_length, folder, tmp_path):
    results = by_length(tmp_path / "out", "--position", "t5")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out/tokenizer")
    files = length.DataArguments(validation_file=[str(folder / "reviews.jsonl")])
    blocks = length.group_texts(length.load_split(files, "validation", ["text"]), tokenizer, 16)
    ids, labels = length.masked_stream(blocks, tokenizer, 256, 64)
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out/seed-0/t5").eval()
    for size, loss in results["runs"]["t5"]["0"]["losses"]["t5"].items():
        with torch.no_grad():
            logits = model(ids.view(-1, int(size))).logits.flatten(0, 1)
        assert loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), abs=1e-5)
        assert length.measure(model, ids, labels, int(size), at_once=1) == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--position", "rotray"], "--position 'rotray' is unknown; all are: none, "),
        (["--lengths", "16", "48", "64"], "--lengths 48 does not divide the longest, 64"),
        (["--lengths", "0"], "they must be 1 or more"),
        (["--eval_tokens", "63"], "--eval_tokens is 63; the longest sequence alone has 64"),
        (["--lengths", "65536", "--eval_tokens", "65536"], "shorter than one sequence of 65536 tokens"),
        (["--learning_rate", "nan"], "--learning_rate is nan; it must be a finite number"),
        (["--resume_from_checkpoint", "x"], "is not read here: the same command goes on where it was stopped"),
        (["--position", "learned", "--lengths", "64"], "No scheme of --position has positions for --lengths 64"),
        (
            ["--position", "none", "learned", "--config_overrides", '{{"max_position_embeddings": 8}}'],
            "The table of 'learned' ends at 8, before --trained_length 16: lower that",
        ),
        (["--position", "none", "t5", "--config_overrides", '{{"hidden_size": 7}}'], "hidden_size=7"),
        (["--output_dir", "{folder}"], "holds something that is no study of lengths"),
    ],
)
def test_loss_by_length_refuses(folder, by_length, tmp_path, arguments, sentence):
    with pytest.raises(SystemExit, match=sentence):
        by_length(tmp_path / "out", *(argument.format(folder=folder) for argument in arguments))
    assert not (tmp_path / "out").exists()


def test_loss_by_length_refuses_a_folder_of_other_settings(by_length, tmp_path):
    by_length(tmp_path / "out", "--position", "none")
    with pytest.raises(SystemExit, match="was begun with --max_steps 2, not 3"):
        by_length(tmp_path / "out", "--position", "none", "--max_steps", 3)
    with pytest.raises(SystemExit, match=r"was begun with --weight_decay 0.0, not 0.5"):
        by_length(tmp_path / "out", "--position", "none", "--weight_decay", 0.5)
    by_length(tmp_path / "out", "--position", "none", "--logging_steps", 1)
    with pytest.raises(SystemExit, match="was begun with --lengths, the longest 64, not 32"):
        by_length(tmp_path / "out", "--position", "none", "--lengths", 16, 32)


def test_loss_by_length_goes_on_in_a_folder_of_which_only_the_settings_were_written(by_length, tmp_path):
    by_length(tmp_path / "out", "--position", "none")
    for path in (tmp_path / "out").iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "settings.json":
            path.unlink()
    (tmp_path / "out/.settings.json.1").write_text("{")  # a file that was being written
    assert by_length(tmp_path / "out", "--position", "none")["runs"]["none"]["0"]["losses"]


@pytest.mark.parametrize("name", ["settings.json", "seed-0/none/length.json"])
def test_a_record_that_was_cut_off_is_named(by_length, tmp_path, name):
    by_length(tmp_path / "out", "--position", "none")
    path = tmp_path / "out" / name
    path.write_text(path.read_text()[:9])
    with pytest.raises(SystemExit, match=f"{path.name} is no JSON .*: restore it, or remove what it belongs to"):
        by_length(tmp_path / "out", "--position", "none")


def test_nothing_is_drawn_before_a_table_reaches_a_length(by_length, tmp_path):
    results = by_length(tmp_path / "out", "--position", "learned", "none", "--lengths", 64)
    assert results["runs"]["learned"]["0"]["losses"] == {"learned": {"64": None}}
    assert (tmp_path / "out/loss_by_length.png").stat().st_size > 1000

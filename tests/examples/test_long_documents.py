"""long_documents.py: the accuracy by the length that a model reads."""

import json
import re
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import finetune_classification
import long_documents
from hf_rope import HfRopeConfig, HfRopeForMaskedLM
from scripts import TINY, run_script


@pytest.fixture
def by_documents(folder, monkeypatch):
    """Runs long_documents.py on two tiny models, learned with a table of 16; further arguments come last and win."""

    def run(output: Path, *arguments) -> dict:
        models = [output.parent / "models/learned", output.parent / "models/rotary"]
        for model in models:
            if not model.is_dir():
                config = HfRopeConfig(
                    vocab_size=300, max_position_embeddings=16, position_embedding_type=model.name, **TINY
                )
                HfRopeForMaskedLM(config).save_pretrained(model)
                AutoTokenizer.from_pretrained(folder / "tokenizer").save_pretrained(model)
        files = ["--train_file", folder / "reviews.jsonl", "--validation_file", folder / "reviews.jsonl"]
        sizes = ["--lengths", 16, 64, "--max_steps", 2, "--per_device_train_batch_size", 4]
        run_script(long_documents, monkeypatch, "--models", *models, *files, *sizes, "--output_dir", output, *arguments)
        return json.loads((output / "results.json").read_text())

    return run


def test_long_documents_are_classified_at_every_length_that_a_model_reads(by_documents, tmp_path, folder, capsys):
    results = by_documents(tmp_path / "out")
    assert results["accuracy"]["learned"]["64"] is None
    reviews = [json.loads(line) for line in (folder / "reviews.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    whole = [len(tokenizer(row["text"])["input_ids"]) <= 16 for row in reviews]
    assert results["whole"]["16"] == pytest.approx(sum(whole) / 100)
    for name, size in (("learned", 16), ("rotary", 16), ("rotary", 64)):
        place = tmp_path / f"out/{name}/{size}-seed-0"
        model = AutoModelForSequenceClassification.from_pretrained(place).eval()
        assert model.config.classifier_pooling == "mean"
        right = 0
        for row in reviews:
            inputs = tokenizer(row["text"], truncation=True, max_length=size, return_tensors="pt")
            right += int(model(**inputs).logits.argmax()) == row["label"]
        assert results["accuracy"][name][str(size)] == [pytest.approx(right / 100)]
    assert (tmp_path / "out/accuracy_by_length.png").stat().st_size > 1000
    assert "documents that are whole" in capsys.readouterr().out


@pytest.mark.full
def test_long_documents_go_on_and_train_nothing_twice(by_documents, tmp_path, monkeypatch):
    first = by_documents(tmp_path / "out")
    trained = []

    def record(model, *arguments):
        trained.append((Path(model).name, arguments[4]))
        return finetune_classification.finetune(model, *arguments)

    monkeypatch.setattr(long_documents, "finetune", record)
    second = by_documents(tmp_path / "out", "--lengths", 16, 32, 64, "--seeds", 0, 1)
    assert trained == [("rotary", 32), ("learned", 16), ("rotary", 16), ("rotary", 32), ("rotary", 64)]
    assert second["accuracy"]["rotary"]["64"][:1] == first["accuracy"]["rotary"]["64"]
    row = re.compile(r"^\| rotary (\| [\d.]+ \([\d.]+ to [\d.]+\) ){3}\|$", re.MULTILINE)
    assert row.search((tmp_path / "out/results.md").read_text())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--lengths", "2"], "they must be 3 or more"),
        (["--models", "a/rotary", "b/rotary"], "their last names must differ"),
        (["--models", "nowhere"], "'nowhere'"),
        (["--output_dir", "{folder}"], "holds something that is no study"),
    ],
)
def test_long_documents_refuse(folder, by_documents, tmp_path, arguments, sentence):
    with pytest.raises(SystemExit, match=sentence):
        by_documents(tmp_path / "out", *(argument.format(folder=folder) for argument in arguments))
    assert not (tmp_path / "out").exists()


def test_long_documents_keep_apart_what_was_measured_otherwise(by_documents, tmp_path):
    short = ["--lengths", 16, "--max_steps", 1]
    by_documents(tmp_path / "out", *short)
    other = Path(shutil.copytree(tmp_path / "models", tmp_path / "others"))
    for arguments, sentence in [
        (["--models", other / "rotary"], "was begun with --models rotary .*/models/rotary, not .*/others/rotary"),
        (["--label_column", "class"], "was begun with --label_column label, not class"),
        (["--weight_decay", 0.5], "was begun with --weight_decay 0.0, not 0.5"),
    ]:
        with pytest.raises(SystemExit, match=sentence):
            by_documents(tmp_path / "out", *short, *arguments)
    more = Path(shutil.copytree(tmp_path / "models/rotary", tmp_path / "others/third"))
    assert list(by_documents(tmp_path / "out", *short, "--models", more)["accuracy"]) == ["third"]
    with pytest.raises(SystemExit, match="was begun with --models rotary"):
        by_documents(tmp_path / "out", *short, "--models", other / "rotary")


def test_long_documents_take_a_native_model(by_documents, bert, tmp_path):
    results = by_documents(tmp_path / "out", "--lengths", 16, "--max_steps", 1, "--models", bert)
    assert len(results["accuracy"]["bert"]["16"]) == 1

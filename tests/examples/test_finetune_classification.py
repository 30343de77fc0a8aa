"""finetune_classification.py."""

import json

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification, EvalPrediction

import finetune_classification
from scripts import run_script


def test_finetuning_on_pairs_with_named_classes(folder, pretrain, tmp_path, monkeypatch):
    pretrain(tmp_path / "mlm")
    files = ["--train_file", folder / "pairs.csv", "--validation_file", folder / "pairs.csv"]
    columns = ["--text_column", "first", "--pair_column", "second", "--test_file", folder / "pairs.csv"]
    output = ["--model", tmp_path / "mlm/rotary", "--output_dir", tmp_path / "pairs", "--num_train_epochs", 1]
    pooling = ["--config_overrides", '{"classifier_pooling": "mean"}']
    run_script(finetune_classification, monkeypatch, *files, *columns, *output, *pooling)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "pairs")
    assert model.config.id2label == {0: "other", 1: "same"}
    assert model.config.classifier_pooling == "mean"
    results = json.loads((tmp_path / "pairs/results.json").read_text())
    assert results.keys() == {"validation", "test"}
    assert results["test"]["majority"] == 0.75
    assert results["test"].keys() >= {"accuracy", "f1", "loss"}


@pytest.mark.parametrize(
    ("classes", "labels", "predicted", "f1"),
    [(2, [0, 1, 1, 1], [0, 1, 1, 0], 0.8), (3, [0, 1, 2, 2], [0, 1, 2, 0], (2 / 3 + 1 + 2 / 3) / 3)],
)
def test_metrics(classes, labels, predicted, f1):
    metrics = finetune_classification.accuracy_and_f1(EvalPrediction(np.eye(classes)[predicted], np.array(labels)))
    assert metrics == pytest.approx({"accuracy": 0.75, "f1": f1})


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "{folder}/nowhere"], "No tokenizer can be loaded from"),
        (["--model", "{folder}/tokenizer"], "tokenizer' cannot be loaded"),
        (["--validation_file", "{folder}/new_class.csv"], "label 7 occurs in the evaluation data only"),
        (["--train_file", "{folder}/one_class.csv"], "All training labels are 1; two classes or more"),
        (["--train_file", "{folder}/floats.jsonl"], "Labels must be whole numbers or words; one is 0.0"),
        (["--train_file", "{folder}/lists.jsonl"], r"Labels must be whole numbers or words; one is \['a'\]"),
        (["--label_column", "text"], "The columns to read are text, text: name each once"),
        (["--config_overrides", '{{"num_labels": 5}}'], "--config_overrides has num_labels, which the labels decide"),
        (["--label_column", "score"], "no column 'score'"),
        (["--evaluate_metric", "no/such"], "failed.* leave --evaluate_metric out"),
    ],
)
def test_finetuning_refuses(folder, tmp_path, monkeypatch, arguments, sentence):
    files = ["--train_file", folder / "reviews.jsonl", "--validation_file", folder / "reviews.jsonl"]
    output = ["--model", folder / "tokenizer", "--output_dir", tmp_path / "classifier"]
    arguments = [argument.format(folder=folder) for argument in arguments]
    with pytest.raises(SystemExit, match=sentence):
        run_script(finetune_classification, monkeypatch, *files, *output, *arguments)

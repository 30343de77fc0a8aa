"""finetune_regression.py."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import finetune_regression
from scripts import SCORES, load_complete


def test_regression_stands_beside_the_error_of_the_mean(finetune, tmp_path):
    columns = ["--text_column", "first", "--pair_column", "second", "--label_column", "score"]
    columns += ["--bf16", "False"]  # as the answers below
    validation = [{**row, "score": row["score"] + 1} for row in SCORES]
    results = finetune(finetune_regression, SCORES, *columns, validation=validation)
    scores = np.array([row["score"] for row in SCORES])
    assert results["test"]["mean_mse"] == pytest.approx(scores.var())
    assert results["validation"]["mean_mse"] == pytest.approx(scores.var() + 1)
    model = load_complete(AutoModelForSequenceClassification, tmp_path / "out").eval()
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        answers = [float(model(**tokenizer(x["first"], x["second"], return_tensors="pt")).logits) for x in SCORES]
    assert results["test"]["mse"] == pytest.approx(float(((answers - scores) ** 2).mean()), rel=1e-4)
    assert -1 <= results["test"]["spearman"] <= 1


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"text": "a", "label": "good"}, "holds 'good'; regression needs a finite number"),
        ({"text": "a", "label": 1e39}, r"holds 1e\+39; regression needs a finite number in every row, 3e\+38 at most"),
        ({"text": 1, "label": 1}, "The column 'text' holds .*int64.*; it must hold text"),
    ],
)
def test_regression_refuses(finetune, tmp_path, row, sentence):
    with pytest.raises(SystemExit, match=sentence):
        finetune(finetune_regression, [row])
    assert not (tmp_path / "out").exists()

"""real_weights.py and sentence_embeddings.py: converted weights beside their source."""

import json
import math

import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import real_weights
import sentence_embeddings
from hf_rope.convert import convert
from scripts import run_script


@pytest.mark.full
def test_converted_weights_are_fine_tuned_beside_their_source(bert, tmp_path, monkeypatch):
    sizes = ["--seeds", 0, "--pretrain_steps", 2, "--epochs", 0.1, "--reviews", 64]
    run_script(real_weights, monkeypatch, "--model", bert, "--output_dir", tmp_path / "out", *sizes)
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert list(results["finetuned"]) == ["native BERT", "learned", "rotary"]
    assert all(len(row["accuracy"]) == 1 and 0 <= row["mean"] <= 1 for row in results["finetuned"].values())
    assert math.isfinite(results["continued"]["validation_loss"])
    assert (tmp_path / "out/accuracy.png").stat().st_size > 1000
    moved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out/rotary-0")
    assert moved.config.position_embedding_type == "rotary"


def test_sentence_embeddings_of_a_converted_model_are_its_sources(bert, tmp_path, monkeypatch):
    converted = tmp_path / "converted"
    convert(bert).save_pretrained(converted)
    AutoTokenizer.from_pretrained(bert).save_pretrained(converted)
    rows = [
        "sentence1,sentence2,label",
        "he stood at the end,she sat at the end,3",
        "a good film,a dull film,1",
        "a,b,0",
    ]
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    arguments = ["--source", bert, "--converted", converted, "--pairs", tmp_path / "pairs.csv", "--rounds", 1]
    run_script(sentence_embeddings, monkeypatch, *arguments, "--output", tmp_path / "found/results.json")
    results = json.loads((tmp_path / "found/results.json").read_text())
    assert results["difference"] < 1e-5
    assert results["source"]["spearman"] == results["converted"]["spearman"]

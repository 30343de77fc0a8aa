"""demo.py, from text to a loaded checkpoint."""

import json

import pytest
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import demo


@pytest.mark.full
def test_demo(tmp_path, monkeypatch):
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "block_size": 32}
    short = {"batch_size": 4, "pretrain_steps": 2, "finetune_epochs": 1, "reviews": 40}
    output = tmp_path / "demo"
    (output / "pretrained").mkdir(parents=True)
    study = yaml.safe_load(demo.STUDY.read_text())
    study |= {"steps": 2, "evaluate_every": 1, "schemes": ["learned", "rotary"]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    short["study"] = str(tmp_path / "study.yaml")
    results = demo.run(demo.Arguments(output_dir=str(output), **sizes, **short))
    demo.report(results, demo.Console(file=(tmp_path / "table.txt").open("w")))
    assert results["without_package"]["difference"] <= 1e-5
    assert results["without_package"]["code"].startswith("transformers_modules.")
    assert results == json.loads((output / "results.json").read_text())
    assert {path.name for path in output.iterdir()} == demo.WRITTEN
    assert (output / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
    table = (tmp_path / "table.txt").read_text()
    words = ("learned", "refuses", "Dyck", "perplexity", "tokens/s", "majority", *demo.MASKED)
    assert all(word in table for word in words)
    assert (output / "order/scores.png").is_file()

    model = AutoModelForSequenceClassification.from_pretrained(output / "sentiment")
    model.classifier.bias.data[0] += 1
    with pytest.raises(SystemExit, match=r"the logits differ by 1\.0e\+00"):
        demo.check_without_package(model, AutoTokenizer.from_pretrained(output / "sentiment"), output)


def test_demo_leaves_a_folder_with_other_files_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit, match="already holds something: name another --output_dir"):
        demo.run(demo.Arguments(output_dir=str(tmp_path)))
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.slow
def test_full_demo_learns(tmp_path):
    results = demo.run(demo.Arguments(output_dir=str(tmp_path / "demo")))
    assert results["pretraining"]["validation_loss"] < results["unigram_loss"]
    accuracy = {scheme: found["validation"] for scheme, found in results["order"]["token at distance 3"].items()}
    assert accuracy.pop("none") < 0.3
    assert min(accuracy.values()) > 0.9
    assert results["sentiment"]["test"]["accuracy"] > 0.7

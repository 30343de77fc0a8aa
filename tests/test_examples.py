"""The scripts in examples/, end to end on tiny sizes."""

import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    EvalPrediction,
)

import demo
import finetune_classification
import length
import pretrain_mlm
import real_weights
import sentence_embeddings
import train_tokenizer
from hf_rope import SCHEMES
from hf_rope.convert import convert

EXAMPLES = Path(__file__).parent.parent / "examples"
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
STEPS = ["--max_steps", "4", "--per_device_train_batch_size", "4", "--eval_steps", "2", "--save_steps", "2"]


def run_script(script, monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
    script.main()


@pytest.fixture(scope="module")
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


@pytest.mark.parametrize("cased", [False, True])
def test_tokenizer_loads_and_keeps_or_drops_capitals(folder, tmp_path, monkeypatch, cased):
    arguments = ["--train_file", folder / "books.txt", folder / "reviews.jsonl", "--vocab_size", 400]
    run_script(train_tokenizer, monkeypatch, *arguments, "--output_dir", tmp_path / "t", *["--cased"] * cased)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "t")
    assert len(tokenizer) == 400
    assert (tokenizer.tokenize("A Man") == tokenizer.tokenize("a man")) is not cased
    assert tokenizer.decode(tokenizer("a man", "the man")["input_ids"]) == "[CLS] a man [SEP] the man [SEP]"


def test_every_scheme_sees_the_same_batches_and_is_saved(pretrain, tmp_path, monkeypatch):
    seen: dict[str, list] = {}
    collate, train = pretrain_mlm.BatchSeededMasking.torch_call, pretrain_mlm.pretrain

    def record(self, examples):
        batch = collate(self, examples)
        seen[current].append((batch["input_ids"], batch["labels"]))
        return batch

    def start(config, *arguments):
        nonlocal current
        current = config.position_embedding_type
        seen[current] = []
        return train(config, *arguments)

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


def test_demo(tmp_path, monkeypatch):
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "block_size": 32}
    short = {"batch_size": 4, "pretrain_steps": 2, "finetune_epochs": 1, "reviews": 40}
    output = tmp_path / "demo"
    (output / "pretrained").mkdir(parents=True)
    results = demo.run(demo.Arguments(output_dir=str(output), **sizes, **short))
    demo.report(results, demo.Console(file=(tmp_path / "table.txt").open("w")))
    assert results["without_package"]["difference"] <= 1e-5
    assert results["without_package"]["code"].startswith("transformers_modules.")
    assert results == json.loads((output / "results.json").read_text())
    assert {path.name for path in output.iterdir()} == demo.WRITTEN
    assert (output / "loss_curves.png").read_bytes().startswith(b"\x89PNG")
    table = (tmp_path / "table.txt").read_text()
    assert all(word in table for word in (*demo.SCHEMES, "perplexity", "tokens/s", "majority", *demo.MASKED))

    model = AutoModelForSequenceClassification.from_pretrained(output / "sentiment")
    model.classifier.bias.data[0] += 1
    with pytest.raises(SystemExit, match=r"the logits differ by 1\.0e\+00"):
        demo.check_without_package(model, AutoTokenizer.from_pretrained(output / "sentiment"), output)


def test_demo_leaves_a_folder_with_other_files_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit, match="already holds something: name another --output_dir"):
        demo.run(demo.Arguments(output_dir=str(tmp_path)))
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_unigram_loss_of_even_words_is_the_log_of_their_number(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    words = [token for token in range(len(tokenizer)) if token not in tokenizer.all_special_ids]
    even = Dataset.from_dict({"input_ids": [words] * 50})
    assert demo.unigram_loss(even, even, tokenizer) == pytest.approx(math.log(len(words)), abs=1e-3)


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


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "{folder}/nowhere"], "No tokenizer can be loaded from"),
        (["--model", "{folder}/tokenizer"], "tokenizer' cannot be loaded"),
        (["--validation_file", "{folder}/new_class.csv"], "label 7 occurs in the evaluation data only"),
        (["--train_file", "{folder}/one_class.csv"], "All training labels are 1; two classes or more"),
        (["--label_column", "score"], "no column 'score'"),
        (["--output_dir", "{folder}"], "already holds something: name another --output_dir"),
        (["--evaluate_metric", "no/such"], "failed.* leave --evaluate_metric out"),
    ],
)
def test_finetuning_refuses(folder, tmp_path, monkeypatch, arguments, sentence):
    files = ["--train_file", folder / "reviews.jsonl", "--validation_file", folder / "reviews.jsonl"]
    output = ["--model", folder / "tokenizer", "--output_dir", tmp_path / "classifier"]
    arguments = [argument.format(folder=folder) for argument in arguments]
    with pytest.raises(SystemExit, match=sentence):
        run_script(finetune_classification, monkeypatch, *files, *output, *arguments)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "There is no train text: give --train_file, or --dataset_name"),
        (["--train_file", "{folder}/books.txt", "--vocab_size", "5"], "--vocab_size is 5; it must be 10 or more"),
    ],
)
def test_tokenizer_training_refuses(folder, tmp_path, monkeypatch, arguments, sentence):
    arguments = [argument.format(folder=folder) for argument in arguments]
    with pytest.raises(SystemExit, match=sentence):
        run_script(train_tokenizer, monkeypatch, *arguments, "--output_dir", tmp_path / "t")


@pytest.mark.slow
def test_full_demo_learns(tmp_path):
    results = demo.run(demo.Arguments(output_dir=str(tmp_path / "demo")))
    for numbers in results["pretraining"].values():
        assert numbers["validation_loss"] < results["unigram_loss"]
    assert results["sentiment"]["test"]["accuracy"] > 0.7


@pytest.fixture(scope="module")
def bert(folder) -> Path:
    """A native checkpoint with its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer), **TINY)).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    return folder / "bert"


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


def test_loss_by_length_is_measured_for_every_scheme_and_scaling(by_length, tmp_path, capsys):
    results = by_length(tmp_path / "out")
    rows = length.summarise(results)
    assert list(results["runs"]) == list(SCHEMES)
    for scheme, scheme_class in SCHEMES.items():
        names = [name for name in rows if name.split(", ")[0] == scheme]
        assert names == [scheme, *(f"{scheme}, {x}" for x in length.SCALINGS if scheme_class.rotates)]
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
    results = by_length(tmp_path / "out", "--position", "rotary")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out/tokenizer")
    files = length.DataArguments(validation_file=[str(folder / "reviews.jsonl")])
    blocks = length.group_texts(length.load_split(files, "validation", ["text"]), tokenizer, 16)
    ids, labels = length.masked_stream(blocks, tokenizer, 256, 64)
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out/seed-0/rotary").eval()
    for size, loss in results["runs"]["rotary"]["0"]["losses"]["rotary"].items():
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
    with pytest.raises(SystemExit, match="was begun with --lengths, the longest 64, not 32"):
        by_length(tmp_path / "out", "--position", "none", "--lengths", 16, 32)

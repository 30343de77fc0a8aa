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
from sentence_transformers import SentenceTransformer
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    EvalPrediction,
)

import chinese_tokenizer
import demo
import finetune_choice
import finetune_classification
import finetune_qa
import finetune_regression
import finetune_tokens
import length
import long_documents
import make_choices
import pretrain_mlm
import real_weights
import sentence_embeddings
import train_sentence_embeddings
import train_tokenizer
from hf_rope import SCHEMES, HfRopeConfig, HfRopeForMaskedLM
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


@pytest.fixture(scope="module")
def checkpoint(folder) -> Path:
    """A tiny pre-trained rotary encoder with its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    HfRopeForMaskedLM(HfRopeConfig(vocab_size=len(tokenizer), **TINY)).save_pretrained(folder / "checkpoint")
    tokenizer.save_pretrained(folder / "checkpoint")
    return folder / "checkpoint"


@pytest.fixture
def finetune(checkpoint, tmp_path, monkeypatch):
    """Runs a fine-tuning script on rows; further arguments come last and so win. Returns its results.json."""

    def run(script, rows: list[dict], *arguments, validation: list[dict] | None = None) -> dict:
        files = []
        for split, part in {"train": rows, "validation": validation or rows, "test": rows}.items():
            path = tmp_path / f"{split}.jsonl"
            path.write_text("\n".join(map(json.dumps, part)))
            files += [f"--{split}_file", path]
        steps = ["--model", checkpoint, "--output_dir", tmp_path / "out", "--max_steps", 2]
        run_script(script, monkeypatch, *files, *steps, *arguments)
        return json.loads((tmp_path / "out/results.json").read_text())

    return run


def load_complete(auto: type, folder: Path):
    """The model of a saved folder, of which no weight is missing or left over."""
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model


SCORES = [
    {"first": f"a {word}", "second": "a man", "score": i / 2} for i, word in enumerate(["man", "road", "end", "town"])
]
TAGGED = [
    {"tokens": ["Mr.", "Holmes", "of", "London", "spoke"], "tags": ["O", "B-PER", "O", "B-LOC", "O"]},
    {"tokens": ["New", "York", "is", "large"], "tags": ["B-LOC", "I-LOC", "O", "O"]},
]
ASKED = [
    {
        "context": "the road was long . " * repeats + "a man stood at the end .",
        "question": "who stood at the end ?",
        "answers": {"text": ["a man", "man"], "answer_start": [20 * repeats, 20 * repeats + 2]},
    }
    for repeats in (0, 8, 16)
]
CHOSEN = [
    {"text": "he stood", "choices": ["at the end", "in town", "a man"], "label": 0},
    {"text": "she sat", "choices": ["the road", "down", "of"], "label": 1},
]


def test_regression_stands_beside_the_error_of_the_mean(finetune, tmp_path):
    columns = ["--text_column", "first", "--pair_column", "second", "--label_column", "score"]
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


def test_tags_are_learnt_at_first_pieces_and_entities_are_counted(finetune, tmp_path, folder):
    results = finetune(finetune_tokens, TAGGED)
    assert results["test"]["most_frequent_accuracy"] == pytest.approx(5 / 9)
    assert results["test"]["most_frequent_f1"] == results["test"]["words_left_out"] == 0
    assert 0 <= results["test"]["f1"] <= 1
    model = load_complete(AutoModelForTokenClassification, tmp_path / "out")
    assert model.config.id2label == {0: "B-LOC", 1: "B-PER", 2: "I-LOC", 3: "O"}
    tokenizer, names = AutoTokenizer.from_pretrained(folder / "tokenizer"), list(model.config.label2id)
    rows = Dataset.from_list(TAGGED)
    for limit in (6, 128):
        encoded = finetune_tokens.encode(rows, ("tokens", "tags"), names, tokenizer, limit)
        for row, original in zip(encoded, TAGGED, strict=True):
            kept = [label for label in row["labels"] if label != -100]
            assert [names[label] for label in kept] == original["tags"][: len(kept)]
            first = [i for i, label in enumerate(row["labels"]) if label != -100]
            words = tokenizer.convert_ids_to_tokens([row["input_ids"][i] for i in first])
            assert all(original["tokens"][i].lower().startswith(word) for i, word in enumerate(words))
            assert (len(kept) == len(original["tags"])) == (limit == 128)


def test_entities_count_only_whole_and_where_tags_mark_them():
    truth = [["B-PER", "I-PER", "O", "B-LOC"]]
    found = finetune_tokens.score(truth, [["B-PER", "O", "O", "B-LOC"]])
    assert found == {"accuracy": 0.75, "precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert finetune_tokens.score([["NOUN", "VERB"]], [["NOUN", "NOUN"]]) == {"accuracy": 0.5}


def test_answers_are_found_in_the_windows_of_long_contexts(finetune, tmp_path, folder):
    sizes = ["--max_length", 48, "--stride", 12]
    results = finetune(finetune_qa, ASKED, *sizes)
    assert results["test"]["whole_context_exact_match"] == 0
    assert 0 < results["test"]["whole_context_f1"] < 1
    assert 0 <= results["test"]["exact_match"] <= results["test"]["f1"] <= 1
    load_complete(AutoModelForQuestionAnswering, tmp_path / "out")

    columns = ["context", "question", "answers"]
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    windows = finetune_qa.encode(Dataset.from_list(ASKED), columns, tokenizer, 48, 12)
    assert len(windows) > len(ASKED) + 2
    assert all(len(ids) <= 48 for ids in windows["input_ids"])
    marks = [
        [
            np.eye(48)[place][: len(ids)] * (place > 0)
            for place, ids in zip(windows[key], windows["input_ids"], strict=True)
        ]
        for key in ("start_positions", "end_positions")
    ]
    contexts, truths = ([row[key] for row in ASKED] for key in ("context", "answers"))
    spans = finetune_qa.best_spans(windows, contexts, marks, 8)
    assert spans == ["a man"] * 3
    assert finetune_qa.score(spans, truths) == {"exact_match": 1, "f1": 1}


def test_a_span_never_ends_before_it_starts_nor_exceeds_the_limit():
    windows = Dataset.from_dict({"row": [0], "offsets": [[None, [0, 1], [2, 3], [4, 5], [6, 7]]]})
    start, end = np.array([[9.0, 0, 0, 4, 0]]), np.array([[9.0, 4, 0, 0, 3]])
    assert finetune_qa.best_spans(windows, ["a b c d"], (start, end), 8) == ["c d"]
    assert finetune_qa.best_spans(windows, ["a b c d"], (start, end), 1) in (["a"], ["c"])


def test_squad_scores_ignore_case_articles_and_punctuation():
    truths = [{"text": ["the end", "The Road!"]}]
    assert finetune_qa.score(["A road"], truths) == {"exact_match": 1, "f1": 1}
    assert finetune_qa.score(["long road"], truths) == {"exact_match": 0, "f1": pytest.approx(2 / 3)}
    assert finetune_qa.score(["town"], truths) == {"exact_match": 0, "f1": 0}


@pytest.mark.parametrize("in_columns", [False, True])
def test_choices_come_as_a_list_or_in_columns(finetune, tmp_path, in_columns):
    rows, arguments = CHOSEN, []
    if in_columns:
        rows = [{**row, **dict(zip("xyz", row["choices"], strict=True))} for row in CHOSEN]
        rows = [{key: value for key, value in row.items() if key != "choices"} for row in rows]
        arguments = ["--choice_columns", *"xyz"]
    results = finetune(finetune_choice, rows, *arguments)
    assert results["test"]["guessing"] == pytest.approx(1 / 3)
    assert results["test"]["accuracy"] in (0, 0.5, 1)
    model = load_complete(AutoModelForMultipleChoice, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    batch = tokenizer(["he stood"] * 3, CHOSEN[0]["choices"], padding=True, return_tensors="pt")
    assert model(**{key: value[None] for key, value in batch.items()}).logits.shape == (1, 3)


def test_made_choices_hold_the_next_passage_at_the_label(folder, tmp_path, monkeypatch):
    text = " ".join(str(number) for number in range(1000))
    (tmp_path / "numbers.txt").write_text(f"{text}\n{text}\n")
    files = ["--train_file", tmp_path / "numbers.txt", "--validation_file", tmp_path / "numbers.txt"]
    sizes = ["--words", 10, "--rows", 80, "--choices", 4]
    for name in ("one", "two"):
        run_script(make_choices, monkeypatch, *files, *sizes, "--output_dir", tmp_path / name)
    assert (tmp_path / "one/train.jsonl").read_text() == (tmp_path / "two/train.jsonl").read_text()
    for split, number in {"train": 80, "validation": 10}.items():
        rows = [json.loads(line) for line in (tmp_path / f"one/{split}.jsonl").read_text().splitlines()]
        assert len(rows) == number
        for row in rows:
            assert len(row["choices"]) == 4
            assert int(row["choices"][row["label"]].split()[0]) == int(row["text"].split()[-1]) + 1
    assert {row["label"] for row in rows} > {0}


def test_sentence_embeddings_are_trained_saved_and_loaded(checkpoint, finetune, tmp_path):
    rows = [{"sentence1": row["first"], "sentence2": row["second"], "label": row["score"]} for row in SCORES]
    results = finetune(train_sentence_embeddings, rows)
    assert set(results) == {"validation", "test"}
    before, texts = train_sentence_embeddings.build(str(checkpoint), 128), [row["first"] for row in SCORES]
    after = SentenceTransformer(str(tmp_path / "out"), trust_remote_code=True)
    assert after.encode(texts).shape == (4, TINY["hidden_size"])
    assert not np.allclose(after.encode(texts), before.encode(texts))
    pairs = train_sentence_embeddings.scale({"train": Dataset.from_list(rows)}, "label")["train"]
    assert pairs["score"][:] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    found = train_sentence_embeddings.correlations(after, pairs)
    assert results["test"]["spearman"] == pytest.approx(found["spearman"])
    found = train_sentence_embeddings.correlations(before, pairs)
    assert results["test"]["spearman_before"] == pytest.approx(found["spearman"])


@pytest.fixture
def news(tmp_path) -> Path:
    """Chinese text and a vocabulary of its characters."""
    text = ["我们的企业发展经济", "今天我们工作", "经济发展"]
    (tmp_path / "news.txt").write_text("\n".join(text), encoding="utf-8")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set("".join(text)))]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("given", [True, False], ids=["given", "learnt"])
@pytest.mark.parametrize("words", [0, 3])
def test_chinese_is_read_by_characters_or_by_words(news, monkeypatch, given, words):
    vocabulary = ["--vocab_file", news / "vocab.txt"] if given else ["--vocab_size", 60]
    arguments = ["--train_file", news / "news.txt", *vocabulary, "--words", words, "--output_dir", news / "t"]
    run_script(chinese_tokenizer, monkeypatch, *arguments)
    tokenizer = AutoTokenizer.from_pretrained(news / "t")
    whole = ["我们", "发展", "经济"] if words else list("我们发展经济")
    assert tokenizer.tokenize("我们发展经济") == whole
    assert tokenizer.tokenize("今天") == ["今", "天"]
    assert type(tokenizer).__name__ == ("RoFormerTokenizer" if words else "BertTokenizer")
    if given:
        assert tokenizer.convert_tokens_to_ids("[MASK]") == 4

    steps = ["--max_steps", 1, "--per_device_train_batch_size", 1, "--block_size", 8, "--position", "rotary"]
    files = ["--train_file", news / "news.txt", "--validation_file", news / "news.txt", "--tokenizer", news / "t"]
    sizes = ["--config_overrides", json.dumps(TINY), "--output_dir", news / "mlm"]
    run_script(pretrain_mlm, monkeypatch, *files, *steps, *sizes)
    assert AutoTokenizer.from_pretrained(news / "mlm/rotary").tokenize("我们发展经济") == whole
    assert load_complete(AutoModelForMaskedLM, news / "mlm/rotary").config.vocab_size == len(tokenizer)
    results = json.loads((news / "mlm/results.json").read_text())
    assert 0 < results["rotary"]["unigram_loss"] < math.log(len(tokenizer))


def test_words_without_rjieba_are_refused_when_made_and_when_loaded(news, pretrain, monkeypatch):
    arguments = ["--train_file", news / "news.txt", "--vocab_file", news / "vocab.txt", "--words", 3]
    run_script(chinese_tokenizer, monkeypatch, *arguments, "--output_dir", news / "t")
    monkeypatch.setitem(sys.modules, "rjieba", None)
    with pytest.raises(SystemExit, match="needs rjieba, which is not installed: pip install rjieba, or leave --words"):
        run_script(chinese_tokenizer, monkeypatch, *arguments, "--output_dir", news / "again")
    with pytest.raises(SystemExit, match=r"No tokenizer can be loaded from .* need to install rjieba"):
        pretrain(news / "mlm", "--tokenizer", news / "t")


REFUSED = [
    (finetune_regression, [{"text": "a", "label": "good"}], [], "holds 'good'; regression needs a finite number"),
    (finetune_regression, [{"text": 1, "label": 1}], [], "The column 'text' holds .*int64.*; it must hold text"),
    (finetune_tokens, [{"tokens": "a b", "tags": ["O"]}], [], "The column 'tokens' must hold lists of strings"),
    (finetune_tokens, [{"tokens": ["a"], "tags": ["O", "X"]}], [], "A row has 1 words and 2 tags: a"),
    (finetune_tokens, [{"tokens": [], "tags": []}], [], "it must hold text|holds no text"),
    (finetune_qa, [{**ASKED[0], "answers": {"text": [], "answer_start": []}}, ASKED[0]], [], "has no answer"),
    (
        finetune_qa,
        [{**ASKED[0], "answers": {"text": ["man"], "answer_start": [0]}}],
        [],
        "is not at 0, its answer_start",
    ),
    (finetune_qa, ASKED, ["--max_length", 64, "--stride", 60], "--max_length 64 has no room for a question of"),
    (finetune_qa, ASKED, ["--train_sampling_strategy", "group_by_length"], "reorders the windows"),
    (
        finetune_choice,
        [CHOSEN[0], {**CHOSEN[1], "choices": ["a", "b"]}],
        [],
        r"\[2, 3\] choices; they must have the same",
    ),
    (finetune_choice, [{**CHOSEN[0], "label": 3}], [], "holds 3; with 3 choices it must be 0 to 2"),
    (train_sentence_embeddings, [{"sentence1": "a", "sentence2": "b", "label": 1}], [], "All training rows have .* 1"),
]


@pytest.mark.parametrize(("script", "rows", "arguments", "sentence"), REFUSED)
def test_other_finetunings_refuse(finetune, tmp_path, script, rows, arguments, sentence):
    with pytest.raises(SystemExit, match=sentence):
        finetune(script, rows, *arguments)
    assert not (tmp_path / "out").exists()


def test_an_unknown_tag_and_a_folder_that_is_not_empty_are_refused(finetune, tmp_path):
    with pytest.raises(SystemExit, match="The tag 'B-ORG' occurs in the evaluation data only"):
        finetune(finetune_tokens, TAGGED, validation=[{"tokens": ["a"], "tags": ["B-ORG"]}])
    for script in (finetune_regression, finetune_tokens, finetune_qa, finetune_choice, train_sentence_embeddings):
        with pytest.raises(SystemExit, match="already holds something: name another --output_dir"):
            finetune(script, TAGGED, "--output_dir", tmp_path)


@pytest.mark.parametrize(
    ("script", "arguments", "sentence"),
    [
        (make_choices, ["--words", "9999"], "The texts hold 0 passages of 9999 words; 5 are needed"),
        (make_choices, ["--choices", "1"], "--choices 1, --words 40 and --rows 8000 must be 2, 1 and 8 or more"),
        (chinese_tokenizer, ["--vocab_file", "nowhere.txt"], r"nowhere\.txt is not there"),
        (chinese_tokenizer, ["--vocab_file", "{folder}/books.txt"], r"books\.txt has no line \[PAD\]"),
        (chinese_tokenizer, ["--words", "-1"], "--words is -1; it must be 0 or more"),
    ],
)
def test_makers_refuse(folder, tmp_path, monkeypatch, script, arguments, sentence):
    files = ["--train_file", folder / "books.txt"]
    files += ["--validation_file", folder / "books.txt"] if script is make_choices else []
    arguments = [argument.format(folder=folder) for argument in arguments]
    with pytest.raises(SystemExit, match=sentence):
        run_script(script, monkeypatch, *files, "--output_dir", tmp_path / "made", *arguments)
    assert not (tmp_path / "made").exists()

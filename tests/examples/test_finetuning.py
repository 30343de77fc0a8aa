"""What all fine-tuning scripts do alike."""

import json

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForMultipleChoice,
    AutoModelForSequenceClassification,
    BertConfig,
    BertTokenizer,
    DebertaV2Config,
    RobertaConfig,
    RoFormerConfig,
    TrainingArguments,
)

import finetune_choice
import finetune_classification
import finetune_qa
import finetune_regression
import finetune_tokens
import train_sentence_embeddings
from finetuning import build_trainer, longest_input
from helpers import tiny_model
from hf_rope import HfRopeConfig
from scripts import TINY

SCRIPTS = [
    finetune_choice,
    finetune_classification,
    finetune_qa,
    finetune_regression,
    finetune_tokens,
    train_sentence_embeddings,
]
TEXTS = ["the old man went down the long road to the end", "a man stood at the end of the road in the town"]
ASKED = {"context": TEXTS[1] * 2, "question": "who?", "answers": {"text": ["man"], "answer_start": [2]}}
ROWS = {
    finetune_choice: [{"text": text, "choices": TEXTS, "label": i} for i, text in enumerate(TEXTS)],
    finetune_classification: [{"text": text, "pair": "a", "label": i} for i, text in enumerate(TEXTS)],
    finetune_qa: [ASKED, ASKED],
    finetune_regression: [{"text": text, "pair": "a", "label": i / 2} for i, text in enumerate(TEXTS)],
    finetune_tokens: [{"tokens": x.split(), "tags": [word[0] for word in x.split()]} for x in TEXTS],
    train_sentence_embeddings: [{"sentence1": x, "sentence2": "a", "label": i / 2} for i, x in enumerate(TEXTS)],
}
"""Two rows for each script."""
COLUMNS: dict = {script: [] for script in SCRIPTS} | {finetune_qa: ["--stride", 1]}
SIZES = {"vocab_size": 30, **TINY}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_a_folder_that_is_not_empty_is_refused(script, finetune, tmp_path):
    with pytest.raises(SystemExit, match="already holds something: name another --output_dir"):
        finetune(script, [{"text": "a"}], "--output_dir", tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--resume_from_checkpoint", "x"], "--resume_from_checkpoint x is not read here: give its folder to --model"),
        (["--learning_rate", "nan"], "--learning_rate is nan; it must be a finite number, 0 or more"),
        (["--max_length", "2"], r"--max_length is 2; with the special tokens it must be \d or more|has no room for"),
        (["--model", "{untokenized}"], "No tokenizer can be loaded from .*: it has no file of one; save it there"),
        (["--model", "{unpadded}"], "has no pad token, which batches need: set its pad_token"),
        (["--model", "{cut}"], "cut' cannot be loaded: "),
        (["--model", "{table}"], "table' has positions for 16 tokens, and inputs have .*: lower --max_length"),
        (["--per_device_eval_batch_size", "0"], "--per_device_eval_batch_size is 0; it must be 1 or more"),
    ],
    ids=["resume", "rate", "length", "no tokenizer", "no pad token", "weights", "table", "batch"],
)
def test_what_cannot_be_trained_is_refused_by_all(script, finetune, variants, tmp_path, arguments, sentence):
    with pytest.raises(SystemExit, match=sentence):
        finetune(script, ROWS[script], *COLUMNS[script], *(argument.format(**variants) for argument in arguments))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("script", "column", "value"),
    [
        (finetune_classification, "pair", None),
        (finetune_classification, "label", None),
        (finetune_regression, "label", None),
        (finetune_tokens, "tags", None),
        (finetune_tokens, "tokens", ["a", None]),
        (finetune_choice, "choices", ["a", None]),
        (finetune_qa, "question", None),
        (finetune_qa, "answers", None),
        (finetune_qa, "answers", {"text": [None], "answer_start": [0]}),
        (train_sentence_embeddings, "sentence2", None),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_row_that_lacks_a_value_is_refused(script, column, value, finetune, tmp_path):
    rows = [*ROWS[script], {**ROWS[script][0], column: value}]
    columns = ["--pair_column", "pair"] if column == "pair" else COLUMNS[script]
    with pytest.raises(SystemExit, match=f"The validation row of .* lacks a value in its column '{column}': fill it"):
        finetune(script, ROWS[script], *columns, validation=rows)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("script", "column"),
    [(finetune_classification, "pair"), (finetune_regression, "pair"), (train_sentence_embeddings, "sentence2")],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_second_text_must_be_text(script, column, finetune, tmp_path):
    columns = ["--pair_column", column]
    with pytest.raises(SystemExit, match=f"The column '{column}' holds .*int64.*; it must hold text"):
        finetune(script, [{**row, column: 1} for row in ROWS[script]], *columns)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("script", [finetune_regression, train_sentence_embeddings], ids=lambda x: x.__name__)
def test_one_row_cannot_be_correlated(script, finetune, tmp_path):
    with pytest.raises(SystemExit, match="The validation data has 1 row, and a correlation needs two"):
        finetune(script, ROWS[script], validation=ROWS[script][:1])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_a_training_that_diverged_ends_in_an_error(script, finetune):
    with pytest.raises(SystemExit, match=r"The loss after training is (nan|inf), so the model in .* is of no use"):
        finetune(script, ROWS[script], *COLUMNS[script], "--learning_rate", "1e30", "--eval_strategy", "no")


def test_each_split_is_evaluated_on_its_own_rows_whatever_the_loaders(finetune, tmp_path):
    """transformers keeps a loader whose workers persist, and gives it for another data set too."""
    rows = ROWS[finetune_classification]
    other = [{**rows[0], "label": label} for label in (0, 1, 1)]
    (tmp_path / "others.jsonl").write_text("\n".join(map(json.dumps, other)))
    workers = ["--dataloader_num_workers", 1, "--dataloader_persistent_workers", "True"]
    finetune(finetune_classification, rows, "--test_file", tmp_path / "others.jsonl", *workers)
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert round(3 * found["test"]["accuracy"], 3) in (1, 2)


def test_a_metric_that_fails_leaves_the_trained_model(finetune, tmp_path, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(finetune_choice, "accuracy_score", fail)
    with pytest.raises(ZeroDivisionError):
        finetune(finetune_choice, ROWS[finetune_choice], "--eval_strategy", "no")
    AutoModelForMultipleChoice.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize(
    ("model", "overrides"),
    [
        ("checkpoint", {"hidden_dropout_prob": "x"}),
        ("checkpoint", {"bogus": 1}),
        ("checkpoint", {"hidden_size": 64}),
        ("bert", {"classifier_pooling": "mean"}),
        ("bert", {"hidden_dropout_prob": "x"}),
    ],
)
def test_a_setting_that_does_not_fit_is_one_sentence(model, overrides, finetune, variants):
    options = ["--model", variants[model], "--config_overrides", json.dumps(overrides)]
    with pytest.raises(SystemExit, match=f"{model}' cannot be loaded: .*[^:]$") as error:
        finetune(finetune_classification, ROWS[finetune_classification], *options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (HfRopeConfig(position_embedding_type="learned", max_position_embeddings=20, **SIZES), 20),
        (HfRopeConfig(**SIZES), None),
        (BertConfig(max_position_embeddings=20, **SIZES), 20),
        (RobertaConfig(max_position_embeddings=20, **SIZES), 18),
        (RoFormerConfig(max_position_embeddings=20, **SIZES), 20),
        (DebertaV2Config(max_position_embeddings=20, position_biased_input=False, **SIZES), None),
    ],
    ids=lambda value: getattr(value, "model_type", str(value)),
)
def test_a_table_of_positions_limits_the_input(config, limit):
    model = AutoModelForSequenceClassification.from_config(config).eval()
    assert longest_input(model) == limit
    assert model(torch.full((1, limit or 40), 5)).logits.isfinite().all()
    if limit is not None:
        with pytest.raises((IndexError, ValueError, RuntimeError)):
            model(torch.full((1, limit + 1), 5))


def test_a_new_head_depends_on_the_seed_of_the_training_alone(tmp_path):
    tiny_model("rotary").save_pretrained(tmp_path / "model")
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = BertTokenizer.from_pretrained(tmp_path)
    rows = Dataset.from_dict({"input_ids": [[2, 5, 3]], "labels": [0]})

    def head(seed: int) -> torch.Tensor:
        training = TrainingArguments(str(tmp_path / "out"), seed=seed, report_to="none")
        setup = (AutoModelForSequenceClassification, str(tmp_path / "model"), tokenizer)
        splits = {"train": rows, "validation": rows}
        return build_trainer(*setup, splits, training, lambda _: {}).model.classifier.weight.detach().clone()

    torch.manual_seed(1)
    first = head(0)
    torch.manual_seed(2)
    assert torch.equal(first, head(0))
    assert not torch.equal(first, head(3))

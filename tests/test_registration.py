"""`import hf_rope` registers with the Auto classes, and does nothing else."""

import json
import subprocess
import sys

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, BertTokenizer, Trainer, TrainingArguments
from transformers.models.auto import modeling_auto

import hf_rope
from heads import HEADS
from helpers import SIZES, over, tiny_config
from hf_rope.convert import convert

TABLES = {
    "AutoModel": "MODEL_MAPPING_NAMES",
    "AutoModelForMaskedLM": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "AutoModelForPreTraining": "MODEL_FOR_PRETRAINING_MAPPING_NAMES",
    "AutoModelForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "AutoModelForTokenClassification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "AutoModelForQuestionAnswering": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
    "AutoModelForMultipleChoice": "MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES",
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "play", "##ing", "."]


def test_every_auto_class_has_a_head_in_the_tests():
    assert {head.auto for head in HEADS.values()} == {*TABLES}


@over(scheme=hf_rope.SCHEMES, name=HEADS)
def test_auto_class_builds_saves_and_loads(scheme, name, tmp_path):
    head = HEADS[name]
    auto = getattr(transformers, head.auto)
    model = auto.from_config(tiny_config(scheme, **head.config)).eval()
    assert type(model) is head.model_class
    model.save_pretrained(tmp_path)
    loaded = auto.from_pretrained(tmp_path)
    assert type(loaded) is head.model_class
    inputs = {**head.batch(), **head.labels}
    torch.testing.assert_close(loaded(**inputs).to_tuple(), model(**inputs).to_tuple(), rtol=0, atol=0)


def test_auto_config():
    assert type(AutoConfig.for_model("hf_rope")) is hf_rope.HfRopeConfig


@pytest.mark.parametrize(("auto", "table"), TABLES.items(), ids=TABLES)
def test_the_tables_of_names_hold_the_class(auto, table):
    (model,) = {head.model for head in HEADS.values() if head.auto == auto}
    assert getattr(modeling_auto, table)["hf_rope"] == model


@pytest.mark.parametrize("how", ["vocabulary alone", "saved by the tokenizer"])
def test_auto_tokenizer_reads_word_pieces(how, tmp_path):
    tiny_config("rotary").save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    if how == "saved by the tokenizer":
        tokenizer.save_pretrained(tmp_path)
        (tmp_path / "vocab.txt").unlink()
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(tokenizer, BertTokenizer)
    assert tokenizer.tokenize("The cat playing.") == ["the", "cat", "play", "##ing", "."]
    encoded = tokenizer("the cat", "playing zebra")
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"]) == [
        *("[CLS]", "the", "cat", "[SEP]", "play", "##ing", "[UNK]", "[SEP]"),
    ]
    assert encoded["token_type_ids"] == [0] * 4 + [1] * 4
    assert (tokenizer.pad_token, tokenizer.mask_token) == ("[PAD]", "[MASK]")


@over(name=["masked-lm", "causal-lm", "pre-training", "single-label", "tokens", "multiple-choice"], count=[None, 5])
def test_label_smoothing_is_the_loss_computed_by_hand(name, count, tmp_path):
    head = HEADS[name]
    model, labels = head.build().train(), head.labels["labels"]
    arguments = TrainingArguments(output_dir=str(tmp_path), label_smoothing_factor=0.1, report_to="none", use_cpu=True)
    inputs = {**head.batch(), "labels": labels}
    loss = Trainer(model=model, args=arguments).compute_loss(model, inputs, num_items_in_batch=count)
    logs = model(**head.batch()).logits.log_softmax(-1)
    if name == "causal-lm":  # each token is to predict the next one's label
        logs, labels = logs[:, :-1], labels[:, 1:]
    logs = logs.flatten(0, -2)
    kept = [(x, y) for x, y in zip(logs, labels.flatten(), strict=True) if y != -100]
    by_hand = sum(-0.9 * x[y] - 0.1 * x.mean() for x, y in kept) / (count or len(kept))
    torch.testing.assert_close(loss, by_hand, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["masked-lm", "causal-lm", "single-label", "tokens", "multiple-choice"])
def test_label_smoothing_is_that_of_a_native_class_with_the_same_weights(name, tmp_path):
    head = HEADS[name]
    config = transformers.BertConfig(**{**SIZES, **head.config})
    torch.manual_seed(0)
    native = getattr(transformers, head.auto).from_config(config).train()
    ours = convert(native).train()
    assert type(ours) is head.model_class
    batch = head.batch()
    labels = head.labels["labels"]
    if labels.shape == batch["input_ids"].shape:  # at padding the two have other hidden states
        labels = labels.masked_fill(batch["attention_mask"] == 0, -100)
    arguments = TrainingArguments(output_dir=str(tmp_path), label_smoothing_factor=0.1, report_to="none", use_cpu=True)
    losses = [
        Trainer(model=model, args=arguments).compute_loss(model, {**batch, "labels": labels})
        for model in (native, ours)
    ]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)


SIDE_EFFECTS = """
import json, logging, os, random, sys, threading, warnings
import numpy, torch, transformers
from transformers import AutoModel, BertTokenizer, PreTrainedModel
from transformers.models.auto import configuration_auto, modeling_auto, tokenization_auto

def look():
    return {
        "torch threads": torch.get_num_threads(),
        "torch dtype": str(torch.get_default_dtype()),
        "torch seed": torch.random.get_rng_state().sum().item(),
        "numpy seed": repr(numpy.random.get_state()),
        "python seed": hash(random.getstate()),
        "environment": dict(os.environ),
        "path": list(sys.path),
        "warnings": repr(warnings.filters),
        "log handlers": repr([logging.getLogger(name).handlers for name in (None, "transformers", "hf_rope")]),
        "log levels": [logging.getLogger(name).level for name in (None, "transformers", "hf_rope")],
        "attention": sorted(transformers.AttentionInterface().keys()),
        "working folder": sorted(os.listdir()),
        "threads": threading.active_count(),
        "names": {
            name: sorted(key for key in vars(module)[name] if key != "hf_rope")
            for module in (configuration_auto, modeling_auto, tokenization_auto)
            for name in vars(module) if name.endswith("MAPPING_NAMES")
        },
        "forward": [repr(cls.forward) for cls in (torch.nn.Linear, torch.nn.Module)],
    }

before = look()
import hf_rope
after = look()
print(json.dumps([key for key in before if before[key] != after[key]]))
"""


def test_importing_changes_nothing_else(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", SIDE_EFFECTS], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
    assert done.stderr == ""

"""What all fine-tuning scripts do alike."""

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, BertTokenizer, TrainingArguments

import finetune_choice
import finetune_classification
import finetune_qa
import finetune_regression
import finetune_tokens
import train_sentence_embeddings
from finetuning import build_trainer
from helpers import tiny_model

SCRIPTS = [
    finetune_choice,
    finetune_classification,
    finetune_qa,
    finetune_regression,
    finetune_tokens,
    train_sentence_embeddings,
]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_a_folder_that_is_not_empty_is_refused(script, finetune, tmp_path):
    with pytest.raises(SystemExit, match="already holds something: name another --output_dir"):
        finetune(script, [{"text": "a"}], "--output_dir", tmp_path)


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

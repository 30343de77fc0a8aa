"""What the fine-tuning examples share."""

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, BertTokenizer, TrainingArguments

from finetuning import build_trainer
from helpers import tiny_model

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]


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

"""`python -m benchmarks.quantised FOLDER TEST.jsonl`: a fine-tuned classifier's accuracy and speed in each precision.

For example the demo's: `python -m benchmarks.quantised runs/demo/sentiment examples/data/reviews/test.jsonl`.
"""

import argparse
import copy
import statistics
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

import hf_rope  # noqa: F401  (registers hf_rope with the Auto classes)
from hf_rope.text_files import read_rows

from .precision import PRECISIONS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="the model and its tokenizer")
    parser.add_argument("test", type=Path, help="JSON lines with text and label")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(arguments.folder)
    model = AutoModelForSequenceClassification.from_pretrained(arguments.folder).eval()
    rows = [*read_rows(arguments.test)]
    labels = torch.tensor([model.config.label2id[str(row["label"])] for row in rows])
    texts = [row["text"] for row in rows]
    batches = [
        tokenizer(texts[i : i + arguments.batch], padding=True, truncation=True, return_tensors="pt")
        for i in range(0, len(texts), arguments.batch)
    ]
    names = ("float32", "bfloat16", "int8")
    models = {name: PRECISIONS[name].prepare(copy.deepcopy(model)) for name in names}
    logits = {name: predict(models[name], batches) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(arguments.rounds):
        for name in names:
            start = time.perf_counter()
            predict(models[name], batches)
            seconds[name].append(time.perf_counter() - start)
    table = Table("precision", "accuracy", "same class", "sentences/s", "times float32")
    for name in names:
        ratio = statistics.median(a / b for a, b in zip(seconds["float32"], seconds[name], strict=True))
        found = logits[name].argmax(-1)
        accuracy, same = (float((found == other).float().mean()) for other in (labels, logits["float32"].argmax(-1)))
        speed = len(texts) / statistics.median(seconds[name])
        table.add_row(name, f"{accuracy:.4f}", f"{same:.4f}", f"{speed:,.0f}", f"{ratio:.2f}")
    Console().print(table)


def predict(model: PreTrainedModel, batches: list) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model(**batch).logits.float() for batch in batches])


if __name__ == "__main__":
    main()

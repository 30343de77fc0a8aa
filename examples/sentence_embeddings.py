"""Sentence embeddings through sentence-transformers: a converted checkpoint beside its source.

hf-rope convert SRC runs/minilm --check
python examples/sentence_embeddings.py --source SRC --converted runs/minilm --pairs stsb/test.jsonl

The pairs are .jsonl or .csv rows with `sentence1`, `sentence2` and `label`, a number that grows with their similarity.
Prints Spearman's rank correlation with the labels and sentences a second of both, paired in turns; writes JSON.
"""

import json
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from transformers import HfArgumentParser

from loading import load_files


@dataclass
class Arguments:
    """What is compared, on what."""

    source: str = field(metadata={"help": "The native checkpoint: a folder or a Hub name."})
    converted: str = field(metadata={"help": "The same, converted."})
    pairs: str = field(metadata={"help": "Rows with sentence1, sentence2 and label."})
    rounds: int = field(default=7, metadata={"help": "Paired rounds of encoding all sentences."})
    batch_size: int = 32
    output: str = "runs/sentence_embeddings.json"


def similarities(model: SentenceTransformer, pairs: Dataset, batch_size: int) -> torch.Tensor:
    """(N,): the cosine of each pair's mean hidden states."""
    first, second = (
        model.encode(pairs[column][:], batch_size=batch_size, convert_to_tensor=True, normalize_embeddings=True)
        for column in ("sentence1", "sentence2")
    )
    return (first * second).sum(-1)


def main() -> None:
    (arguments,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    pairs = load_files([arguments.pairs], ["sentence1", "sentence2", "label"])
    models = {
        "source": SentenceTransformer(arguments.source),
        "converted": SentenceTransformer(arguments.converted, trust_remote_code=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in models}
    cosines = {}
    for number in range(arguments.rounds + 1):
        for name, model in models.items():
            start = time.perf_counter()
            cosines[name] = similarities(model, pairs, arguments.batch_size)
            if number:
                seconds[name].append(time.perf_counter() - start)
    results = {
        name: {
            "spearman": float(spearmanr(cosines[name].cpu(), pairs["label"][:]).statistic),
            "sentences_per_second": 2 * len(pairs) / statistics.median(seconds[name]),
        }
        for name in models
    }
    ratios = [theirs / ours for theirs, ours in zip(seconds["source"], seconds["converted"], strict=True)]
    results["difference"] = float((cosines["source"] - cosines["converted"]).abs().max())
    results["times_as_fast"] = statistics.median(ratios)
    path = Path(arguments.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2))
    table = Table("model", "Spearman", "sentences a second")
    for name in models:
        table.add_row(name, f"{results[name]['spearman']:.4f}", f"{results[name]['sentences_per_second']:.0f}")
    Console().print(table)
    print(
        f"Greatest difference of a cosine {results['difference']:.1e}; the converted model is "
        f"{results['times_as_fast']:.2f} times as fast, the median of {arguments.rounds} paired rounds."
    )


if __name__ == "__main__":
    main()

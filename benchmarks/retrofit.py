"""`python -m benchmarks.retrofit SRC`: a sentence encoder under other positions, its quality by minutes of training.

Each scheme and seed is a run of `hf_rope.retrofit`. At each evaluation, and at the end in float32, sentences are
compared: Spearman's rank correlation of the cosine of their mean states with the labels of --pairs. With --needles, a
sentence stands at a random place in pages of --pages, and its paraphrase has to find the pages by their cosine: the
share found first, by length. Writes JSON, a picture and the models. A later call with the same --output adds to them,
and makes nothing twice.
"""

import argparse
import json
import os
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from hf_rope import SCHEMES
from hf_rope.convert import convert
from hf_rope.convert.checkpoint import read_tokenizer
from hf_rope.precision import training_precision
from hf_rope.retrofit import Recipe, retrofit
from hf_rope.text_files import read_rows, read_texts

LENGTHS = (256, 512, 1024, 2048)
TOKENS_AT_ONCE = 8192
SAME = 4.6
"""Pairs with this label or more are paraphrases."""


@torch.no_grad()
def embed(encoder: PreTrainedModel, rows: list[list[int]], pad: int, fast: bool = False) -> torch.Tensor:
    """(N, D): the normalised mean of the last hidden states of rows of ids; in bfloat16 if `fast` and it is."""
    order, device = sorted(range(len(rows)), key=lambda row: len(rows[row]), reverse=True), encoder.device
    found = torch.empty(len(rows), encoder.config.hidden_size)
    precision = torch.autocast(device.type, torch.bfloat16, enabled=fast and bool(training_precision()))
    while order:
        longest = len(rows[order[0]])
        batch, order = order[: max(1, TOKENS_AT_ONCE // longest)], order[max(1, TOKENS_AT_ONCE // longest) :]
        ids = torch.tensor([rows[row] + [pad] * (longest - len(rows[row])) for row in batch], device=device)
        mask = torch.tensor([[1] * len(rows[row]) + [0] * (longest - len(rows[row])) for row in batch], device=device)
        with precision:
            states = encoder(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        found[batch] = torch.nn.functional.normalize((states * mask[..., None]).sum(1), dim=-1).cpu()
    return found


@dataclass
class Similarity:
    """Pairs of sentences with a label that grows with their similarity."""

    rows: list[dict[str, Any]]
    tokenizer: PreTrainedTokenizerBase

    def __post_init__(self):
        columns = ([row[name] for row in self.rows] for name in ("sentence1", "sentence2"))
        self.ids = [self.tokenizer(column, truncation=True, max_length=128)["input_ids"] for column in columns]

    def spearman(self, encoder: PreTrainedModel, fast: bool = False) -> float:
        first, second = (embed(encoder, ids, self.tokenizer.pad_token_id, fast) for ids in self.ids)
        return float(spearmanr((first * second).sum(-1), [row["label"] for row in self.rows]).statistic)


@dataclass
class Needles:
    """Paraphrases, one of each pair hidden in pages of books; the same places for every model."""

    rows: list[dict[str, Any]]
    pages: str
    tokenizer: PreTrainedTokenizerBase

    def __post_init__(self):
        def plain(text: str) -> str:
            return text.lower().strip(" .!?")

        self.rows = [
            row for row in self.rows if row["label"] >= SAME and plain(row["sentence1"]) != plain(row["sentence2"])
        ]
        self.book = self.tokenizer(self.pages, add_special_tokens=False, verbose=False)["input_ids"]

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def framed(self, ids: list[int]) -> list[int]:
        return [self.tokenizer.cls_token_id, *ids, self.tokenizer.sep_token_id]

    def documents(self, length: int) -> list[list[int]]:
        """A document of `length` tokens for each needle."""
        generator, documents = np.random.default_rng(length), []
        for row in self.rows:
            needle = self.ids(row["sentence2"])
            size = length - 2 - len(needle)
            start, place = generator.integers(len(self.book) - size), generator.integers(size + 1)
            page = self.book[start : start + size]
            documents.append(self.framed([*page[:place], *needle, *page[place:]]))
        return documents

    def found_first(self, encoder: PreTrainedModel) -> dict[str, float]:
        """By length, the share of paraphrases whose document is the nearest; a document is cut where a table ends."""
        pad, limit = self.tokenizer.pad_token_id, encoder.position.max_length
        queries = embed(encoder, [self.framed(self.ids(row["sentence1"])) for row in self.rows], pad, fast=True)
        shares = {}
        for length in LENGTHS:
            rows = self.documents(length)
            if limit is not None and length > limit:
                rows = [[*row[: limit - 1], row[-1]] for row in rows]
            nearest = (queries @ embed(encoder, rows, pad, fast=True).T).argmax(-1)
            shares[str(length)] = float((nearest == torch.arange(len(rows))).float().mean())
        return shares


@dataclass
class Curve(TrainerCallback):
    """Spearman's correlation at each evaluation, with the processor's minutes before it, its own not counted."""

    similarity: Similarity
    points: list[dict[str, float]] = field(default_factory=list)

    def on_train_begin(self, args, state, control, **kwargs):
        self.began = time.process_time()

    def on_evaluate(self, args, state, control, model=None, metrics=None, **kwargs):
        now = time.process_time()
        spearman = self.similarity.spearman(model, fast=True)
        point = {"step": state.global_step, "minutes": (now - self.began) / 60, "spearman": spearman}
        self.points.append({**point, "loss": metrics["eval_loss"]})
        self.began += time.process_time() - now


def run(name: str, seed: int, arguments: argparse.Namespace, similarity: Similarity) -> dict[str, Any]:
    """A row of the results; the model is saved beside them."""
    curve = Curve(similarity)
    folder = arguments.output / f"checkpoints-{os.getpid()}-{name}-{seed}"
    recipe = Recipe(**{**arguments.recipe, "seed": seed})
    scheme = name.partition(",")[0]
    found = retrofit(
        arguments.source, scheme, arguments.texts, folder, arguments.options, recipe=recipe, callbacks=[curve]
    )
    shutil.rmtree(folder)
    found.model.save_pretrained(model_folder(arguments.output, name, seed))
    row = {"scheme": name, "seed": seed, "recipe": asdict(recipe), "steps": found.steps, "minutes": found.minutes}
    row |= {"spearman": similarity.spearman(found.model.base_model.float())}
    return {**row, "before": found.before, "after": found.after, "curve": curve.points}


def model_folder(output: Path, name: str, seed: int) -> Path:
    return output / "models" / f"{name.replace(', ', '-')}-{seed}"


def draw(results: dict[str, Any], path: Path) -> None:
    """Spearman by minutes: a line a scheme, the mean of its seeds, and their range."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, scheme in enumerate(dict.fromkeys(row["scheme"] for row in results["rows"])):
        curves = [row["curve"] for row in results["rows"] if row["scheme"] == scheme]
        points = list(zip(*curves, strict=False))
        minutes = [statistics.mean(point["minutes"] for point in each) for each in points]
        values = [[point["spearman"] for point in each] for each in points]
        style = "o-" if number < 10 else "s--"  # there are ten colours
        draw_seeds(axes, minutes, values, style, markersize=3, label=scheme)
    axes.axhline(results["source"]["spearman"], color="black", linestyle="--", label="source")
    axes.set(xlabel="minutes of training, of one processor", ylabel="Spearman, STS-B test")
    save(figure, axes, path)


def draw_seeds(axes: Axes, places: Sequence[float], values: Sequence[Sequence[float]], style: str, **line: Any) -> None:
    """A line through the means of several seeds' values at each place, on a band of their range."""
    (drawn,) = axes.plot(places, [statistics.mean(each) for each in values], style, **line)
    axes.fill_between(places, [*map(min, values)], [*map(max, values)], color=drawn.get_color(), alpha=0.15)


def save(figure: Figure, axes: Axes, path: Path) -> None:
    """With a grid, and the legend on the right of the axes."""
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="a sentence encoder: a folder or a name on the Hub")
    parser.add_argument("--texts", nargs="+", required=True, help="as of `hf-rope retrofit`")
    parser.add_argument("--pairs", type=Path, required=True, help="JSON lines with sentence1, sentence2 and label")
    parser.add_argument("--needles", nargs="*", type=Path, default=[], help="pairs to take needles from")
    parser.add_argument("--pages", type=Path, help="JSON lines with a `text`, to hide them in")
    parser.add_argument("--position", nargs="*", choices=list(SCHEMES), default=["rotary", "alibi", "t5"])
    parser.add_argument("--options", type=json.loads, default={}, help="of these schemes, a JSON object")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--recipe", type=json.loads, default={}, help="keys of Recipe, a JSON object")
    parser.add_argument("--output", type=Path, default=Path("runs/retrofit"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    tokenizer = read_tokenizer(arguments.source)
    similarity = Similarity([*read_rows(arguments.pairs)], tokenizer)
    path = arguments.output / "results.json"
    if path.is_file():
        results = json.loads(path.read_text())
    else:
        source = {"spearman": similarity.spearman(convert(arguments.source).float().base_model)}
        results = {"source": source, "threads": torch.get_num_threads(), "rows": []}
    if any(row["recipe"] != asdict(Recipe(**{**arguments.recipe, "seed": row["seed"]})) for row in results["rows"]):
        parser.error(f"{path} has rows of another recipe: name another --output")

    def keep() -> None:
        path.write_text(json.dumps(results, indent=1))
        draw(results, arguments.output / "quality_by_minutes.png")

    made = {(row["scheme"], row["seed"]) for row in results["rows"]}
    names = [", ".join([scheme, *map(str, arguments.options.values())]) for scheme in arguments.position]
    for seed, name in product(arguments.seeds, names):
        if (name, seed) not in made:
            results["rows"].append(row := run(name, seed, arguments, similarity))
            keep()
            print(name, seed, f"Spearman {row['spearman']:.4f} after {row['minutes']:.1f} minutes", flush=True)
    if arguments.needles:
        pages = "\n".join(read_texts(arguments.pages))
        needles = Needles([row for path in arguments.needles for row in read_rows(path)], pages, tokenizer)
        results["number_of_needles"] = len(needles.rows)
        for row in [results["source"], *results["rows"]]:
            if "needles" not in row:
                of_source = row is results["source"]
                folder = arguments.source if of_source else model_folder(arguments.output, row["scheme"], row["seed"])
                row["needles"] = needles.found_first(convert(folder).float().base_model)
                keep()
                print(row.get("scheme", "source"), row.get("seed", ""), row["needles"], flush=True)


if __name__ == "__main__":
    main()

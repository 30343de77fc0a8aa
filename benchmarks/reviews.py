"""`python -m benchmarks.reviews SRC`: how much of a long document helps, under other positions than the source's.

The models are those of an earlier `python -m benchmarks.retrofit`, in --models; `rotary` also with each scaling, at the
lengths beyond those of its training. Documents are cut at each length, and their mean states are the features of a
logistic regression whose strength is chosen on --validation: its accuracy on --test, and on the documents among these
that are longer than the source reads. Writes JSON, to which a later call adds what is missing, and a picture.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.retrofit import LENGTHS, draw_seeds, embed, save
from hf_rope.convert import convert
from hf_rope.convert.checkpoint import read_tokenizer
from hf_rope.text_files import read_rows

TRAINED = 512
"""The tokens of the longest texts of a retrofit: as many as the source reads."""
STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Of regularisation, as scikit-learn's C."""


def scalings(factor: float) -> dict[str, dict[str, Any]]:
    shared = {"rope_theta": 10000.0, "factor": factor}
    yarn = {"rope_type": "yarn", **shared, "original_max_position_embeddings": TRAINED}
    return {"linear": {"rope_type": "linear", **shared}, "dynamic": {"rope_type": "dynamic", **shared}, "yarn": yarn}


@dataclass
class Split:
    """Documents as ids, and their classes."""

    path: Path
    tokenizer: PreTrainedTokenizerBase
    number: int | None = None

    def __post_init__(self):
        rows = [*read_rows(self.path)][: self.number]
        self.labels = np.array([row["label"] for row in rows])
        self.ids = self.tokenizer([row["text"] for row in rows], verbose=False)["input_ids"]
        self.is_long = np.array([len(ids) > TRAINED for ids in self.ids])

    def features(self, encoder: PreTrainedModel, length: int) -> np.ndarray:
        rows = [ids if len(ids) <= length else [*ids[: length - 1], ids[-1]] for ids in self.ids]
        return embed(encoder, rows, self.tokenizer.pad_token_id, fast=True).numpy()


def probe(encoder: PreTrainedModel, splits: dict[str, Split], length: int) -> dict[str, float]:
    features = {name: split.features(encoder, length) for name, split in splits.items()}

    def fit(strength: float) -> LogisticRegression:
        return LogisticRegression(C=strength, max_iter=5000).fit(features["train"], splits["train"].labels)

    best = max(map(fit, STRENGTHS), key=lambda each: each.score(features["validation"], splits["validation"].labels))
    right = best.predict(features["test"]) == splits["test"].labels
    return {"accuracy": float(right.mean()), "accuracy_of_long": float(right[splits["test"].is_long].mean())}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy by length: a line a model, the mean of its seeds, and their range."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row["model"] for row in rows):
        found = [[row["accuracy"] for row in rows if (row["model"], row["length"]) == (name, each)] for each in LENGTHS]
        points = [(length, values) for length, values in zip(LENGTHS, found, strict=True) if values]
        lengths, scores = [length for length, _ in points], [values for _, values in points]
        style = "ko--" if name == "source" else "o-"
        draw_seeds(axes, lengths, scores, style, markersize=4, label=name)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="tokens read of a document", ylabel="accuracy of a linear probe", xticks=LENGTHS)
    axes.set_xticklabels(map(str, LENGTHS))
    save(figure, axes, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="as of benchmarks.retrofit")
    parser.add_argument("--models", type=Path, nargs="*", default=[], help="folders under runs/retrofit/models")
    for split in ("train", "validation", "test"):
        parser.add_argument(f"--{split}", type=Path, required=True, help="JSON lines with `text` and `label`")
    parser.add_argument("--number", type=int, help="documents to train on; all if left out")
    parser.add_argument("--output", type=Path, default=Path("runs/reviews"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    tokenizer = read_tokenizer(arguments.source)
    splits = {
        "train": Split(arguments.train, tokenizer, arguments.number),
        "validation": Split(arguments.validation, tokenizer),
        "test": Split(arguments.test, tokenizer),
    }
    path = arguments.output / "results.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
    made = {(row["model"], row["seed"], row["length"]) for row in rows}

    def measure(name: str, seed: int, encoder: PreTrainedModel, length: int) -> None:
        if (name, seed, length) not in made:
            rows.append({"model": name, "seed": seed, "length": length, **probe(encoder, splits, length)})
            path.write_text(json.dumps(rows, indent=1))
            draw(rows, arguments.output / "accuracy_by_length.png")
            print(json.dumps(rows[-1]), flush=True)

    for length in LENGTHS:
        if length <= TRAINED:
            measure("source", 0, convert(arguments.source).float().base_model, length)
    for folder in arguments.models:
        name, _, seed = folder.name.rpartition("-")
        model = convert(folder).float()
        for length in LENGTHS:
            measure(name, int(seed), model.base_model, length)
            if name == "rotary" and length > TRAINED:
                for scaling, parameters in scalings(length / TRAINED).items():
                    scaled = type(model).from_pretrained(folder, rope_parameters=parameters).float().eval()
                    measure(f"rotary, {scaling}", int(seed), scaled.base_model, length)


if __name__ == "__main__":
    main()

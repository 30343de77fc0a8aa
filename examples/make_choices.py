"""Makes a multiple-choice set out of any texts: which of four passages follows this one?

python examples/make_choices.py --train_file books.jsonl --validation_file other_books.jsonl --output_dir runs/choices

A derived set, not one that people wrote: the context is a passage of `--words` words, one choice is the passage after
it, and the others are drawn from other places of the same split, so that names and style may give the answer away.
Writes train.jsonl and validation.jsonl: `text`, `choices`, `label`.
"""

import json
import random
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import track
from transformers import HfArgumentParser

from loading import DataArguments, load_split, require_fresh


@dataclass
class Arguments:
    """The set's settings."""

    output_dir: str = field(metadata={"help": "The folder to write."})
    rows: int = field(default=8000, metadata={"help": "Training rows at most; an eighth as many are for validation."})
    words: int = field(default=40, metadata={"help": "Words of each passage."})
    choices: int = field(default=4, metadata={"help": "Choices of each row."})
    seed: int = 0


def make_rows(texts: list[str], number: int, words: int, choices: int, draw: random.Random) -> list[dict]:
    """At most `number` rows; each pair of passages is used once."""
    passages, starts = [], []
    for text in track(texts, "passages", transient=True):
        split = text.split()
        whole = [" ".join(split[i : i + words]) for i in range(0, len(split) - words + 1, words)]
        starts += range(len(passages), len(passages) + len(whole) - 1)
        passages += whole
    if len(passages) < choices + 1:
        raise SystemExit(f"The texts hold {len(passages)} passages of {words} words; {choices + 1} are needed.")
    if not starts:
        raise SystemExit(f"No text holds two passages of {words} words, the second to follow the first: lower --words.")
    rows = []
    for start in draw.sample(starts, min(number, len(starts))):
        drawn = draw.sample(range(len(passages)), choices + 1)
        others = [place for place in drawn if place not in (start, start + 1)]
        places = [*others[: choices - 1], start + 1]
        draw.shuffle(places)
        rows.append(
            {"text": passages[start], "choices": [passages[i] for i in places], "label": places.index(start + 1)}
        )
    return rows


def main() -> None:
    data, arguments = HfArgumentParser((DataArguments, Arguments)).parse_args_into_dataclasses()
    if arguments.choices < 2 or arguments.words < 1 or arguments.rows < 8:
        raise SystemExit(
            f"--choices {arguments.choices}, --words {arguments.words} and --rows {arguments.rows} "
            "must be 2, 1 and 8 or more."
        )
    require_fresh(arguments.output_dir)
    folder, made = Path(arguments.output_dir), {}
    for split, number in {"train": arguments.rows, "validation": arguments.rows // 8}.items():
        texts = load_split(data, split, [data.text_column])[data.text_column][:]
        draw = random.Random(f"{arguments.seed} {split}")
        made[split] = make_rows(texts, number, arguments.words, arguments.choices, draw)
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in made.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(f"{split}: {len(rows)} rows of {arguments.choices} choices, in {folder}")


if __name__ == "__main__":
    main()

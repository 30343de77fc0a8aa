"""Trains every position scheme on short sequences and measures its masked-LM loss on longer ones.

python examples/length.py --output_dir runs/length --position rotary learned t5 --seeds 0 1

Without --train_file or --dataset_name, the text is that of examples/data. Every option of `TrainingArguments` works.
The same tokens are masked at every length and for every scheme. A scheme that rotates is measured with each of
SCALINGS too, set at loading for the length that is measured; a scheme with a table has no positions beyond it, and
its cell stays empty. After each scheme `results.json`, `results.md` and `loss_by_length.png` are written; the same
command goes on where an earlier one was stopped.
"""

import gc
import shutil
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.nn import functional as F
from transformers import (
    AutoModelForMaskedLM,
    HfArgumentParser,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from hf_rope import SCHEMES, HfRopeConfig
from hf_rope.folders import new_folder
from hf_rope.masking import BatchSeededMasking
from hf_rope.text_files import write_json
from loading import DataArguments, check_training, load_split, load_tokenizer, parse_overrides, read_record
from pretrain_mlm import build_config, pretrain
from text_rows import group_texts
from train_tokenizer import train_tokenizer

BOOKS = Path(__file__).parent / "data/books"
SCALINGS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "linear": lambda trained, length: {"rope_type": "linear", "factor": max(1, length / trained)},
    "dynamic": lambda trained, length: {"rope_type": "dynamic", "factor": 1.0},
    "yarn": lambda trained, length: {
        "rope_type": "yarn",
        "factor": max(1, length / trained),
        "original_max_position_embeddings": trained,
    },
}
"""`rope_parameters` for a length; dynamic follows the length by itself, its factor is for going beyond that."""

SETTINGS = "settings.json"
NO_EFFECT = ("output_dir", "seed", "log", "report_to", "save", "eval", "do_", "disable_tqdm", "hub", "push_to_hub")
NO_EFFECT += ("run_name", "project", "trackio", "dataloader_n", "dataloader_p", "use_cpu", "per_device_eval", "resume")
"""How options of TrainingArguments begin that change no result, and the seed, of which a folder holds several."""


@dataclass
class Arguments:
    """The study's settings."""

    position: list[str] = field(default_factory=lambda: list(SCHEMES), metadata={"help": "Position schemes."})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "One training each."})
    trained_length: int = field(default=256, metadata={"help": "Tokens of each training sequence."})
    lengths: list[int] = field(
        default_factory=lambda: [256, 512, 1024, 2048, 4096], metadata={"help": "The lengths to measure."}
    )
    eval_tokens: int = field(default=65536, metadata={"help": "Tokens to measure on, at most; 15% are masked."})
    vocab_size: int = field(default=8000, metadata={"help": "Word pieces of the tokenizer, which is trained here."})
    config_overrides: str = field(
        default='{"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024, '
        '"initializer_range": 0.05}',
        metadata={"help": "Keys of HfRopeConfig, as a JSON object."},
    )


def check(arguments: Arguments) -> None:
    """Refuses settings that cannot be measured, before anything is trained."""
    for scheme in arguments.position:
        if scheme not in SCHEMES:
            raise SystemExit(f"--position {scheme!r} is unknown; all are: {', '.join(SCHEMES)}.")
    if min(arguments.lengths) < 1 or arguments.trained_length < 1:
        raise SystemExit(f"--lengths are {arguments.lengths}; they must be 1 or more, as --trained_length.")
    longest = max(arguments.lengths)
    for length in arguments.lengths:
        if longest % length:
            raise SystemExit(f"--lengths {length} does not divide the longest, {longest}: the tokens would differ.")
    if arguments.eval_tokens < longest:
        raise SystemExit(f"--eval_tokens is {arguments.eval_tokens}; the longest sequence alone has {longest}.")


def settings_of(arguments: Arguments, data: DataArguments, training: TrainingArguments) -> dict[str, Any]:
    """What all runs of one folder have in common."""
    own = {key: value for key, value in asdict(arguments).items() if key not in ("position", "seeds", "lengths")}
    return {**own, **asdict(data), **training_settings(training), "lengths, the longest": max(arguments.lengths)}


def training_settings(training: TrainingArguments) -> dict[str, Any]:
    """The options of TrainingArguments that change what is trained."""
    return {key: value for key, value in training.to_dict().items() if not key.startswith(NO_EFFECT)}


def check_folder(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Refuses a folder that holds the work of other settings, or anything else; returns all settings it then has.

    Further schemes, models, seeds and shorter lengths are welcome: what is there is not done again.
    """
    before = read_record(folder / SETTINGS)
    if not before and folder.exists() and (not folder.is_dir() or any(folder.glob("[!.]*"))):
        raise SystemExit(f"{folder} holds something that is no study of lengths: name another --output_dir.")
    for key, value in settings.items():
        if key in before and before[key] != value:
            raise SystemExit(f"{folder} was begun with --{key} {before[key]}, not {value}: name another --output_dir.")
    return {**before, **settings}


def masked_stream(blocks: Dataset, tokenizer: PreTrainedTokenizerBase, tokens: int, longest: int):
    """One row of ids and of labels, -100 where nothing is masked: as many longest sequences as `tokens` allow."""
    stream = list(chain.from_iterable(blocks["input_ids"]))[: tokens // longest * longest]
    stream = stream[: len(stream) // longest * longest]
    if not stream:
        raise SystemExit(
            f"The validation text is shorter than one sequence of {longest} tokens: use shorter --lengths."
        )
    batch = BatchSeededMasking(tokenizer)([{"input_ids": stream}])
    return batch["input_ids"][0], batch["labels"][0]


@torch.no_grad()
def measure(model, ids: torch.Tensor, labels: torch.Tensor, length: int, at_once: int = 4096) -> float | None:
    """The mean loss over all masked tokens, in sequences of `length`; None where the scheme has no such positions."""
    limit = model.model.position.max_length
    if limit is not None and length > limit:
        return None
    total = 0.0
    rows = max(1, at_once // length)
    batches = list(zip(ids.view(-1, length).split(rows), labels.view(-1, length).split(rows), strict=True))
    for inputs, targets in track(batches, f"  {length} tokens", transient=True):
        masked = targets != -100
        states = model.model(inputs.to(model.device)).last_hidden_state[masked.to(model.device)]
        total += float(
            F.cross_entropy(model.lm_head(states).float(), targets[masked].to(model.device), reduction="sum")
        )
    return total / int((labels != -100).sum())


def load_scaled(folder: Path, scaling: str | None, trained: int, length: int):
    """The trained model in eval mode, its `rope_parameters` set for a length."""
    changes: dict[str, Any] = {}
    if scaling is not None:
        changes["rope_parameters"] = SCALINGS[scaling](trained, length)
        if scaling == "yarn":
            changes["max_position_embeddings"] = max(trained, length)
    model = AutoModelForMaskedLM.from_pretrained(folder, **changes)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def measure_missing(found: dict[str, Any], folder: Path, arguments: Arguments, ids, labels) -> None:
    """Adds to `found`, the losses by scaling and length, those that are not there."""
    scheme = folder.name
    for scaling in [None, *(SCALINGS if SCHEMES[scheme].rotates else ())]:
        name = scheme if scaling is None else f"{scheme}, {scaling}"
        losses = found.setdefault(name, {})
        for length in arguments.lengths:
            if str(length) not in losses:
                model = load_scaled(folder, scaling, arguments.trained_length, length)
                losses[str(length)] = measure(model, ids, labels, length)
                del model
                gc.collect()


def build_configs(
    arguments: Arguments, tokenizer: PreTrainedTokenizerBase, overrides: dict[str, Any]
) -> dict[str, HfRopeConfig]:
    """Each scheme's configuration; refused where the table of none of them reaches to the shortest length."""
    trained, shortest = arguments.trained_length, min(arguments.lengths)
    configs = {scheme: build_config(scheme, tokenizer, trained, overrides) for scheme in arguments.position}
    limits = {scheme: SCHEMES[scheme](config).max_length for scheme, config in configs.items()}
    for scheme, limit in limits.items():
        if limit is not None and limit < trained:
            raise SystemExit(f"The table of {scheme!r} ends at {limit}, before --trained_length {trained}: lower that.")
    if all(limit is not None and limit < shortest for limit in limits.values()):
        raise SystemExit(
            f"No scheme of --position has positions for --lengths {shortest}: add one of {trained} or less, or a "
            "scheme without a table, such as rotary."
        )
    return configs


def run(data: DataArguments, arguments: Arguments, training: TrainingArguments) -> dict[str, Any]:
    """Trains and measures what is missing; returns what results.json holds."""
    check(arguments)
    check_training(training, "the same command goes on where it was stopped")
    folder, overrides = Path(training.output_dir), parse_overrides(arguments.config_overrides)
    if not (data.train_file or data.dataset_name):
        data.train_file, data.validation_file = [str(BOOKS / "train.txt")], [str(BOOKS / "validation.txt")]
    settings = settings_of(arguments, data, training)
    settings = check_folder(folder, settings)
    texts = load_split(data, "train", [data.text_column])
    if (folder / "tokenizer").is_dir():
        tokenizer = load_tokenizer(str(folder / "tokenizer"))
    else:
        tokenizer = train_tokenizer((row[data.text_column] for row in texts), arguments.vocab_size)
    train = group_texts(texts, tokenizer, arguments.trained_length)
    held_out = load_split(data, "validation", [data.text_column])
    validation = group_texts(held_out, tokenizer, arguments.trained_length)
    ids, labels = masked_stream(validation, tokenizer, arguments.eval_tokens, max(arguments.lengths))
    validation = validation.select(range(len(ids) // arguments.trained_length))
    configs = build_configs(arguments, tokenizer, overrides)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SETTINGS, settings)  # first, so that a folder whose run was stopped is known again
    if not (folder / "tokenizer").is_dir():
        with new_folder(folder / "tokenizer") as place:
            tokenizer.save_pretrained(place)
    results: dict[str, Any] = {
        "trained_length": arguments.trained_length,
        "masked": int((labels != -100).sum()),
        "runs": {},
    }
    for seed in arguments.seeds:
        training.seed, training.output_dir = seed, str(folder / f"seed-{seed}")
        for scheme in arguments.position:
            place = Path(training.output_dir) / scheme
            record = place / "length.json"
            run = read_record(record)
            if not run:
                print(f"{scheme}, seed {seed}: training on {len(train)} blocks of {arguments.trained_length} tokens")
                trained = pretrain(configs[scheme], tokenizer, train, validation, training, resume=True)
                run = {"training": trained, "losses": {}}
                write_json(record, run)
                for checkpoint in place.glob("checkpoint-*"):
                    shutil.rmtree(checkpoint)
            measure_missing(run["losses"], place, arguments, ids, labels)
            write_json(record, run)
            results["runs"].setdefault(scheme, {})[str(seed)] = run
            write(results, arguments.lengths, folder)
    return results


def summarise(results: dict[str, Any]) -> dict[str, dict[str, list[float] | None]]:
    """For each scheme and scaling, and each length, the loss of each seed; None beyond the table."""
    rows: dict[str, dict[str, list[float] | None]] = {}
    for runs in results["runs"].values():
        for run in runs.values():
            for name, losses in run["losses"].items():
                row = rows.setdefault(name, {})
                for length, loss in losses.items():
                    row[length] = None if loss is None else [*(row.get(length) or []), loss]
    return rows


def cell(losses: list[float] | None) -> str:
    """The mean of the seeds, with their range where they are several; a dash beyond the table."""
    if losses is None:
        return "-"
    spread = f" ({min(losses):.3f} to {max(losses):.3f})" if len(losses) > 1 else ""
    return f"{statistics.mean(losses):.3f}{spread}"


def write(results: dict[str, Any], lengths: list[int], folder: Path) -> None:
    """results.json, results.md and loss_by_length.png."""
    write_json(folder / "results.json", results)
    rows = summarise(results)
    lines = [f"| scheme | {' | '.join(f'{n:,}' for n in lengths)} |", "|---" + "|---:" * len(lengths) + "|"]
    lines += [f"| {name} | {' | '.join(cell(row.get(str(n))) for n in lengths)} |" for name, row in rows.items()]
    (folder / "results.md").write_text("\n".join(lines) + "\n")
    draw(rows, results["trained_length"], lengths, folder / "loss_by_length.png")


def draw(rows: dict[str, dict[str, list[float] | None]], trained: int, lengths: list[int], path: Path) -> None:
    """A line a scheme, those that rotate black; a scheme with a table ends where the table does, in a cross."""
    figure = Figure(figsize=(9.5, 5.5), layout="constrained")
    axes = figure.subplots()
    schemes = list(dict.fromkeys(name.split(", ")[0] for name in rows))
    styles = dict(zip([None, *SCALINGS], ("o-", "s--", "^:", "D-."), strict=True))
    everything = []
    for name, row in rows.items():
        known = {n: losses for n in lengths if (losses := row.get(str(n)))}
        scheme, _, scaling = name.partition(", ")
        place = schemes.index(scheme)
        colour = "black" if SCHEMES[scheme].rotates else colormaps["tab20"](2 * place % 20 + (place >= 10))
        means = [statistics.mean(losses) for losses in known.values()]
        label = f"{name} (table ends)" if len(known) < len(row) else name
        style = styles[scaling or None] if len(known) > 1 else "X"
        axes.plot(
            list(known), means, style, color=colour, markersize=4 * (1 + (style == "X")), linewidth=1.3, label=label
        )
        low, high = [min(losses) for losses in known.values()], [max(losses) for losses in known.values()]
        axes.fill_between(list(known), low, high, color=colour, alpha=0.15, linewidth=0)
        everything += means
    if not everything:  # so far, every table has ended before the shortest length
        return
    least, most = min(everything), max(everything)
    axes.set(xscale="log", xlabel="tokens in one sequence", ylabel="masked-LM loss, nats a masked token")
    axes.set_ylim(least - 0.1, min(most, least + 3.5) + 0.1)
    axes.set_xticks(lengths, [f"{n:,}" for n in lengths])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.axvline(trained, color="grey", linewidth=1, linestyle=":")
    axes.text(trained, axes.get_ylim()[1], " trained", color="grey", va="top")
    axes.set_title("Loss on text not trained on, by length: the same masked tokens everywhere")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=130)


def show(results: dict[str, Any], lengths: list[int]) -> None:
    trained, masked = results["trained_length"], results["masked"]
    table = Table(title=f"Masked-LM loss by length, trained on {trained} tokens, over {masked:,} masked tokens")
    table.add_column("scheme", no_wrap=True)
    for length in lengths:
        table.add_column(f"{length:,}", justify="right")
    for name, row in summarise(results).items():
        table.add_row(name, *(cell(row.get(str(n))) for n in lengths))
    table.caption = "-: the scheme's table ends before. In brackets: the least and the greatest of the seeds."
    Console().print(table)


def main() -> None:
    parser = HfArgumentParser((DataArguments, Arguments, TrainingArguments))
    parser.set_defaults(output_dir="runs/length", learning_rate=1e-3, warmup_steps=0.1, adam_beta2=0.98)
    parser.set_defaults(max_steps=700, per_device_train_batch_size=8, per_device_eval_batch_size=16, logging_steps=50)
    parser.set_defaults(
        eval_strategy="no", save_steps=100, save_total_limit=1, report_to="none", prediction_loss_only=True
    )
    parser.set_defaults(dataloader_pin_memory=torch.cuda.is_available())
    data, arguments, training = parser.parse_args_into_dataclasses()
    folder = training.output_dir
    show(run(data, arguments, training), arguments.lengths)
    print(f"In {folder}: results.json, results.md, loss_by_length.png and a folder each training.")


if __name__ == "__main__":
    main()

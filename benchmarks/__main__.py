"""`python -m benchmarks`: hf_rope beside the native classes; prints a table, writes it as JSON, Markdown and PNGs."""

import argparse
import json
import os
import platform
from itertools import product
from pathlib import Path
from unittest.mock import patch

import matplotlib
import torch
import transformers
from rich.console import Console
from rich.progress import track
from rich.table import Table

from . import cases, linear
from .groups import GROUPS, QUICK, is_measured, measure_speed
from .measure import ALLOCATOR, in_fresh_process, peak_memory
from .plots import draw
from .precision import PRECISIONS

matplotlib.use("Agg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="fewer cases and rounds, the first precision; under 5 minutes on 2 cores"
    )
    parser.add_argument("--rounds", type=int, default=9, help="paired runs of each case")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--longest", type=int, default=8192, help="the longest input of the plots by length")
    parser.add_argument("--pairs", type=Path, help="JSON lines with sentence1 and sentence2, for batches of pairs")
    parser.add_argument("--precision", nargs="+", choices=list(PRECISIONS), default=list(PRECISIONS))
    parser.add_argument("--only", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--output", type=Path, default=Path("runs/bench"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {"rows": [], "memory": {}}
    results["setting"] = {
        "threads": arguments.threads,
        "processor": platform.processor() or platform.machine(),
        "instructions": instructions(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if arguments.quick:
        arguments.rounds, arguments.longest = 3, 512
        arguments.only = [group for group in arguments.only if group in QUICK]
        arguments.precision = arguments.precision[:1]
    for precision, group in product(arguments.precision, arguments.only):
        if not is_measured(group, precision):
            continue
        if group == "memory":
            measure_memory(results["memory"], arguments.longest)
        elif group == "linear":
            measure_linear(results, arguments)
        else:
            others = [row for row in results["rows"] if (row["part"], row["precision"]) != (group, precision)]
            with patch.dict(os.environ, ALLOCATOR):
                results["rows"] = others + in_fresh_process(measure_speed, group, precision, arguments)
        path.write_text(json.dumps(results, indent=1))
    print_table(results)
    (arguments.output / "results.md").write_text(as_markdown(results))
    draw(results, arguments.output)


def instructions() -> dict[str, bool]:
    """What this processor computes bfloat16 and int8 with, as PyTorch knows it."""
    known = torch.cpu.get_capabilities()
    return {name: bool(known.get(name)) for name in ("avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")}


def measure_memory(memory: dict, longest: int) -> None:
    """Peak memory of a forward; beyond 8,192 tokens of `none` and `rotary` alone, the others' grows with the square."""
    for name in track(("none", "rotary", "t5", "RoFormer"), description="peak memory"):
        most = longest if name in ("none", "rotary") else min(longest, 8192)
        lengths = [length for length in (512, 1024, 2048, 4096, 8192, 16384, 32768) if length <= most]
        memory[name] = {str(length): peak_memory(cases.memory_work, name, length) for length in lengths}


def measure_linear(results: dict, arguments: argparse.Namespace) -> None:
    """Time and peak memory by length, each in a process of its own, and FAVOR+'s error."""
    results["linear"] = {}
    for name in track(linear.MODELS, description="linear attention"):
        memory = in_fresh_process(linear.peaks, name)
        with patch.dict(os.environ, ALLOCATOR):
            seconds = in_fresh_process(linear.times, name, [*memory], arguments.rounds)
        results["linear"][name] = {str(n): {"seconds": seconds[n], "megabytes": memory[n]} for n in memory}
    results["favor"] = linear.favor_errors()


def print_table(results: dict) -> None:
    table = Table(title="Times as fast as the other (cost over none: the other's time over that of none)")
    for column in ("precision", "scheme", "work", "against", "ratio", "quartiles", "goal", "seconds"):
        table.add_column(column, justify="left" if column in ("precision", "scheme", "work", "against") else "right")
    for row in results["rows"]:
        goal = "" if row["goal"] is None else f"{row['goal']:.2f}"
        spread = f"{row['low']:.2f} to {row['high']:.2f}"
        figures = (f"{row['median']:.2f}", spread, goal, f"{row['seconds']:.3f}")
        table.add_row(row["precision"], row["scheme"], row["work"], row["against"], *figures)
    Console().print(table)
    for name, figures in results["memory"].items():
        print(f"peak memory above the weights, MB: {name:10}", {k: round(v) for k, v in figures.items()})
    for name, by_length in results.get("linear", {}).items():
        figures = {n: f"{microseconds(n, x):.0f} us/token, {x['megabytes']:.0f} MB" for n, x in by_length.items()}
        print(f"{name:16}", figures)


def microseconds(length: str, figures: dict[str, float]) -> float:
    """A token's share of a forward."""
    return 1e6 * figures["seconds"] / int(length)


def as_markdown(results: dict) -> str:
    """The tables of speed, of memory and of linear attention."""
    lines = ["| precision | scheme | work | against | ratio | quartiles | wanted |", "|---" * 7 + "|"]
    for row in results["rows"]:
        goal = "" if row["goal"] is None else f"{row['goal']:.2f}"
        figures = f"{row['median']:.2f} | {row['low']:.2f} to {row['high']:.2f} | {goal}"
        lines.append(f"| {row['precision']} | {row['scheme']} | {row['work']} | {row['against']} | {figures} |")
    for name, figures in results["memory"].items():
        if name == next(iter(results["memory"])):
            lines += ["", f"| MB above the weights | {' | '.join(figures)} |", "|---" * (len(figures) + 1) + "|"]
        missing = " | " * (len(next(iter(results["memory"].values()))) - len(figures))
        lines.append(f"| {name} | {' | '.join(f'{value:,.0f}' for value in figures.values())}{missing} |")
    for name, by_length in results.get("linear", {}).items():
        if name == next(iter(results["linear"])):
            lengths = list(by_length)
            lines += ["", f"| us a token; MB | {' | '.join(lengths)} |", "|---" * (len(lengths) + 1) + "|"]
        found = [
            f"{microseconds(n, by_length[n]):.0f}; {by_length[n]['megabytes']:,.0f}" if n in by_length else ""
            for n in lengths
        ]
        lines.append(f"| {name} | {' | '.join(found)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

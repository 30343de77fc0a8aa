"""`python -m benchmarks.findings`: every report and figure of the studies anew, from the results that are kept here.

It also writes what each scheme reached into its card.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_rope import SCHEMES
from hf_rope.compare import report
from hf_rope.compare.cell import POSITION_LR
from hf_rope.compare.report import rows_to_table
from hf_rope.compare.runner import STUDY
from hf_rope.compare.summary import evaluation_names, rank
from hf_rope.compare.words import named, score, score_with_range

RESULTS = Path(__file__).parent / "results"
CARDS = Path(__file__).parents[1] / "model_cards"
HEADING, NEXT = "## In the studies\n", "## Training data\n"
INTRODUCTION = """\
What it reached in small models at a small budget: the mean over seeds, with their range.
[The findings](../docs/findings.md) say which differences hold."""


def folders() -> list[Path]:
    """Those of the studies that have results."""
    return sorted(path.parent for path in RESULTS.glob(f"*/{STUDY}"))


def rows(scheme: str, summary: dict[str, Any], link: str) -> Iterator[list[str]]:
    """What a scheme and its forms reached in a study, beside the best one, a row for each task.

    Where nothing was trained and more was measured than the loss, that is told in its place.
    """
    for name, task in summary["tasks"].items():
        longest = max((each for each in evaluation_names([task]) if each != "validation"), key=int, default="")
        probes = [] if summary["study"]["steps"] else task["shown"]
        for form in (each for each in task["schemes"] if is_form(each, scheme, summary["study"])):
            found = task["schemes"][form]
            for metric in probes or [task["metric"]]:
                if metric in found["evaluations"].get("validation", {}):
                    scores = [*beside_best(task, form, "validation", metric), *beside_best(task, form, longest, metric)]
                    yield [link, f"{name}: {named(metric)}", f"`{form}`", *scores, longest, str(len(found["seeds"]))]


def beside_best(task: dict[str, Any], form: str, evaluation: str, metric: str) -> tuple[str, str]:
    """A score, and the best one of what the study compares; nothing where there is no such evaluation."""
    if not evaluation:
        return "", ""
    best = rank(task, evaluation)[:1] if metric == task["metric"] else []
    named_best = "".join(f"`{one}` {score(task['schemes'][one], evaluation, metric)}" for one in best)
    return score_with_range(task["schemes"][form], evaluation, metric), named_best


def is_form(name: str, scheme: str, study: dict[str, Any]) -> bool:
    """Whether a name in a study is a scheme's own, or that of a form of it; another learning rate makes none."""
    schemes = study["schemes"]
    settings = schemes.get(name) if isinstance(schemes, dict) else None
    return name.split(", ")[0] == scheme and POSITION_LR not in (settings or {})


def section(scheme: str, summaries: dict[str, dict[str, Any]]) -> str:
    """The table of a scheme's card."""
    found = [
        row
        for name, summary in summaries.items()
        for row in rows(scheme, summary, f"[{name}](../benchmarks/results/{name}/report.md)")
    ]
    head = [
        "study",
        "task",
        "scheme",
        "its score",
        "the best",
        "in longer input",
        "the best there",
        "its tokens",
        "seeds",
    ]
    return f"{INTRODUCTION}\n\n{rows_to_table(head, found)}"


def with_section(card: str, text: str) -> str:
    """A card with its section on the studies."""
    card = re.sub(f"{HEADING}.*?(?={NEXT})", "", card, flags=re.DOTALL)
    return card.replace(NEXT, f"{HEADING}{text}\n\n{NEXT}")


def main() -> None:
    summaries = {folder.name: report(folder) for folder in folders()}
    for folder in folders():
        (folder / "results.json").unlink()  # the cells' result.json hold it all
    print(*summaries, sep="\n")
    for scheme in SCHEMES:
        path = CARDS / f"{scheme}.md"
        path.write_text(with_section(path.read_text(encoding="utf-8"), section(scheme, summaries)), encoding="utf-8")


if __name__ == "__main__":
    main()

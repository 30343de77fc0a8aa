"""The blocks of the README and of the pages in docs/, and what their source says of running them."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted(ROOT.glob("docs/*.md"))]
RUN = ("python", "bash")
"""The languages whose blocks are run, or say why not."""
READ = ("text", "yaml", "bibtex", "{toctree}", "{eval-rst}")
"""Those whose blocks are to be read only."""

BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>.*?): (?P<note>.*?) -->\n)?^```(?P<language>\S*)\n(?P<code>.*?)^```$", re.M | re.S
)


@dataclass
class Block:
    """A fenced block.

    Args:
        language: what stands after the fence.
        code: its lines.
        mark: "run with" or "not run", from a comment above it; else None.
        note: further arguments of its command, or the reason; else None.
    """

    language: str
    code: str
    mark: str | None
    note: str | None

    def as_run(self) -> str:
        """The code, with the further arguments at the end of its one command."""
        return f"{self.code.rstrip()} {self.note}\n" if self.mark == "run with" else self.code

    def commands(self) -> list[str]:
        """The commands of a shell block, each in one line and without comments."""
        joined = self.as_run().replace("\\\n", " ")
        return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def blocks_of(page: Path) -> list[Block]:
    return [Block(**match.groupdict()) for match in BLOCK.finditer(page.read_text(encoding="utf-8"))]


def to_run(page: Path) -> list[Block]:
    """The blocks that a test runs."""
    return [block for block in blocks_of(page) if block.language in RUN and block.mark != "not run"]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))

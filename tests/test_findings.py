"""What is published of the studies is what their results say, and a resume would find these results."""

from functools import cache
from pathlib import Path

import pytest

from benchmarks.findings import CARDS, folders, section, with_section
from hf_rope import SCHEMES
from hf_rope.compare.report import CAPTIONS, markdown
from hf_rope.compare.study import read_study
from hf_rope.compare.summary import summarise

STUDIES = Path(__file__).parents[1] / "benchmarks/studies"
FOLDERS = {folder.name: folder for folder in folders()}


@cache
def summaries():
    return {name: summarise(folder) for name, folder in FOLDERS.items()}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_report_is_that_of_its_results(name):
    figures = [figure for figure in CAPTIONS if (FOLDERS[name] / figure).is_file()]
    assert markdown(summaries()[name], figures) == (FOLDERS[name] / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_card_has_what_its_scheme_reached(scheme):
    card = (CARDS / f"{scheme}.md").read_text(encoding="utf-8")
    assert with_section(card, section(scheme, summaries())) == card


@pytest.mark.parametrize("name", FOLDERS)
def test_results_are_of_cells_that_the_study_has(name):
    try:
        study = read_study(STUDIES / f"{name}.yaml")
    except ValueError as error:
        if "there is no file" not in str(error):
            raise
        pytest.skip(str(error))
    finished = {path.parent.name for path in FOLDERS[name].glob("cells/*/result.json")}
    assert finished
    assert finished <= {cell.name for cell in study.cells.values()}

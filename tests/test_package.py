"""What is installed: the wheel's and the source distribution's files, what is declared, and what an import brings."""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from hf_rope import SCHEMES

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "hf_rope": {"inspect", "compare", "ray", "dask", "export"},
    "examples": {"examples", "chinese"},
    "benchmarks": {"benchmarks"},
    "tests": {"tests"},
}
"""The folders with code, and the extras that may bring what each imports."""
OTHER_NAMES = {"sklearn": "scikit-learn", "yaml": "pyyaml"}
"""Distributions that are not called as what they bring is."""
METADATA = importlib.metadata.metadata("hf-rope")
SUPPORTED = SpecifierSet(METADATA["Requires-Python"])
PYTHONS = re.findall(r"Python :: (3\.\d+)", "\n".join(METADATA.get_all("Classifier")))
WORKFLOWS = {path.name: yaml.safe_load(path.read_text()) for path in (ROOT / ".github").glob("workflows/*.yml")}

needs_checkout = pytest.mark.skipif(not WORKFLOWS, reason="a source distribution has no workflows")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, set[str]]:
    """The files of the wheel and of the source distribution, built here without the network."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        wheel_files = set(archive.namelist())
    with tarfile.open(source) as archive:
        assert all(member.isfile() for member in archive.getmembers())
        source_files = {name.partition("/")[2] for name in archive.getnames()}
    return {"wheel": wheel_files, "source": source_files}


def files_of(folder: str) -> set[str]:
    """The files of a folder, the cards' link followed, but for what Python and `make docs` leave there."""
    return {
        f"{folder}/{path.relative_to(ROOT / folder).as_posix()}"
        for pattern in ("**/*", "model_cards/*")
        for path in (ROOT / folder).glob(pattern)
        if path.is_file() and not {"__pycache__", "_build"} & {*path.parts}
    }


def test_the_wheel_has_the_package_with_its_cards_and_nothing_else(built):
    cards = {f"hf_rope/model_cards/{scheme}.md" for scheme in SCHEMES}
    files = {name for name in built["wheel"] if ".dist-info/" not in name}
    assert cards < files
    assert files == files_of("hf_rope")


def test_the_source_distribution_has_what_the_tests_need(built):
    assert set().union(*map(files_of, FOLDERS), files_of("model_cards"), files_of("docs")) <= built["source"]
    top = {name for name in built["source"] if "/" not in name}
    assert {"Makefile", "README.md", "constraints.txt", "pyproject.toml", "LICENSE", "SECURITY.md"} < top
    folders = {name.partition("/")[0] for name in built["source"] - top}
    assert folders == {*FOLDERS, "model_cards", "docs"}


def requirements(extras: set[str]) -> set[str]:
    """The distributions that hf-rope asks for, with those of some extras and of the extras that these name."""
    found = set()
    for requirement in map(Requirement, METADATA.get_all("Requires-Dist")):
        if any(requirement.marker is None or requirement.marker.evaluate({"extra": extra}) for extra in {"", *extras}):
            if requirement.name == "hf-rope":
                found |= requirements(requirement.extras)
            else:
                found.add(normal(requirement.name))
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imports(folder: str) -> set[str]:
    """The top names of all that a folder's files import, wherever in a file that is."""
    names = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("folder", FOLDERS)
def test_all_that_is_imported_is_declared(folder):
    own = {name for top in FOLDERS for path in (ROOT / top).rglob("*.py") for name in (path.stem, path.parent.name)}
    others = imports(folder) - sys.stdlib_module_names - own
    assert others
    assert {normal(OTHER_NAMES.get(name, name)) for name in others} <= requirements(FOLDERS[folder])


def modules(code: str) -> set[str]:
    """The top names of what is imported after some code, in a process of its own."""
    show = "; import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    return set(json.loads(subprocess.run([sys.executable, "-c", code + show], capture_output=True, check=True).stdout))


def test_the_import_brings_no_package_that_transformers_bert_does_not():
    native = modules("import torch; from transformers import AutoModel, BertConfig, BertForMaskedLM, BertModel")
    ours = modules("import hf_rope")
    assert "torch" in native
    assert ours - native == {"hf_rope"}


def test_the_pythons_that_are_claimed_are_those_allowed():
    assert PYTHONS
    assert SpecifierSet(f">={PYTHONS[0]}") == SUPPORTED


@needs_checkout
def test_workflows_call_make_targets_that_exist_and_run_every_python():
    steps = [step for flow in WORKFLOWS.values() for job in flow["jobs"].values() for step in job["steps"]]
    rows = [
        row
        for flow in WORKFLOWS.values()
        for job in flow["jobs"].values()
        for row in job.get("strategy", {}).get("matrix", {}).get("include", [])
    ]
    called = {target for step in steps for target in re.findall(r"^make ([\w-]+)$", step.get("run", ""))}
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert "build" in called
    assert called | {row["target"] for row in rows} <= targets
    fixed = {step.get("with", {}).get("python-version", "") for step in steps}
    assert {name for name in {*fixed, *(row["python"] for row in rows)} if name.startswith("3.")} == {*PYTHONS}

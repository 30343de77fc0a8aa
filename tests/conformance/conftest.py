"""Counts the results of transformers' common tests a model, and compares hf_rope's with native BERT's.

`make conformance` downloads transformers' source distribution and names its folder, or that of a checkout, in
HF_ROPE_CONFORMANCE; without it nothing here is collected.
"""

import os
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import pytest

SOURCE = os.environ.get("HF_ROPE_CONFORMANCE")
collect_ignore_glob = [] if SOURCE else ["test_*.py"]


def stand_in(name: str, **contents) -> None:
    """A module that transformers' test files import and that its source distribution leaves out."""
    parent = name.rpartition(".")[0]
    sys.modules.setdefault(parent, ModuleType(parent))
    sys.modules[name] = ModuleType(name)
    vars(sys.modules[name]).update(contents)


if SOURCE:
    sys.path.insert(0, SOURCE)
    (Path(SOURCE) / "tests/__init__.py").touch()
    stand_in("tests.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
    if not (Path(SOURCE) / "tests/generation/test_utils.py").exists():  # as it does in a checkout
        stand_in("tests.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
    kwargs = {"return_dict": False, "output_hidden_states": True, "chunk_size_feed_forward": 5, "dtype": "float16"}
    kwargs |= {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}, "problem_type": "regression"}
    stand_in("tests.utils.test_configuration_utils", config_common_kwargs=kwargs)


def counts(terminalreporter) -> dict[str, dict[str, set[str]]]:
    """Model -> "passed", "skipped" or "failed" -> its tests."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for outcome in ("passed", "skipped", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            path, *names = report.nodeid.split("::")
            if "conformance" in path and len(names) == 2:
                found[names[0]][outcome].add(names[1])
    return found


def also_skipped(found: dict[str, dict[str, set[str]]]) -> dict[str, list[str]]:
    """Model -> the tests that it skips and native BERT, encoder or decoder as it is, does not."""
    more = {}
    for model, outcomes in list(found.items()):
        native = found["NativeBertDecoder" if model.endswith("Decoder") else "NativeBertEncoder"]
        more[model] = sorted(outcomes["skipped"] - native["skipped"])
    return more


def pytest_sessionfinish(session):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and any(also_skipped(counts(reporter)).values()):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    """A line a model, and what it skips beyond native BERT."""
    found = counts(terminalreporter)
    more = also_skipped(found)
    for model in sorted(more):
        numbers = "  ".join(f"{name} {len(found[model][name]):3}" for name in ("passed", "skipped", "failed"))
        extra = f"  also skipped: {', '.join(more[model])}" if more[model] else ""
        terminalreporter.write_line(f"{model:24} {numbers}{extra}")

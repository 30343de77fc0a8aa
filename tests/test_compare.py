"""Cells and whole studies: killed and resumed, never run twice, reported as far as they are finished."""

import copy
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from helpers import refused
from hf_rope.compare import cell as cells
from hf_rope.compare import compare, report, runner
from hf_rope.compare.cell import CELLS, COMPLETE, LOCK, PROGRESS, RESULT, read_result, run_cell
from hf_rope.compare.choice import choose_rate
from hf_rope.compare.figures import draw_scores
from hf_rope.compare.report import words
from hf_rope.compare.runner import STUDY, write_study
from hf_rope.compare.study import make_study
from hf_rope.compare.summary import differences, over_seeds, spread, summarise
from hf_rope.compare.words import score_with_range
from hf_rope.folders import last_checkpoint
from native_models import command
from studies import ANSWERS, BYTES, tiny_study

KILLED = """
import json, os, signal, sys
from pathlib import Path
import torch
from hf_rope.compare import cell as cells
from hf_rope.compare.study import make_study

def save_or_die(content, path, *args, **kwargs):
    if "checkpoint-4" in str(path):  # the model is written, the optimizer is not
        os.kill(os.getpid(), signal.SIGKILL)
    save(content, path, *args, **kwargs)

save, torch.save = torch.save, save_or_die
(cell,) = make_study(json.loads(sys.argv[1])).cells.values()
cells.run_cell(cell, Path(sys.argv[2]))
"""

WORKER_KILLED = """
import json, os, signal, sys, time
from hf_rope.compare import cell, compare, runner

def attempt(one, folder):
    if one.scheme == "learned":  # as a system without memory does, while another cell runs
        if sys.argv[3] == "begun":
            folder.mkdir(parents=True, exist_ok=True)
            cell.write_json(folder / cell.PROGRESS, {"step": 0, "tokens_per_second": None})
            while not list(folder.parent.glob("*rotary*")):
                time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    cell.run_cell(one, folder)

runner.attempt = attempt
print(json.dumps(compare(json.loads(sys.argv[1]), sys.argv[2], workers=2)))
"""


def only_cell(**changes):
    (cell,) = make_study(
        tiny_study(**{"schemes": ["rotary"], "seeds": [0], "learning_rates": [1e-2], **changes})
    ).cells.values()
    return cell


def without_speed(result: dict) -> dict:
    return {key: value for key, value in result.items() if key != "speed"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of the tiny study, all of whose cells are finished; not to be written to."""
    folder = tmp_path_factory.mktemp("study")
    assert compare(tiny_study(), folder) == {}
    report(folder)
    return folder


@pytest.fixture
def study_folder(finished, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def test_a_killed_cell_goes_on_and_ends_as_one_that_was_not(tmp_path):
    settings = tiny_study(schemes=["rotary"], seeds=[0], learning_rates=[1e-2], precision="bfloat16")
    killed = [sys.executable, "-c", KILLED, json.dumps(settings), str(tmp_path / "killed")]
    assert subprocess.run(killed, env={**os.environ, "OMP_NUM_THREADS": "2"}).returncode == -9
    left = {path.name for path in (tmp_path / "killed").iterdir()}
    assert left == {"checkpoint-2", "checkpoint-4", PROGRESS, LOCK}
    cell = only_cell(precision="bfloat16")
    resumed, whole = (run_cell(cell, tmp_path / name) for name in ("killed", "whole"))
    assert without_speed(resumed) == without_speed(whole)
    assert resumed["curve"]["step"] == [2, 4, 6]
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {RESULT}


def test_a_checkpoint_that_is_not_whole_is_removed(tmp_path):
    for step in (2, 10, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert last_checkpoint(tmp_path / "new", COMPLETE) is None
    (tmp_path / "checkpoint-2" / COMPLETE).touch()
    (tmp_path / "checkpoint-10" / COMPLETE).touch()
    assert last_checkpoint(tmp_path, COMPLETE) == str(tmp_path / "checkpoint-10")
    assert not (tmp_path / "checkpoint-12").exists()


def test_a_cell_with_a_result_is_not_run_again(finished, tmp_path, monkeypatch):
    """Results alone are enough to start from: no weights, no report."""
    monkeypatch.setattr(cells, "train", None)
    for path in [*finished.glob(f"{CELLS}/*/{RESULT}"), finished / "study.json"]:
        target = tmp_path / path.relative_to(finished)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    assert compare(tiny_study(), tmp_path, resume=True) == {}
    cell = next(iter(make_study(tiny_study()).cells.values()))
    assert run_cell(cell, tmp_path / CELLS / cell.name) == read_result(finished / CELLS / cell.name)
    assert compare(tiny_study(seeds=[1, 0], threshold=3.0), tmp_path, resume=True) != {}  # other cells are wanted


def test_a_cell_that_another_process_trains_is_waited_for(finished, tmp_path, monkeypatch):
    """As a worker that outlives a study that was killed does, while that is resumed."""
    monkeypatch.setattr(cells, "train", lambda *_: pytest.fail("trained twice"))
    result = next(finished.glob(f"{CELLS}/*/{RESULT}"))
    with ThreadPoolExecutor() as pool:
        with FileLock(tmp_path / LOCK):
            found = pool.submit(run_cell, only_cell(), tmp_path)
            with pytest.raises(TimeoutError):
                found.result(timeout=0.3)
            shutil.copy(result, tmp_path)
        assert found.result(timeout=60) == read_result(result.parent)
    assert [path.name for path in tmp_path.iterdir()] == [RESULT]


def test_a_model_that_diverged_has_no_scores(tmp_path):
    """The best of classes whose logits are no numbers would be the first one, which is right now and then."""
    task = {**ANSWERS, "kind": "token_at_distance", "test_lengths": [32]}
    found = run_cell(only_cell(tasks={"a": task}, learning_rates=[1e30]), tmp_path)["evaluations"]
    assert found == {key: {"loss": None, "accuracy": None} for key in ("validation", "32")}


def test_nothing_is_left_but_results_and_the_report(finished):
    assert {path.name for path in finished.iterdir()} == {
        *("by_length.png", "cells", "curves.png", "report.md", "results.json", "study.json")
    }
    assert {path.name for path in finished.glob(f"{CELLS}/*/*")} == {RESULT}
    text = "".join(path.read_text() for path in finished.glob(f"{CELLS}/*/{RESULT}"))
    assert str(finished) not in text


def test_rates_are_chosen_on_the_first_seed_and_the_others_run_at_that(finished):
    summary = summarise(finished)
    assert summary["cells_finished"] == 6  # two rates and one more seed, each under two schemes
    for found in summary["tasks"]["bytes"]["schemes"].values():
        losses = found["learning_rates"]
        assert found["learning_rate"] == float(min(losses, key=losses.get))
        assert found["seeds"] == [0, 1]


def test_a_rate_is_chosen_when_all_are_finished_and_not_where_training_diverged():
    def found(loss):
        return {"evaluations": {"validation": {"loss": loss}}}

    assert choose_rate({0.1: None}) == 0.1
    assert choose_rate({0.1: found(2.0), 0.2: None}) is None
    assert choose_rate({0.1: found(2.0), 0.2: found(1.0), 0.3: found(None)}) == 0.2


def test_the_last_point_of_a_curve_is_the_result(finished):
    for path in finished.glob(f"{CELLS}/*"):
        result = read_result(path)
        assert result["curve"]["step"] == [2, 4, 6]
        assert result["curve"]["validation_loss"][-1] == result["evaluations"]["validation"]["loss"]
        assert len(result["curve"]["training_loss"]) == 3
        assert result["speed"]["tokens_per_second"] > 0


def test_a_scheme_refuses_tests_beyond_its_table(finished):
    at = {read_result(path)["scheme"]: read_result(path)["evaluations"]["32"] for path in finished.glob(f"{CELLS}/*")}
    assert "16" in at["learned"]["refused"]
    assert at["rotary"]["loss"] > 0
    assert "refuses" in (finished / "report.md").read_text()


def test_the_report_is_of_the_cells_that_are_finished(study_folder):
    whole = (study_folder / "report.md").read_text()
    assert "not finished" not in whole
    gone = next(path for path in study_folder.glob(f"{CELLS}/*rotary*seed1*"))
    shutil.rmtree(gone)
    report(study_folder)
    assert f"**1 cell not finished**: {gone.name}." in (study_folder / "report.md").read_text()
    for path in study_folder.glob(f"{CELLS}/*"):
        shutil.rmtree(path)
    summary = report(study_folder)
    assert len(summary["cells_missing"]) == 4  # of the other seeds it is not known at which rate
    assert json.loads((study_folder / "results.json").read_text()) == summary
    refused(lambda: report(study_folder / CELLS), "study.json")


def test_the_reports_numbers_are_those_of_the_results(finished):
    text, summary = (finished / "report.md").read_text(), json.loads((finished / "results.json").read_text())
    for scheme, found in summary["tasks"]["bytes"]["schemes"].items():
        row = found["evaluations"]["validation"]["loss"]
        losses = [
            result["evaluations"]["validation"]["loss"]
            for path in finished.glob(f"{CELLS}/*")
            if (result := read_result(path))["scheme"] == scheme
            and result["settings"]["learning_rate"] == found["learning_rate"]
        ]
        assert sorted(row["values"]) == sorted(losses)
        assert row["mean"] == pytest.approx(sum(losses) / 2)
        assert f"| `{scheme}` | {row['mean']:.3f} ({min(losses):.3f} to {max(losses):.3f}) |" in text


def made_up(folder: Path, losses: dict[str, list[float | None]], tasks: Iterable[str] = "a") -> dict:
    """The report of a study in which each scheme's seeds reached these losses, in each task alike."""
    answers = dict.fromkeys(tasks, ANSWERS)
    study = make_study(tiny_study(schemes=[*losses], seeds=[0, 1, 2], learning_rates=[1e-2], tasks=answers))
    template = {
        "curve": {"step": [2]},
        "baseline": {},
        "parameters": 1,
        "speed": {"seconds": 1.0, "tokens_per_second": 1.0},
    }
    write_study(study, folder)
    for (task, scheme, _, seed), cell in study.cells.items():
        score = losses[scheme][seed]
        result = {
            **copy.deepcopy(template),
            **{"task": task, "scheme": scheme, "settings": cell.settings},
            "evaluations": {"validation": {"loss": score, "accuracy": score}},
        }
        result["curve"] |= {"validation_loss": [score], "validation_accuracy": [score]}
        path = folder / CELLS / cell.name / RESULT
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(result))
    return report(folder)


def test_what_does_not_overlap_is_told_apart_and_nothing_else(tmp_path):
    """Accuracies: the greater one is better."""
    summary = made_up(
        tmp_path,
        {"rotary": [0.9, 0.8, 0.85], "t5": [0.5, 0.6, 0.55], "shaw": [0.7, 0.59, 0.6], "none": [0.1, None, 0.2]},
    )
    text = (tmp_path / "report.md").read_text()
    assert "- `rotary`: better than all that follow." in text
    assert "- `shaw`: not told apart from `t5`." in text
    assert "diverged in 1 of 3" in text
    task = summary["tasks"]["a"]
    for name, values in (("rotary", [0.7, 0.69, 0.999]), ("t5", [0.8, 0.79])):  # the third seed of t5 is not finished
        found = {"seeds": [0, 1, 2][: len(values)], "evaluations": {"validation": {"accuracy": spread(values)}}}
        task["schemes"][name] |= found
    unfinished = {**task, "schemes": {name: task["schemes"][name] for name in ("rotary", "t5")}}
    unfinished["differences"] = {"validation": differences(unfinished, "validation")}
    assert "- `rotary`: by the seeds that both have worse than `t5`." in words(unfinished, "validation")
    (row,) = [
        row
        for row in summary["tasks"]["a"]["differences"]["validation"]
        if {row["better"], row["worse"]} == {"rotary", "t5"}
    ]
    assert row["difference"] == pytest.approx(0.3)
    assert row["interval"][0] == pytest.approx(0.2)
    assert row["interval"][1] == pytest.approx(0.4)


def test_many_tasks_are_drawn_as_one_table_of_scores(tmp_path):
    summary = made_up(tmp_path, {"rotary": [0.9, 0.8, 0.86], "none": [0.1, None, 0.2]}, tasks="abcd")
    assert {path.name for path in tmp_path.glob("*.png")} == {"curves.png", "scores.png"}
    (panel,) = draw_scores(summary).axes
    assert [text.get_text() for text in panel.texts] == ["0.85"] * 4 + ["diverged"] * 4
    assert [label.get_text() for label in panel.get_yticklabels()] == ["rotary", "none"]
    assert [label.get_text() for label in panel.get_xticklabels()] == [*"abcd"]


def test_what_a_seed_that_diverged_lacks_the_others_show():
    places = [{"loss": 2.0, "share": 0.5, "by_place": [1.0, 3.0]}, {"loss": None, "by_place": []}]
    for order in (places, places[::-1]):
        seeds = {
            seed: {"evaluations": {"validation": scores}, "curve": {"step": []}, "parameters": 1}
            for seed, scores in enumerate(order)
        }
        found = over_seeds(seeds, {"steps": 0, "threshold": None})
        assert found["evaluations"]["validation"]["share"]["values"] == [scores.get("share") for scores in order]
        assert [row["mean"] for row in found["evaluations"]["validation"]["by_place"]] == [None, None]
        assert score_with_range(found, "validation", "share") == "diverged in 1 of 2"


def test_a_score_that_has_no_value_is_undefined_where_the_model_has_not_diverged():
    rows = {"loss": spread([1.0, 2.0]), "spearman": spread([0.5, None])}
    assert score_with_range({"evaluations": {"validation": rows}}, "validation", "spearman") == "undefined in 1 of 2"


def test_a_dollar_in_a_name_is_a_dollar(tmp_path):
    made_up(tmp_path, {"rotary": [0.9, 0.8, 0.86]}, tasks=["costs $_$"])
    assert (tmp_path / "curves.png").is_file()


@pytest.mark.parametrize("name", [RESULT, STUDY])
@pytest.mark.parametrize("content", ["", '{"a": 1', "<<<<<<< HEAD", "{}"])
def test_a_damaged_file_of_a_study_is_named(name, content, study_folder):
    path = next(study_folder.rglob(name))
    path.write_text(content)
    refused(lambda: report(study_folder), str(path))


def test_one_seed_tells_nothing_apart(study_folder):
    for path in study_folder.glob(f"{CELLS}/*seed1*"):
        shutil.rmtree(path)
    pairs = report(study_folder)["tasks"]["bytes"]["differences"]["validation"]
    assert pairs
    assert not any(row["separate"] for row in pairs)


def test_a_failed_cell_is_reported_and_the_others_go_on(tmp_path, monkeypatch):
    def fail(cell, folder):
        if cell.scheme == "learned":
            raise RuntimeError("no memory left")
        return train(cell, folder)

    train = cells.train
    (tmp_path / "study.yaml").write_text(json.dumps(tiny_study(seeds=[0], learning_rates=[1e-3])))  # JSON is YAML
    with monkeypatch.context() as patch:
        patch.setattr(cells, "train", fail)
        result = command(tmp_path / "study.yaml", "--output", tmp_path / "out", name="compare")
    assert result.exit_code == 1
    assert "1 cell failed" in result.stderr
    assert "RuntimeError: no memory left" in result.stderr
    assert "learned" in result.stderr
    assert "finished" in result.stderr
    assert "1 cell failed" in (tmp_path / "out/report.md").read_text().replace("**", "")
    refused = command("run", tmp_path / "study.yaml", "--output", tmp_path / "out", name="compare")
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert "--resume" in refused.stderr
    again = command("run", tmp_path / "study.yaml", "--output", tmp_path / "out", "--resume", name="compare")
    assert again.exit_code == 0, again.output
    assert "failed" not in (tmp_path / "out/report.md").read_text()
    assert "In " in command("report", tmp_path / "out", name="compare").stdout


def test_the_command_refuses_what_does_not_fit(tmp_path):
    (tmp_path / "study.yaml").write_text("steps: many")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    for arguments, sentence in (
        ((tmp_path / "study.yaml", "--output", tmp_path / "out"), "has no 'tasks'"),
        ((tmp_path / "none.yaml", "--output", tmp_path / "out"), "none.yaml"),
        (("report", tmp_path / "taken"), "study.json"),
    ):
        result = command(*arguments, name="compare")
        assert result.exit_code == 1
        assert sentence in result.stderr
        assert result.stderr.count("\n") == 1
    for changes, sentence in (({"workers": 0}, "workers is 0"), ({"backend": "threads"}, "'threads'")):
        refused(lambda changes=changes: compare(tiny_study(), tmp_path / "out", **changes), sentence)
    refused(lambda: compare(tiny_study(), tmp_path / "taken"), "taken", "resume")
    refused(lambda: compare(tiny_study(), tmp_path / "taken", resume=True), "taken", "study.json")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_a_cluster_that_is_not_installed_is_refused(tmp_path):
    refused(lambda: compare(tiny_study(), tmp_path / "out", backend="ray"), "'hf-rope[ray]'")
    assert not (tmp_path / "out").exists()


@pytest.mark.full
@pytest.mark.parametrize("backend", ["loky", "ray", "dask"])
def test_every_worker_finds_the_same(finished, backend, tmp_path):
    if backend != "loky":
        pytest.importorskip({"ray": "ray", "dask": "distributed"}[backend])
    assert compare(tiny_study(), tmp_path, workers=2, backend=backend) == {}
    names = {path.name for path in finished.glob(f"{CELLS}/*")}
    assert {path.name for path in tmp_path.glob(f"{CELLS}/*")} == names
    for name in names:
        one, other = (without_speed(read_result(folder / CELLS / name)) for folder in (finished, tmp_path))
        assert one == other


@pytest.mark.full
@pytest.mark.parametrize("when", ["begun", "before"])
def test_a_killed_worker_is_a_failed_cell_and_the_others_go_on(when, tmp_path):
    settings = tiny_study(seeds=[0], learning_rates=[1e-3], schemes=["none", "learned", "rotary"])
    run = subprocess.run(
        [sys.executable, "-c", WORKER_KILLED, json.dumps(settings), str(tmp_path), when], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    ((name, text),) = json.loads(run.stdout).items()
    assert "learned" in name
    assert "worker was killed" in text
    assert [*tmp_path.glob(f"{CELLS}/*rotary*/{RESULT}")]
    assert not [*tmp_path.glob(f"{CELLS}/*/{PROGRESS}")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_no_silent_way_to_the_cpu(tmp_path):
    mentions = ("device is 'cuda'", torch.__version__, "device: cpu")
    refused(lambda: compare(tiny_study(device="cuda"), tmp_path / "study"), *mentions)
    assert not (tmp_path / "study").exists()
    refused(lambda: run_cell(only_cell(device="cuda"), tmp_path / "cell"), *mentions)  # as a cluster's worker does


def test_several_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    refused(lambda: cells.require_device("cuda"), "4 GPUs", "CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize(
    ("precision", "known", "warned"),
    [
        ("bfloat16", {"avx2": True, "avx512_bf16": False}, True),
        ("bfloat16", {"avx512_bf16": True}, False),
        ("float32", {"avx2": True, "avx512_bf16": False}, False),
    ],
)
def test_emulated_bfloat16_is_no_silent_wait(tmp_path, monkeypatch, precision, known, warned):
    warnings = []
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    monkeypatch.setattr(runner.logger, "warning", warnings.append)
    monkeypatch.setattr(runner, "run_study", lambda *_: {})
    compare(tiny_study(precision=precision), tmp_path / "study")
    assert ["emulates" in text and "precision: float32" in text for text in warnings] == [True] * warned


def test_a_device_is_part_of_what_a_cell_is():
    assert only_cell().name == only_cell(device="cpu").name != only_cell(device="cuda").name


def test_models_are_kept_where_the_study_says_so(tmp_path):
    cell = only_cell(keep_model=True, tasks={"bytes": {**BYTES, "test_lengths": []}}, steps=2)
    run_cell(cell, tmp_path)
    assert {"config.json", "model.safetensors", "modeling_hf_rope.py"} <= {
        path.name for path in (tmp_path / "model").iterdir()
    }

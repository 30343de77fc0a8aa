"""Studies that start from another study's models: to fine-tune them, to measure them as they are, and to probe them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForMaskedLM

from helpers import refused
from hf_rope.compare import cell as cells
from hf_rope.compare import compare, report
from hf_rope.compare.cell import CELLS, MODEL, RESULT, build_model, build_task, read_result
from hf_rope.compare.study import make_study
from native_models import command
from studies import BYTES, tiny_start, tiny_study, write_rows

PAIRS = {
    **{"kind": "classification", "length": 24, "texts": ["sentence1", "sentence2"]},
    **{"train": ["mrpc/train.jsonl"], "validation": ["mrpc/validation.jsonl"]},
}
START = tiny_start(tokens_per_step=96, evaluate_every=6)
START["tasks"] = {"bytes": {**START["tasks"]["bytes"], "length": 24, "windows": [8, 24], "validation_tokens": 960}}
SCALED = {"start": "rotary", "rope_parameters": {"rope_type": "linear", "factor": 4.0}}
PLACES = {**BYTES, "kind": "masked_lm_by_place", "length": 24, "test_lengths": [48, 96], "parts": 12}
PLACES["validation_tokens"] = 960


def tiny_downstream(**changes):
    """Two pre-trained schemes and one from scratch, of which one has a second task."""
    settings = {
        **{"tasks": {"pairs": PAIRS, "short": {**PAIRS, "length": 12}}, "start": START, "from_scratch": ["rotary"]},
        **{"leave_out": {"short": ["learned", "rotary, from scratch"]}, "model": {"classifier_pooling": "mean"}},
        **{"learning_rates": [1e-3], "tokens_per_step": None, "sequences_per_step": 4, "steps": 2, "threshold": None},
    }
    return tiny_study(**{**settings, **changes})


def measured(task, schemes, **changes):
    """A study that measures the models of START as they are."""
    changes = {"seeds": [0], "learning_rates": [1e-3], "tokens_per_step": 96, **changes}
    return tiny_study(tasks={"a": task}, schemes=schemes, start=START, model={}, steps=0, threshold=None, **changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder)
    return folder


@pytest.fixture(autouse=True)
def in_data(data, monkeypatch):
    monkeypatch.chdir(data)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data) -> Path:
    """The folder of the fine-tuning, whose cells are all finished, and in it that of the study that it starts from."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(data)
        assert compare(tiny_downstream(), folder) == {}
        report(folder)
    return folder


@pytest.fixture
def start(finished) -> Path:
    return finished / "start"


def results(folder: Path) -> dict[tuple, dict]:
    found = [result for path in folder.glob(f"{CELLS}/*") if (result := read_result(path)) is not None]
    return {(result["task"], result["scheme"], result["settings"]["seed"]): result for result in found}


def weights_of(cell) -> dict[str, torch.Tensor]:
    return build_model(cell, build_task(cell)).state_dict()


def test_each_model_is_trained_once_and_shared(finished, start):
    names = {(scheme, seed) for _, scheme, seed in results(start)}
    assert names == {(scheme, seed) for scheme in ("learned", "rotary") for seed in (0, 1)}
    assert {path.name for path in start.glob(f"{CELLS}/*/*")} == {RESULT, MODEL}
    assert {path.name for path in finished.glob(f"{CELLS}/*/*")} == {RESULT}
    assert {(task, scheme) for task, scheme, _ in results(finished)} == {
        *(("pairs", scheme) for scheme in ("learned", "rotary", "rotary, from scratch")),
        ("short", "rotary"),
    }


def test_cells_start_from_the_weights_of_their_scheme_and_seed(start):
    """And what is new, the head, is the same under all schemes, and in the model from scratch."""
    study = make_study(tiny_downstream(), start_folder=start)
    heads = []
    for (task, scheme, _, seed), cell in study.cells.items():
        model = weights_of(cell)
        heads.append((seed, task, model["classifier.weight"]))
        name = scheme.removesuffix(", from scratch")
        trained = study.built_start.cell(name, seed)
        saved = AutoModelForMaskedLM.from_pretrained(start / CELLS / trained.name / MODEL).state_dict()
        encoder = {key: value for key, value in saved.items() if key.startswith("model.")}
        assert len(encoder) > 10
        same = [torch.equal(model[key], value) for key, value in encoder.items()]
        assert all(same) == (scheme == name)
    for one in heads:
        assert all(torch.equal(one[2], other[2]) == (one[0] == other[0]) for other in heads)


def test_a_cells_name_is_that_of_what_it_starts_from():
    def names(start):
        return {cell.name for cell in make_study(tiny_downstream(start=start)).cells.values()}

    before = names(START)
    scratch = {name for name in before if "from_scratch" in name}
    assert len(before) == 8
    assert len(scratch) == 2
    assert names({**START, "steps": 12}) & before == scratch
    assert names({**START, "question": "Other?"}) == before


def test_finished_cells_need_no_weights_and_others_say_what_is_missing(finished, tmp_path, monkeypatch):
    """Results alone can be kept; where one is to be added, its start has to be there."""
    shutil.copytree(finished, tmp_path / "all")
    copy = tmp_path / "all"
    (gone,) = copy.glob(f"{CELLS}/pairs-learned-*seed1*")
    shutil.rmtree(gone)
    for path in copy.glob(f"start/{CELLS}/*learned*seed1*/{MODEL}"):
        shutil.rmtree(path)
    failed = compare(tiny_downstream(), copy, resume=True)
    assert [*failed] == [gone.name]
    assert "which is not there" in failed[gone.name]
    shutil.copytree(finished / CELLS / gone.name, copy / CELLS / gone.name, dirs_exist_ok=True)
    shutil.rmtree(copy / "start")
    monkeypatch.setattr(cells, "train", None)
    assert compare(tiny_downstream(), copy, resume=True) == {}
    assert not (copy / "start").exists()


def test_a_failed_start_fails_what_starts_from_it_and_nothing_else(tmp_path, monkeypatch):
    def fail(cell, folder):
        if cell.scheme == "learned" and cell.start is None:
            raise RuntimeError("no memory left")
        return train(cell, folder)

    train = cells.train
    monkeypatch.setattr(cells, "train", fail)
    pairs = {"tasks": {"pairs": PAIRS}, "leave_out": {}, "seeds": [0], "start": {**START, "seeds": [0]}}
    failed = compare(tiny_downstream(**pairs), tmp_path)
    texts = {name.split("-")[0]: text for name, text in failed.items()}
    assert texts.keys() == {"bytes", "pairs"}
    assert "no memory left" in texts["bytes"]
    assert "which is not there" in texts["pairs"]
    assert {scheme for _, scheme, _ in results(tmp_path)} == {"rotary", "rotary, from scratch"}


def test_the_report_says_what_cells_start_from(finished, start):
    text = (finished / "report.md").read_text()
    assert "2 steps of 4 sequences" in text
    assert (
        "It starts from the weights of another study for the same scheme and seed, but for those from scratch." in text
    )
    assert "| `learned` | " in text
    assert "left out" in text
    assert "F1" in text
    assert "steps of 96 tokens" in (start / "report.md").read_text()
    summary = json.loads((finished / "results.json").read_text())
    assert summary["tasks"]["pairs"]["baseline"].keys() == {"accuracy", "f1"}


def test_a_started_study_is_run_from_files(finished, start, data, tmp_path):
    """By the command, several studies can start from one folder."""
    folder = tmp_path / "studies"
    folder.mkdir()
    (folder / "start.yaml").write_text(yaml.safe_dump(START))
    downstream = tiny_downstream(
        start="start.yaml", tasks={"pairs": PAIRS}, leave_out={}, schemes=["rotary"], seeds=[1]
    )
    (folder / "downstream.yaml").write_text(yaml.safe_dump(downstream))
    output = tmp_path / "out"
    result = command(folder / "downstream.yaml", "--output", output, "--start", start, name="compare")
    assert result.exit_code == 0, result.output
    assert "`start.yaml`" in (output / "report.md").read_text()
    assert not (output / "start").exists()
    for key, one in results(output).items():
        other = results(finished)[key]
        assert {**one, "speed": None} == {**other, "speed": None}


def test_folders_to_start_from_that_do_not_fit_are_refused(finished, start, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    refused(lambda: compare(tiny_downstream(), tmp_path / "out", start=tmp_path / "taken"), "study.json")
    refused(lambda: compare(tiny_study(), tmp_path / "out", start=start), "starts from another one")
    refused(lambda: compare(tiny_downstream(), finished, resume=True, start=finished), "starts from another one")
    assert not (tmp_path / "out").exists()


def test_models_are_measured_as_they_are_at_other_lengths_and_under_other_settings(start, tmp_path):
    """Scaling changes the configuration and no weight; a table refuses; places are parts of the window."""
    schemes = {"learned": None, "rotary": None, "rotary, linear": SCALED}
    settings = measured(PLACES, schemes)
    _, plain, scaled = (
        build_model(cell, build_task(cell)).eval() for cell in make_study(settings, start_folder=start).cells.values()
    )
    weights = scaled.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in plain.state_dict().items())
    ids = torch.arange(6, 102)[None]
    assert not torch.equal(plain(ids).logits, scaled(ids).logits)
    assert compare(settings, tmp_path / "out", start=start) == {}
    found = {scheme: result["evaluations"] for (_, scheme, _), result in results(tmp_path / "out").items()}
    trained = results(start)["bytes", "rotary", 0]["evaluations"]["validation"]["loss"]
    assert found["rotary"]["validation"]["loss"] == pytest.approx(trained, rel=1e-5)
    assert "24" in found["learned"]["96"]["refused"]
    for length in ("validation", "48", "96"):
        places = found["rotary"][length]["loss_by_place"]
        assert len(places) == 12
        assert min(places) < found["rotary"][length]["loss"] < max(places)
    report(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"by_length.png", "by_place.png"}
    assert "nothing is trained" in (tmp_path / "out/report.md").read_text()


def test_probes_tell_what_the_positions_have_learned(start, tmp_path):
    probes = {**BYTES, "kind": "position_probes", "length": 24, "test_lengths": [], "words": 2}
    assert compare(measured(probes, ["learned", "rotary"]), tmp_path / "out", start=start) == {}
    found = {
        scheme: result["evaluations"]["validation"] for (_, scheme, _), result in results(tmp_path / "out").items()
    }
    assert found["rotary"]["translation_invariance"] == pytest.approx(1)
    assert found["learned"]["translation_invariance"] < 0.99
    assert [len(scores["attention_by_distance"]) for scores in found.values()] == [13] * 2
    assert len(found["rotary"]["long_term_decay"]) == 7
    assert "long_term_decay" not in found["learned"]
    report(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"identical_words.png"}
    assert "translation invariance" in (tmp_path / "out/report.md").read_text()

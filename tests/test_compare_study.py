"""Studies are checked as a whole before anything runs, and every scheme gets the same budget."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from helpers import over, refused
from hf_rope import SCHEMES, HfRopeConfig
from hf_rope.compare.cell import build_model, build_task, build_trainer
from hf_rope.compare.settings import read_yaml
from hf_rope.compare.study import make_study, read_study
from hf_rope.compare.tasks import TASKS
from studies import ANSWERS, BYTES, GROWING, MODEL, tiny_start, tiny_study, write_rows

STUDIES = sorted((Path(__file__).parents[1] / "benchmarks/studies").glob("*.yaml"))
ALL = [*SCHEMES]


def cell_of(scheme: str, seed: int = 0, **changes):
    """A cell of the tiny study under a scheme."""
    study = make_study(tiny_study(**{"schemes": [scheme], "seeds": [seed], "learning_rates": [1e-2], **changes}))
    return next(iter(study.cells.values()))


REFUSALS = {
    "unknown key": ({"stpes": 3}, "'stpes'", "'steps'"),
    "unknown task": ({"tasks": {"bytes": {"kind": "masked"}}}, "'masked'", "masked_lm"),
    "task without a kind": ({"tasks": {"bytes": 3}}, "task 'bytes'", "None"),
    "unknown key of a task": ({"tasks": {"bytes": {**BYTES, "lenght": 3}}}, "'lenght'", "'length'"),
    "missing key of a task": ({"tasks": {"bytes": {"kind": "masked_lm"}}}, "task 'bytes'", "'length'"),
    "no file": ({"tasks": {"bytes": {**BYTES, "train": ["nowhere.txt"]}}}, "'nowhere.txt'", "task 'bytes'"),
    "no files": ({"tasks": {"bytes": {**BYTES, "validation": []}}}, "validation names no file"),
    "short text": ({"tasks": {"bytes": {**BYTES, "test_lengths": [10**6], "validation_tokens": 10**6}}}, "1000000"),
    "few tokens": ({"tasks": {"bytes": {**BYTES, "validation_tokens": 31}}}, "31", "32"),
    "share of masks": ({"tasks": {"bytes": {**BYTES, "mlm_probability": 0}}}, "mlm_probability is 0"),
    "length": ({"tasks": {"a": {**ANSWERS, "length": 0}}}, "length is 0"),
    "test length": ({"tasks": {"a": {**ANSWERS, "test_lengths": [-1]}}}, "test_lengths is -1"),
    "shortest": ({"tasks": {"a": {**ANSWERS, "shortest": 17}}}, "shortest is 17"),
    "symbols": ({"tasks": {"a": {**ANSWERS, "symbols": 1}}}, "symbols is 1", "from 2 to 1000"),
    "no examples": ({"tasks": {"a": {**ANSWERS, "evaluation_examples": 0}}}, "evaluation_examples is 0"),
    "distance": ({"tasks": {"a": {**ANSWERS, "kind": "token_at_distance", "distance": 4}}}, "distance is 4", "3"),
    "place": ({"tasks": {"a": {**ANSWERS, "kind": "token_at_place", "place": 4}}}, "place is 4", "3"),
    "unknown scheme": ({"schemes": ["rotery"]}, "'rotery'", "'rotary'"),
    "scheme's settings": ({"schemes": {"rotary": 3}}, "scheme 'rotary' is 3"),
    "unknown key of a scheme": ({"schemes": {"rotary": {"rope_theta_": 3}}}, "'rope_theta_'", "scheme 'rotary'"),
    "unknown key of the model": ({"model": {"hidden_sise": 3}}, "'hidden_sise'", "'hidden_size'"),
    "one scheme for all": (
        {"model": {**MODEL, "position_embedding_type": "shaw"}},
        *("model has position_embedding_type='shaw'", "schemes"),
    ),
    "a scheme under the name of another": (
        {"schemes": {"rotary": {"position_embedding_type": "learned"}}},
        *("scheme 'rotary'", "'learned'", "a name of its own"),
    ),
    "unknown key of training": ({"training": {"warmup": 3}}, "'warmup'", "'warmup_steps'"),
    "training": ({"training": {"lr_scheduler_type": "steep"}}, "training: steep"),
    "what a cell sets": ({"training": {"max_steps": 3}}, "'max_steps'"),
    "type": ({"steps": "many"}, "steps", "many"),
    "precision": ({"precision": "float16"}, "precision", "float16"),
    "device": ({"device": "gpu"}, "device", "gpu"),
    "no seeds": ({"seeds": []}, "seeds is []"),
    "a seed twice": ({"seeds": [1, 1]}, "seeds is [1, 1]"),
    "negative seed": ({"seeds": [-1]}, "seeds is [-1]"),
    "no steps": ({"steps": 0}, "steps is 0"),
    "learning rate": ({"learning_rates": [0.0]}, "learning_rates is [0.0]"),
    "no number for a rate": ({"learning_rates": [1e-3, float("nan")]}, "learning_rates is [0.001, nan]"),
    "endless rate": ({"learning_rates": [float("inf")]}, "learning_rates is [inf]"),
    "threshold": ({"threshold": float("nan")}, "threshold is nan"),
    "a seed in quotes": ({"seeds": ["0"]}, "seeds[0]", "expected int, got str"),
    "a word for a list": ({"leave_out": {"bytes": "none"}}, "leave_out['bytes']", "expected a list"),
    "accumulated gradients": ({"training": {"gradient_accumulation_steps": 4}}, "'gradient_accumulation_steps'"),
    "checkpoints without optimizer": ({"training": {"save_only_model": True}}, "'save_only_model'"),
    **{
        f"what changes the measure, {key}": ({"training": {key: value}}, repr(key))
        for key, value in {
            **{"label_smoothing_factor": 0.1, "dataloader_drop_last": True, "dataloader_persistent_workers": True},
            **{"bf16_full_eval": True, "fp16_full_eval": True},
        }.items()
    },
    "probes without scores": (
        {"tasks": {"a": {**BYTES, "kind": "position_probes"}}, "model": {**MODEL, "attention_type": "linear"}},
        *("attention_type='linear' has no scores", "'a'"),
    ),
    "a start that sees less": (
        {"start": tiny_start(tasks={"bytes": {**BYTES, "kind": "causal_lm"}}), "model": {}},
        *("is_decoder=True", "has False", "whose tokens see the same others"),
    ),
    "what is not installed": ({"training": {"deepspeed": "x.json"}}, "training: "),
    "a hidden name": ({"schemes": {"_t5": {"position_embedding_type": "t5"}}}, "'_t5' begins with _"),
    "a task without a scheme": ({"leave_out": {"bytes": ["learned", "rotary"]}}, "every scheme of task 'bytes'"),
    "few tokens of the model": ({"model": {**MODEL, "vocab_size": 50}}, "vocab_size is 50", "262"),
    "last step": ({"steps": 7}, "steps=7", "evaluate_every=2"),
    "tokens": ({"tokens_per_step": 65}, "tokens_per_step=65", "length=16"),
    "scheme and attention": ({"model": {**MODEL, "attention_type": "linear"}, "schemes": ["t5"]}, "'t5'", "'bytes'"),
    "no budget": ({"tokens_per_step": None}, "tokens_per_step is None", "sequences_per_step is None"),
    "two budgets": ({"sequences_per_step": 4}, "tokens_per_step is 64", "sequences_per_step is 4"),
    "no sequences": ({"tokens_per_step": None, "sequences_per_step": 0}, "sequences_per_step is 0"),
    "no windows": ({"tasks": {"a": {**GROWING, "windows": []}}}, "windows is []", "16"),
    "windows that shrink": ({"tasks": {"a": {**GROWING, "windows": [8, 4, 16]}}}, "windows is [8, 4, 16]"),
    "windows that divide nothing": ({"tasks": {"a": {**GROWING, "windows": [5, 16]}}}, "windows has 5", "length=16"),
    "parts": ({"tasks": {"a": {**BYTES, "kind": "masked_lm_by_place", "parts": 5}}}, "parts is 5", "16"),
    "words": ({"tasks": {"a": {**BYTES, "kind": "position_probes", "words": 0}}}, "words is 0"),
    "short probes": ({"tasks": {"a": {**BYTES, "kind": "position_probes", "length": 4}}}, "length is 4"),
    "left out": ({"leave_out": {"bytes": ["rotery"]}}, "'rotery'", "leave_out of 'bytes'"),
    "left out of nothing": ({"leave_out": {"byte": []}}, "'byte'", "'bytes'"),
    "from scratch without a start": ({"from_scratch": ["rotary"]}, "from_scratch is ['rotary']"),
    "a start that is not there": ({"start": "none.yaml"}, "start: ", "none.yaml"),
    "a start without weights": ({"start": tiny_start(keep_model=False)}, "keep_model=False"),
    "a start of two rates": ({"start": tiny_start(learning_rates=[0.1, 0.2])}, "2 learning rates"),
    "a start of other seeds": ({"start": tiny_start(seeds=[1])}, "seeds has 0"),
    "a start of other schemes": ({"start": tiny_start(schemes=["none", "t5"])}, "'learned'", "none, t5"),
    "a start of another size": ({"start": tiny_start(), "model": {"hidden_size": 32}}, "'learned'", "(262, 16)"),
    "from scratch, unknown": ({"start": tiny_start(), "model": {}, "from_scratch": ["rotery"]}, "'rotery'"),
    "a name for a start": ({"schemes": {"rotary": {"start": "rotary"}}}, "'start'", "scheme 'rotary'"),
    "positions' rate": ({"schemes": {"t5": {"position_lr_multiplier": 0}}}, "position_lr_multiplier=0", "'t5'"),
    "attention": ({"model": {**MODEL, "attn_implementation": "eger"}}, "'eger'", "eager"),
    "scheme and length": ({"model": {**MODEL, "max_position_embeddings": 8}}, "'learned'", "'bytes'", "16"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_does_not_fit_is_refused(name):
    changes, *mentions = REFUSALS[name]
    refused(lambda: make_study(tiny_study(**changes)), *mentions)


def test_a_file_that_is_no_study_is_refused(tmp_path):
    refused(lambda: read_study(tmp_path / "none.yaml"), "none.yaml")
    for text in ("- a", "a: [", "", "seeds: [0]\nseeds: [1]", "tasks: {a: 1, a: 2}"):
        (tmp_path / "study.yaml").write_text(text)
        refused(lambda: read_study(tmp_path / "study.yaml"), "study.yaml")


def test_a_study_that_starts_from_itself_is_refused(tmp_path):
    for name, start in (("one", "two"), ("two", "one"), ("self", "self")):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tiny_start(start=f"{start}.yaml")))
    for path in (tmp_path / "one.yaml", tmp_path / "self.yaml"):
        refused(lambda path=path: read_study(path), f"{path} is a study that starts from itself")


@pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "0.001", "1E-3"])
def test_learning_rates_are_numbers_however_they_are_written(text, tmp_path):
    (tmp_path / "study.yaml").write_text(f"rate: {text}")
    assert read_yaml(tmp_path / "study.yaml") == {"rate": 0.001}


def test_files_are_found_from_the_studys_folder_or_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "study").mkdir()
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path / "study", tmp_path):
        for name in ("train", "validation"):
            (place / f"{name}.txt").write_text("some bytes to read " * 9)
        task = {**BYTES, "train": ["train.txt"], "validation": ["validation.txt"]}
        (tmp_path / "study/study.yaml").write_text(yaml.safe_dump(tiny_study(tasks={"bytes": task})))
        study = read_study("study/study.yaml")
        (paths,) = {tuple(cell.paths.values()) for cell in study.cells.values()}
        assert paths == (str(place / "train.txt"), str(place / "validation.txt"))
        for path in place.glob("*.txt"):
            path.unlink()


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_studies_fit(path, tmp_path, monkeypatch):
    write_rows(tmp_path)
    monkeypatch.chdir(tmp_path)
    study = read_study(path)
    assert len(study.seeds) == 3
    assert len({cell.name for cell in study.cells.values()}) == len(study.cells)


def test_a_cells_name_is_that_of_all_that_decides_its_result(tmp_path):
    names = {cell_of("rotary").name}
    assert cell_of("rotary", threshold=1.0, question="Other?", keep_model=True).name in names
    for changes in (
        {"steps": 8},
        {"evaluate_every": 3},
        {"precision": "bfloat16"},
        {"tokens_per_step": 128},
        {"training": {"warmup_steps": 2}},
        {"model": {**MODEL, "hidden_size": 32}},
        {"tasks": {"bytes": {**BYTES, "mlm_probability": 0.3}}},
    ):
        names.add(cell_of("rotary", **changes).name)
    names |= {cell_of("rotary", seed=1).name, cell_of("learned").name}
    text = tmp_path / "other.txt"
    for content in ("other text " * 9, "other texts " * 9):
        text.write_text(content)
        names.add(cell_of("rotary", tasks={"bytes": {**BYTES, "train": [str(text)]}}).name)
    assert len(names) == 12
    options = HfRopeConfig(position_embedding_type="rotary").position_options
    assert cell_of("rotary").settings["config"]["position_options"] == options


def test_a_study_of_sequences_has_as_many_in_tasks_of_every_length():
    tasks = {"short": BYTES, "long": {**BYTES, "length": 32, "test_lengths": []}}
    cells = make_study(tiny_study(tasks=tasks, tokens_per_step=None, sequences_per_step=4)).cells
    assert {(task, cell.settings["tokens_per_step"]) for (task, *_), cell in cells.items()} == {
        ("short", 64),
        ("long", 128),
    }


@pytest.mark.parametrize("multiplier", [None, 1, 7])
def test_positions_learn_at_the_rate_that_a_study_gives(multiplier, tmp_path):
    given = {} if multiplier is None else {"position_lr_multiplier": multiplier}
    cell = cell_of("t5", schemes={"t5": given})
    trainer = build_trainer(cell, build_task(cell), tmp_path)
    trainer.create_optimizer_and_scheduler(num_training_steps=4)
    table = {*trainer.model.base_model.position.parameters()}
    (rate,) = {group["initial_lr"] for group in trainer.optimizer.param_groups if table & {*group["params"]}}
    assert rate == pytest.approx(1e-2 * (100 if multiplier is None else multiplier))
    assert cell.settings.get("position_lr_multiplier") == multiplier
    assert cell.settings["lr_multipliers"] == ({"bias": 100.0} if multiplier is None else {})


def test_the_attention_that_a_study_gives_is_the_models():
    cell = cell_of("t5", model={**MODEL, "attn_implementation": "eager"})
    assert build_model(cell, build_task(cell)).config._attn_implementation == "eager"
    assert build_model(cell_of("t5"), build_task(cell)).config._attn_implementation == "sdpa"


def test_what_only_other_studies_use_is_in_no_cells_settings():
    """So that results of earlier versions are still those of their cells."""
    settings = cell_of("rotary").settings
    assert [*settings] == [
        *("task", "files", "config", "seed", "learning_rate", "lr_multipliers", "steps", "tokens_per_step"),
        *("evaluate_every", "precision", "training"),
    ]
    assert {*settings["task"]} == {
        *("kind", "length", "test_lengths", "train", "validation", "validation_tokens", "mlm_probability"),
    }


def test_a_scheme_is_left_out_of_a_task():
    tasks = {"short": BYTES, "long": {**BYTES, "length": 32, "test_lengths": []}}
    study = make_study(tiny_study(tasks=tasks, leave_out={"long": ["learned"]}))
    pairs = {(task, scheme) for task, scheme, *_ in study.cells}
    assert pairs == {("short", "learned"), ("short", "rotary"), ("long", "rotary")}


@pytest.fixture(scope="module")
def models():
    """The initial model of each scheme."""
    return {scheme: build_model(cell := cell_of(scheme), build_task(cell)) for scheme in SCHEMES}


@over(scheme=ALL)
def test_schemes_start_from_the_same_values_in_all_that_they_share(scheme, models):
    own = models[scheme].state_dict()
    for other, model in models.items():
        shared = {key: x for key, x in model.state_dict().items() if key in own and own[key].shape == x.shape}
        assert len(shared) >= 20
        for key, x in shared.items():
            assert torch.equal(own[key], x), (other, key)
    assert own.keys() >= models["none"].state_dict().keys()


def test_another_seed_starts_from_other_values():
    first, other = (build_model(cell_of("rotary", seed), build_task(cell_of("rotary"))) for seed in (0, 1))
    assert not torch.equal(first.lm_head.decoder.weight, other.lm_head.decoder.weight)


def batches_of(cell, folder: Path) -> tuple[list, list]:
    """All batches of training, and of an evaluation."""
    trainer = build_trainer(cell, build_task(cell), folder)
    torch.manual_seed(hash(cell.scheme) % 1000)  # whatever random numbers a model has used
    return [*trainer.get_train_dataloader()], [*trainer.get_eval_dataloader()]


def same(batches: list, others: list) -> bool:
    pairs = zip(batches, others, strict=True)
    return all(x.keys() == y.keys() and all(torch.equal(x[key], y[key]) for key in x) for x, y in pairs)


@pytest.mark.parametrize(
    "task", [BYTES, GROWING, {**BYTES, "kind": "causal_lm"}, ANSWERS], ids=lambda task: task["kind"]
)
def test_schemes_get_the_same_batches_with_the_same_masks(task, tmp_path):
    training, evaluation = zip(
        *(batches_of(cell_of(scheme, tasks={"a": task}), tmp_path) for scheme in ("rotary", "t5", "learned")),
        strict=True,
    )
    assert len(training[0]) == 6
    assert all(batch["input_ids"].numel() == 64 for batch in training[0])
    assert all(same(training[0], other) for other in training[1:])
    assert all(same(evaluation[0], other) for other in evaluation[1:])
    other_training, other_evaluation = batches_of(cell_of("rotary", seed=1, tasks={"a": task}), tmp_path)
    assert not same(training[0], other_training)
    assert same(evaluation[0], other_evaluation)


def test_random_features_follow_from_the_seed():
    changes = {"model": {**MODEL, "attention_type": "linear", "feature_map": "favor"}}
    first, again, other = (cell_of("rotary", seed, **changes) for seed in (0, 0, 1))
    one, two, three = (
        [x for key, x in build_model(cell, build_task(cell)).state_dict().items() if "feature" in key]
        for cell in (first, again, other)
    )
    assert one
    assert all(map(torch.equal, one, two))
    assert not any(map(torch.equal, one, three))


def test_settings_are_plain():
    cell = cell_of("rotary")
    assert json.loads(json.dumps(cell.settings)) == cell.settings
    assert str(Path(__file__).parent) not in json.dumps({**cell.settings, "task": None})


def test_each_kind_of_task_is_in_a_study():
    named = {task["kind"] for path in STUDIES for task in read_yaml(path)["tasks"].values()}
    assert named == {*TASKS}

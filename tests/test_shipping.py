"""A saved checkpoint carries its code: the six rules, and loading it where the package is absent."""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from transformers import AutoModelForMaskedLM, BertTokenizer, Trainer, TrainingArguments
from transformers.dynamic_module_utils import get_relative_import_files, get_relative_imports

import hf_rope
from heads import HEADS
from helpers import CASES, FEW, over, tiny_config, token_ids
from hf_rope.model.configuration_hf_rope import AUTO_MAP

FOLDER = Path(hf_rope.__file__).parent / "model"
FILES = sorted(path for path in FOLDER.glob("*.py") if path.name != "__init__.py")
SHIPPED = {path.name for path in FILES}
THIRD_PARTY = {"torch", "transformers", "huggingface_hub"}
CLASSES = {head.model: name for name, head in HEADS.items() if name != "pre-training"}  # the last row of each class
SCRIPT = Path(__file__).with_name("fresh_process.py")
PROMPT = token_ids(1, 4)
EXACT = {"rtol": 0, "atol": 0}
COMPLETE = ("rotary", "shaw")  # the schemes whose every head is tried in every way


def close(actual, expected) -> None:
    """Equal but for the order of sums, which follows the place of the weights in memory."""
    for x, y in zip(*((z,) if isinstance(z, torch.Tensor) else z for z in (actual, expected)), strict=True):
        steps = 32 if x.element_size() > 2 else 2
        torch.testing.assert_close(x, y, rtol=0, atol=steps * torch.finfo(y.dtype).eps * y.abs().max().item())


per_file = pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])


def test_what_transformers_copies_is_exactly_the_folder():
    start = FOLDER / "modeling_hf_rope.py"
    reached = {start, *map(Path, get_relative_import_files(start))}
    assert reached == set(FILES)
    assert {path.name for path in FOLDER.iterdir()} - {"__pycache__"} == {*SHIPPED, "__init__.py"}
    assert (FOLDER / "__init__.py").read_text() == ""


@pytest.mark.full
def test_an_older_transformers_is_refused_and_the_oldest_is_the_same_everywhere():
    """Attention of transformers before 5.14 would leave a position_bias out, without a word."""
    lowest = re.search(r'"transformers>=([\d.]+),', (FOLDER.parents[1] / "pyproject.toml").read_text())[1]
    code = (
        "import importlib.metadata as metadata\ninstalled = metadata.version\n"
        "metadata.version = lambda name: '5.13.1' if name == 'transformers' else installed(name)\nimport hf_rope"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=FOLDER.parents[1])
    assert done.returncode != 0
    assert f"transformers>={lowest} is required" in done.stderr


@per_file
def test_relative_imports_are_from_one_dot_and_one_name(path):
    imports = [
        node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert all(node.level == 1 and node.module and "." not in node.module for node in imports)
    assert all(f"{node.module}.py" in SHIPPED for node in imports)
    assert all(alias.name != "*" for node in imports for alias in node.names)


@per_file
def test_the_text_names_no_file_but_those_imported(path):
    """Holds docstrings too: transformers searches the text, and a line that begins with `from .` would count."""
    text = path.read_text()
    imported = {node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) and node.level}
    assert {*get_relative_imports(path)} == imported
    strings = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
    assert not [x for x in strings if isinstance(x, str) and re.search(r"^\s*(from|import)\s+\.", x, re.MULTILINE)]


@per_file
def test_other_imports_are_of_the_standard_library_or_of_what_every_user_has(path):
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.partition(".")[0])
    assert names <= THIRD_PARTY | sys.stdlib_module_names
    assert "importlib" not in names
    assert "__import__" not in path.read_text()


def test_the_auto_map_names_a_class_for_every_head():
    assert {*AUTO_MAP} == {"AutoConfig", *(head.auto for head in HEADS.values())}
    for auto, reference in AUTO_MAP.items():
        module, name = reference.split(".")
        assert f"{module}.py" in SHIPPED
        shipped = getattr(importlib.import_module(f"hf_rope.model.{module}"), name)
        assert [shipped.__name__] == list(
            {head.model for head in HEADS.values() if head.auto == auto} or {"HfRopeConfig"}
        )


@over(case=CASES, name=CLASSES.values())
def test_every_tensor_of_a_model_is_saved(case, name):
    model = HEADS[name].build(case)
    for path, module in model.named_modules():
        assert not module._non_persistent_buffers_set, path
        assert not [key for key, value in vars(module).items() if isinstance(value, torch.Tensor)], path


@pytest.mark.parametrize("name", HEADS)
def test_save_pretrained_writes_code_and_the_whole_auto_map(name, tmp_path):
    HEADS[name].build("shaw").save_pretrained(tmp_path)
    assert_complete({path.name: path.read_bytes() for path in tmp_path.iterdir()})


def assert_complete(files: dict[str, bytes]) -> None:
    for path in FILES:
        assert files[path.name] == path.read_bytes(), path.name
    assert {name for name in files if name.endswith(".py")} == SHIPPED
    assert json.loads(files["config.json"])["auto_map"] == AUTO_MAP
    assert files["model.safetensors"]


@pytest.fixture
def pushed(monkeypatch):
    """What push_to_hub uploads, by repository and file."""
    uploads: dict[str, dict[str, bytes]] = {}

    def create_repo(self, repo_id, **kwargs):
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def create_commit(self, repo_id, operations, **kwargs):
        for operation in operations:
            with operation.as_file() as file:
                uploads.setdefault(repo_id, {})[operation.path_in_repo] = file.read()

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", create_commit)
    return uploads


@pytest.mark.parametrize("name", HEADS)
def test_push_to_hub_uploads_code_weights_and_the_whole_auto_map(name, pushed, tmp_path):
    model = HEADS[name].build("t5")
    model.push_to_hub("me/model")
    assert {*pushed} == {"me/model"}
    assert_complete(pushed["me/model"])
    write(tmp_path, pushed["me/model"])
    loaded = HEADS[name].model_class.from_pretrained(tmp_path)
    inputs = HEADS[name].batch()
    close(loaded(**inputs).to_tuple(), model(**inputs).to_tuple())


def write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def write_hub_cache(root: Path, repo_id: str, files: dict[str, bytes]) -> None:
    """The layout of a downloaded repository: contents in blobs, links to them in snapshots, the commit in refs."""
    repo, commit = root / f"models--{repo_id.replace('/', '--')}", "0123456789abcdef0123456789abcdef01234567"
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    write(repo / "refs", {"main": commit.encode()})
    write(repo / "blobs", files)
    for name in files:
        (snapshot / name).symlink_to(Path("../../blobs") / name)


def run_fresh_process(folder: Path, package: str, rows: list[dict], **more) -> list[dict]:
    """Runs fresh_process.py with caches of its own, offline, and returns its results."""
    inputs = {"prompt": PROMPT, **{name: HEADS[name].batch() for name in HEADS}}
    files = {"inputs": str(folder / "inputs.pt"), "results": str(folder / "results.pt")}
    torch.save(inputs, files["inputs"])
    (folder / "job.json").write_text(json.dumps({"package": package, "rows": rows, **files, **more}))
    (folder / "empty").mkdir()
    own = {"HF_HOME": str(folder / "home"), "HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1"}
    own |= {
        "HF_HUB_CACHE": str(folder / "hub"),
        "TRANSFORMERS_VERBOSITY": "warning",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    command = [sys.executable, str(SCRIPT), str(folder / "job.json")]
    done = subprocess.run(command, env={**os.environ, **own}, cwd=folder / "empty", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "has no key" not in done.stderr
    return torch.load(files["results"])


def row(source, head: str, *, trust: bool = True, resave=None, **settings) -> dict:
    return {
        "settings": settings,
        **{"source": str(source), "auto": HEADS[head].auto, "head": head, "trust": trust},
        **{"resave": None if resave is None else str(resave)},
    }


@pytest.mark.parametrize("where", [pytest.param("folder", marks=pytest.mark.full), "hub cache"])
def test_without_the_package_every_head_of_every_scheme_loads_by_the_code_it_carries(where, tmp_path, pushed):
    rows, models = [], []
    for scheme in hf_rope.SCHEMES:
        for name in CLASSES.values():
            full = name == "masked-lm" or scheme in COMPLETE
            model, source = HEADS[name].build(scheme), tmp_path / f"{scheme}-{name}"
            if where == "folder":
                model.save_pretrained(source)
            elif full:
                source = f"me/{scheme}-{name}"
                model.push_to_hub(source)
                write_hub_cache(tmp_path / "hub", source, pushed.pop(source))
            else:
                continue
            rows.append(row(source, name, resave=tmp_path / "again" / f"{scheme}-{name}" if full else None))
            models.append(model)
    tokenizer = tmp_path / "tokenizer"
    hf_rope.HfRopeForMaskedLM(tiny_config("none")).save_pretrained(tokenizer)
    (tokenizer / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\ncat\nplay\n##ing\n")
    BertTokenizer.from_pretrained(tokenizer).save_pretrained(tokenizer)

    *results, words = run_fresh_process(tmp_path, "absent", rows, tokenizer=str(tokenizer))

    assert words == {"ids": [2, 5, 6, 7, 8, 3]}
    for asked, model, result in zip(rows, models, results, strict=True):
        check(asked, model, result, "transformers_modules.")


@pytest.mark.full
def test_without_the_package_a_masked_lm_checkpoint_loads_under_every_other_head(tmp_path):
    rows, models = [], []
    for scheme in hf_rope.SCHEMES:
        model = HEADS["masked-lm"].build(scheme)
        model.save_pretrained(tmp_path / scheme)
        for name in CLASSES.values():
            reads = {"is_decoder": HEADS[name].config.get("is_decoder", False), "use_cache": False}
            rows.append(row(tmp_path / scheme, name, **reads))
            models.append(HEADS["encoder"].model_class.from_pretrained(tmp_path / scheme, **reads).eval())
    for asked, model, result in zip(rows, models, run_fresh_process(tmp_path, "absent", rows), strict=True):
        own = ("lm_head.", "classifier.", "qa_outputs.", "pooler.", "model.pooler.")
        assert all(key.startswith(own) for key in result["strangers"]), asked
        assert bool(result["strangers"]) == (asked["head"] not in ("masked-lm", "causal-lm"))
        close(result["encoded"], model(**HEADS["encoder"].batch()).last_hidden_state)


@pytest.mark.full
@pytest.mark.parametrize("package", ["present", "late"])
def test_with_the_package_trust_on_and_off_agree(package, tmp_path):
    rows, models = [], []
    for scheme in hf_rope.SCHEMES:
        for name in CLASSES.values() if scheme in COMPLETE else ["masked-lm"]:
            model, source = HEADS[name].build(scheme), tmp_path / f"{scheme}-{name}"
            model.save_pretrained(source)
            for trust in (True, False):
                rows.append(row(source, name, trust=trust, resave=tmp_path / "again" / f"{trust}-{scheme}-{name}"))
                models.append(model)
    results = run_fresh_process(tmp_path, package, rows)
    for asked, model, result in zip(rows, models, results, strict=True):
        carried = package == "late" and result is results[0]
        check(asked, model, result, "transformers_modules." if carried else "hf_rope.")
        # Ours again, whichever class saved it.
        back = HEADS[asked["head"]].model_class.from_pretrained(asked["resave"])
        close(back(**HEADS[asked["head"]].batch()).to_tuple(), result["output"])


def check(asked: dict, model, result: dict, module: str) -> None:
    """A checkpoint gave the class, the outputs and, saved again, the files and outputs that `model` has."""
    assert result["module"].startswith(module), asked
    assert result["class"] == HEADS[asked["head"]].model, asked
    assert not result["strangers"], asked
    output = model(**HEADS[asked["head"]].batch()).to_tuple()
    close(result["output"], output)
    if model.can_generate():
        assert torch.equal(result["generated"], model.generate(PROMPT, max_new_tokens=5))
    if asked["resave"]:
        close(result["again"], output)
        assert_complete({path.name: path.read_bytes() for path in Path(asked["resave"]).iterdir()})


DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


@over(case=CASES, dtype=DTYPES)
def test_loading_through_the_meta_device_changes_nothing(case, dtype, tmp_path):
    model, inputs = HEADS["masked-lm"].build(case), HEADS["masked-lm"].batch()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path, dtype=dtype)
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {DTYPES[dtype]}
    model.to(DTYPES[dtype])
    torch.testing.assert_close(dict(loaded.state_dict()), dict(model.state_dict()), **EXACT)
    close(loaded(**inputs).logits, model(**inputs).logits)
    loaded.save_pretrained(tmp_path / "again")
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "again", dtype="auto")
    assert again.dtype == DTYPES[dtype]
    close(again(**inputs).logits, loaded(**inputs).logits)


@over(quick=FEW, scheme=hf_rope.SCHEMES)
def test_a_resumed_training_equals_the_uninterrupted_one(scheme, tmp_path):
    ids = token_ids(16, 8)
    rows = [{"input_ids": row, "labels": torch.where(torch.arange(8) % 3 == 0, row, -100)} for row in ids]

    def train(folder: str, resume: str | None = None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = hf_rope.HfRopeForMaskedLM(tiny_config(scheme, hidden_dropout_prob=0.1))
        arguments = TrainingArguments(
            output_dir=str(tmp_path / folder),
            per_device_train_batch_size=4,
            max_steps=4,
            save_steps=2,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        Trainer(model=model, args=arguments, train_dataset=rows).train(resume_from_checkpoint=resume)
        return model.state_dict()

    whole = train("whole")
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    assert {path.name for path in checkpoint.iterdir()} >= SHIPPED
    halfway = AutoModelForMaskedLM.from_pretrained(checkpoint).state_dict()
    assert any(not torch.equal(halfway[key], whole[key]) for key in whole)
    resumed = train("resumed", str(checkpoint))
    torch.testing.assert_close(dict(resumed), dict(whole), rtol=0, atol=1e-6)

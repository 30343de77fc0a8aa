"""`python -m hf_rope.run SCRIPT`: the script runs as it would alone, but for hf_rope being registered."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import tiny_config
from hf_rope.run import run

ROOT = Path(__file__).parents[1]

REPORT = """
import json, os, sys
import beside
main = sys.modules["__main__"]
print(json.dumps({
    "name": __name__, "file": __file__, "argv": sys.argv, "path": sys.path, "here": os.getcwd(), "beside": beside.HERE,
    "main": [main.__file__, main.json is json], "registered": "hf_rope" in sys.modules,
}))
"""

ARGUMENTS = """
from __future__ import annotations
from dataclasses import dataclass
from transformers import AutoConfig, AutoModel, HfArgumentParser

@dataclass
class Folder:
    folder: str

(arguments,) = HfArgumentParser(Folder).parse_args_into_dataclasses()
print(type(AutoModel.from_config(AutoConfig.from_pretrained(arguments.folder))).__module__)
"""

WORKERS = """
import dataclasses, pickle
from transformers import AutoConfig
from torch.utils.data import DataLoader

@dataclasses.dataclass
class Item:
    value: "int"

class Squares:
    config = AutoConfig.for_model("hf_rope")
    def __len__(self):
        return 4
    def __getitem__(self, index):
        assert AutoConfig.for_model("hf_rope").model_type == "hf_rope"
        return Item(index * index)

def collate(items):
    return items, __name__

def squared(row):
    return {"value": Squares()[row["root"]].value}

if __name__ == "__main__":
    squares = Squares()
    assert pickle.loads(pickle.dumps(collate)) is collate
    for start in ("fork", "spawn"):
        loader = DataLoader(squares, 2, collate_fn=collate, num_workers=2, multiprocessing_context=start)
        for items, name in loader:
            print(*(item.value for item in items), name)
    from datasets import Dataset  # last: it sets "__mp_main__" itself, which the loaders must find as it was
    rows = Dataset.from_dict({"root": range(4)}).map(squared, num_proc=2)
    print(*rows["value"])
"""


def launch(*command: object, folder: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, cwd=folder, env=environment
    )


def write(path: Path, code: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code)
    return path


@pytest.fixture
def report(tmp_path) -> Path:
    write(tmp_path / "scripts" / "beside.py", "HERE = 'beside the script'")
    return write(tmp_path / "scripts" / "report.py", REPORT)


@pytest.fixture
def in_process(monkeypatch):
    """run(), after which this process is as it was."""
    for name in ("__main__", "__mp_main__"):
        monkeypatch.setitem(sys.modules, name, sys.modules[name])
    monkeypatch.setattr(sys, "argv", ["run"])
    monkeypatch.setenv("HF_ROPE_SCRIPT", "")
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    return run


def test_a_script_sees_what_it_would_see_alone(report, tmp_path):
    arguments = ["scripts/report.py", "--flag", "a b", "-m", "--", "-x"]
    alone = json.loads(launch(*arguments, folder=tmp_path).stdout)
    done = launch("-m", "hf_rope.run", *arguments, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {**alone, "registered": True}
    assert alone["argv"] == arguments
    assert not alone["registered"]


def test_hf_rope_is_registered_and_a_link_leads_to_its_scripts_folder(tmp_path, in_process, capsys):
    tiny_config("shaw").save_pretrained(tmp_path / "model")
    script, link = write(tmp_path / "real" / "script.py", ARGUMENTS), tmp_path / "link.py"
    link.symlink_to(script)
    in_process([str(link), "--folder", str(tmp_path / "model")])
    assert capsys.readouterr().out == "hf_rope.model.modeling_hf_rope\n"
    assert sys.path[0] == str(script.parent)
    assert sys.modules["__main__"].__file__ == str(link)


@pytest.mark.parametrize(
    ("code", "error", "text"),
    [
        ("import sys; sys.exit(7)", SystemExit, "7"),
        ("import sys; sys.exit('no data')", SystemExit, "no data"),
        ("raise KeyError('missing')", KeyError, "'missing'"),
        ("raise KeyboardInterrupt", KeyboardInterrupt, ""),
        ("1 +", SyntaxError, "invalid syntax (script.py, line 1)"),
    ],
)
def test_exit_codes_and_exceptions_pass_through(code, error, text, tmp_path, in_process):
    with pytest.raises(error) as caught:
        in_process([str(write(tmp_path / "script.py", code))])
    assert str(caught.value) == text


@pytest.mark.parametrize("name", ["no.py", "--help", "."])
def test_what_is_not_a_file_is_one_sentence(name, tmp_path):
    with pytest.raises(SystemExit) as caught:
        run([name, "more"])
    assert caught.value.code == f"There is no file {name!r} to run: python -m hf_rope.run SCRIPT ARGUMENTS..."


def test_no_script_is_one_sentence_and_an_exit_code(tmp_path):
    done = launch("-m", "hf_rope.run", folder=tmp_path)
    sentence = "hf_rope.run needs a script to run: python -m hf_rope.run SCRIPT ARGUMENTS...\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", sentence)


@pytest.mark.full
def test_workers_share_the_scripts_own_classes_and_functions(tmp_path):
    done = launch("-m", "hf_rope.run", write(tmp_path / "script.py", WORKERS), folder=tmp_path)
    batches = ["0 1 __main__", "4 9 __main__", "0 1 __mp_main__", "4 9 __mp_main__"]
    assert done.stdout.splitlines() == [*batches, "0 1 4 9"], done.stderr


@pytest.mark.full
def test_the_commands_of_the_documentation_run_as_pasted(report, tmp_path):
    """With scripts of these names that say what they see; one command is under `accelerate launch`."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    commands = re.findall(r"^(?:python|accelerate launch) -m hf_rope\.run .*$", text, re.MULTILINE)
    programs = {"python": [], "accelerate": ["-m", "accelerate.commands.accelerate_cli"]}
    assert {command.split()[0] for command in commands} == {*programs}
    for program, *arguments in map(shlex.split, dict.fromkeys(commands)):
        start = arguments.index("hf_rope.run") + 1
        write(report.parent / arguments[start], REPORT)
        done = launch(*programs[program], *arguments, folder=report.parent)
        assert done.returncode == 0, done.stderr
        seen = json.loads(done.stdout.splitlines()[-1])
        assert seen["argv"] == arguments[start:]
        assert seen["path"][0] == str(report.parent)
        assert seen["registered"]

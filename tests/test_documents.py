"""The documents agree with the code: cards, the README's blocks and tables, its file tree, and local links."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from hf_rope import SCHEMES, HfRopeConfig, HfRopeModel

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("model_cards/*.md")])
SIZES = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
KINDS = {"eager": "eager", "sdpa": "sdpa", "flex": "flex_attention", "flash": "flash_attention"}


def card(scheme: str) -> str:
    return (ROOT / "model_cards" / f"{scheme}.md").read_text(encoding="utf-8")


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def section(text: str, heading: str) -> str:
    """The text under a heading, to the next heading of any level."""
    return re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL).group(1)


def table_rows(text: str) -> list[list[str]]:
    """The cells of each table row whose first cell is a value in code quotes, as a link or not."""
    lines = re.findall(r"^\| *(?:\[`\w+`\]|`\w+`).*\|$", text, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def name(cell: str) -> str:
    return re.search(r"`(\w+)`", cell).group(1)


def listed_kinds(text: str) -> tuple[str, ...]:
    """The attention kinds named at the beginning of a text."""
    names = re.match(rf"(?:(?:{'|'.join(KINDS)})(?:, )?)+", text).group(0)
    return tuple(KINDS[word] for word in names.strip(", ").split(", "))


SCHEME_ROWS, COST_ROWS = (
    [row for row in table_rows(section(README, "The schemes")) if len(row) == columns] for columns in (8, 3)
)


def model_and_config(scheme: str):
    config = HfRopeConfig(**SIZES, max_position_embeddings=64, position_embedding_type=scheme)
    with torch.device("meta"):
        return HfRopeModel(config), config


def run(code: str, folder: Path) -> str:
    """Runs code as pasted into a file, offline, in a fresh process; returns what it prints."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_scheme_has_a_card_and_a_row_in_each_table():
    assert sorted(path.stem for path in (ROOT / "model_cards").glob("*.md")) == sorted(SCHEMES)
    assert [name(row[0]) for row in SCHEME_ROWS] == list(SCHEMES)
    assert [name(row[0]) for row in COST_ROWS] == list(SCHEMES)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_card_head_is_valid_for_the_hub(scheme):
    data = ModelCard(card(scheme), ignore_metadata_errors=False).data.to_dict()
    assert (data["library_name"], data["license"], data["pipeline_tag"]) == ("transformers", "apache-2.0", "fill-mask")
    assert data["language"] == ["en"]
    assert {"hf_rope", "custom_code"} <= set(data["tags"])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_card_links_its_paper_and_every_one_that_the_code_names(scheme):
    linked = re.findall(r"\(https://arxiv\.org/abs/([\d.]+)\)", section(card(scheme), "Source"))
    named = re.findall(r"arXiv ([\d.]+\d)", sys.modules[SCHEMES[scheme].__module__].__doc__)
    assert linked
    assert set(named) <= set(linked)


def test_arxiv_links_name_the_paper_that_they_lead_to():
    for path in DOCUMENTS:
        for label, target in re.findall(
            r"\[arXiv ([^\]]+)\]\(https://arxiv\.org/abs/([^)]+)\)", path.read_text(encoding="utf-8")
        ):
            assert label == target, path.name


@pytest.mark.parametrize("scheme", SCHEMES)
def test_card_options_are_the_codes(scheme):
    listed = {name(row[0]): row[1].strip("`") for row in table_rows(section(card(scheme), "Options"))}
    assert listed == {key: repr(value) for key, value in SCHEMES[scheme].fill_options({}).items()}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_card_limits_are_the_codes(scheme):
    model, config = model_and_config(scheme)
    limits = section(card(scheme), "Limits")
    attention = re.search(r"^- Attention: (.*)$", limits, re.MULTILINE).group(1)
    assert listed_kinds(attention) == SCHEMES[scheme].attn_implementations(config)
    assert ("No length limit" in limits) == (model.position.max_length is None)
    assert ("longest input has `max_position_embeddings`" in limits) == (model.position.max_length == 64)
    assert ("Not shift invariant" in limits) == (not model.position.shift_invariant)
    assert "hift invariant" in limits


@pytest.mark.parametrize("scheme", SCHEMES)
def test_card_leaves_data_and_results_to_the_trainer(scheme):
    for heading in ("Training data", "Results"):
        assert section(card(scheme), heading).strip() == "filled in by whoever trained the checkpoint"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_card_builds_a_model_of_its_scheme(scheme):
    """The block with a made-up Hub name needs the network and stays unrun."""
    blocks = [block for block in python_blocks(card(scheme)) if "your-name/" not in block]
    assert blocks
    for block in blocks:
        names: dict = {}
        with torch.device("meta"):
            exec(block, names)
        assert names["model"].config.position_embedding_type == scheme


@pytest.mark.parametrize("row", SCHEME_ROWS, ids=lambda row: name(row[0]))
def test_readme_table_of_schemes_agrees_with_the_code(row):
    first, kind, _, parameters, limit, attention, shift, options = row
    scheme = name(first)
    model, config = model_and_config(scheme)
    position = model.position
    names = {"M": 64, "N": 3, "H": 4, "E": 8, "D": 32, **config.position_options}

    assert f"model_cards/{scheme}.md" in first
    assert kind == position.kind
    own = [parameter.numel() for key, parameter in model.named_parameters() if ".position." in f".{key}"]
    assert eval(parameters.strip("`"), names) == sum(own)
    assert (None if limit == "no limit" else eval(limit, names)) == position.max_length
    assert listed_kinds(attention) == position.attn_implementations(config)
    assert {"yes": True, "no": False}[shift.split()[0]] == position.shift_invariant
    assert options == ", ".join(f"`{key}={value!r}`" for key, value in config.position_options.items())


@pytest.mark.parametrize(
    ("scheme", "settings"),
    [
        ("rotary", {"position_options": {"rotary_value": True}}),
        ("rotary", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}),
    ],
)
def test_readme_exceptions_to_shift_invariance_hold(scheme, settings):
    assert not HfRopeModel(HfRopeConfig(**SIZES, position_embedding_type=scheme, **settings)).position.shift_invariant


def test_readme_exception_for_shaw_without_values_holds():
    config = HfRopeConfig(**SIZES, position_embedding_type="shaw", position_options={"relative_values": False})
    assert SCHEMES["shaw"].attn_implementations(config) == ("eager", "sdpa", "flex_attention")


def test_readme_blocks_run_as_pasted(tmp_path):
    """In their order and in one folder; the one that loads without the package runs without it."""
    outputs = []
    for block in python_blocks(README):
        if "from .relative" in block:
            continue
        without_package = "import sys\nsys.modules['hf_rope'] = None\n" if "trust_remote_code=True" in block else ""
        outputs.append(run(without_package + block, tmp_path))
    assert "torch.Size([1, 32, 64])" in outputs[0]
    assert "HfRopeForSequenceClassification" in outputs[1]
    assert "'rope_type': 'yarn'" in outputs[2]
    assert "tensor([[" in outputs[3]
    assert "torch.Size([1, 20000, 64])" in outputs[4]
    assert "BertForMaskedLM" in outputs[5]
    assert "fill-mask" in outputs[6]
    assert len(outputs) == 7


def test_readme_example_of_a_scheme_works(monkeypatch):
    (block,) = (block for block in python_blocks(README) if "from .relative" in block)
    module = {"__name__": "hf_rope.model.position_kerple", "__package__": "hf_rope.model"}
    exec(block, module)
    monkeypatch.setitem(SCHEMES, "kerple", module["KerplePosition"])
    torch.manual_seed(0)
    model = HfRopeModel(HfRopeConfig(**SIZES, position_embedding_type="kerple", initializer_range=0.3)).eval()
    ids = torch.randint(1, 99, (2, 9))
    model(ids).last_hidden_state.sum().backward()
    with torch.no_grad():
        shifted = model(ids, position_ids=torch.arange(5, 14)[None]).last_hidden_state
        torch.testing.assert_close(model(ids).last_hidden_state, shifted)
    assert model.position.rates.grad.abs().min() > 0
    assert model.position.attn_implementations(model.config) == ("eager", "sdpa", "flex_attention")


def tree_paths() -> list[str]:
    """Every path of the README's file tree; a folder ends in a slash."""
    block = re.search(r"```\n(.*?)```", section(README, "Files"), re.DOTALL).group(1)
    paths, folders = [], []
    for line in block.splitlines():
        entry = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders = folders[:depth]
        paths.append("".join(folders) + entry)
        if entry.endswith("/"):
            folders.append(entry)
    return paths


def test_readme_tree_names_only_what_exists():
    assert [path for path in tree_paths() if not (ROOT / path).exists()] == []


@pytest.mark.skipif(not (ROOT / ".git").exists() or shutil.which("git") is None, reason="needs a git checkout")
def test_readme_tree_leaves_nothing_out():
    """A folder that the tree does not open stands for all that it holds."""
    paths = tree_paths()
    closed = tuple(p for p in paths if p.endswith("/") and not any(q != p and q.startswith(p) for q in paths))
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [f for f in files if f not in paths and not f.startswith(closed) and (ROOT / f).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_local_links_lead_to_files(path):
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = [t.split("#")[0] for t in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in t]
    assert [target for target in targets if target and not (path.parent / target).exists()] == []


def test_make_targets_that_documents_name_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    named = {
        t for path in DOCUMENTS for t in re.findall(r"\bmake ([a-z-]+)\b(?=`|  )", path.read_text(encoding="utf-8"))
    }
    assert {"demo", "test"} <= named <= targets

"""The documents agree with the code: cards, tables, blocks, commands and local links, and they build as a site."""

import importlib
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import HfArgumentParser

from hf_rope import SCHEMES, HfRopeConfig, HfRopeModel
from hf_rope.analysis import position_share
from pages import PAGES, READ, ROOT, RUN, blocks_of, name_of, to_run

README = (ROOT / "README.md").read_text(encoding="utf-8")
SCHEMES_PAGE = (ROOT / "docs/schemes.md").read_text(encoding="utf-8")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("model_cards/*.md")])
PRINTS = {
    "README.md": ["torch.Size([1, 32, 64])", "HfRopeForSequenceClassification"],
    "docs/compare.md": ["Which of three schemes", "report.md, results.json, study.json"],
    "docs/convert.md": ["HfRopeForMaskedLM learned", "BertForMaskedLM", "Written to my-bert-again."],
    "docs/decoders.md": ["tensor([[", "torch.Size([1, 8, 1000])"],
    "docs/export.md": ["onnx/model_quantized.onnx", "Written to my-onnx.", "(2, 64)"],
    "docs/hub.md": ["fill-mask"],
    "docs/inspect.md": ["Declared shift invariant", "long_term_decay.png"],
    "docs/layout.md": ["tensor(True)"],
    "docs/linear_attention.md": ["torch.Size([1, 20000, 64])"],
    "docs/retrofit.md": ["Written to my-rotary-encoder.", "HfRopeModel ['hidden_state_difference'"],
    "docs/schemes.md": ["'num_buckets': 16", "'rope_type': 'yarn'", "6 of 8 pairs turn"],
    "docs/speed.md": ["torch.bfloat16"],
    "docs/tools.md": ["trainable params", "(1, 64)"],
    "docs/training.md": ["unigram_loss", "accuracy"],
}
"""What a reader sees who runs the blocks of a page."""
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


README_ROWS = table_rows(section(README, "The schemes"))
SCHEME_ROWS, OPTION_ROWS, SCORE_ROWS, START_ROWS, COST_ROWS = (
    table_rows(section(SCHEMES_PAGE, heading))
    for heading in (
        *("All of them", "Parameters and options", "The scores, side by side", "Where each scheme starts"),
        "Cost",
    )
)


def model_and_config(scheme: str):
    config = HfRopeConfig(**SIZES, max_position_embeddings=64, position_embedding_type=scheme)
    with torch.device("meta"):
        return HfRopeModel(config), config


def test_every_scheme_has_a_card_and_a_row_in_each_table():
    assert sorted(path.stem for path in (ROOT / "model_cards").glob("*.md")) == sorted(SCHEMES)
    for rows in (README_ROWS, SCHEME_ROWS, OPTION_ROWS, START_ROWS, COST_ROWS):
        assert [name(row[0]) for row in rows] == list(SCHEMES)
    assert [scheme for row in SCORE_ROWS for scheme in re.findall(r"`(\w+)`", row[0])] == list(SCHEMES)


def test_the_readmes_table_is_a_part_of_the_long_one():
    """Scheme, source, longest input, attention; the links begin elsewhere."""
    assert [[row[0].replace("../", ""), *row[2:5]] for row in SCHEME_ROWS] == README_ROWS


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
def test_table_of_schemes_agrees_with_the_code(row):
    first, kind, _, limit, attention, shift = row
    scheme = name(first)
    model, config = model_and_config(scheme)
    position = model.position
    assert f"(../model_cards/{scheme}.md)" in first
    assert kind == position.kind
    limit = limit.split(" (")[0]  # without what an option changes
    assert (None if limit == "no limit" else eval(limit, {"M": 64})) == position.max_length
    assert listed_kinds(attention) == position.attn_implementations(config)
    assert {"yes": True, "no": False}[shift.split()[0]] == position.shift_invariant


@pytest.mark.parametrize("row", OPTION_ROWS, ids=lambda row: name(row[0]))
def test_table_of_options_agrees_with_the_code(row):
    first, parameters, options = row
    model, config = model_and_config(name(first))
    names = {"M": 64, "N": 3, "H": 4, "E": 8, "D": 32, **config.position_options}
    own = [parameter.numel() for key, parameter in model.named_parameters() if ".position." in f".{key}"]
    assert eval(parameters.strip("`"), names) == sum(own)
    assert options == ", ".join(f"`{key}={value!r}`" for key, value in config.position_options.items())


@pytest.mark.parametrize("row", START_ROWS, ids=lambda row: name(row[0]))
def test_table_of_starts_agrees_with_the_code(row):
    first, _, ours, share = row
    sizes = {**SIZES, "vocab_size": 262, "hidden_size": 256, "num_hidden_layers": 1, "max_position_embeddings": 64}
    stated, shares, models = dict(re.findall(r"`(\w+)` ([\d.]+)", ours)), [], []
    for seed in range(4):
        torch.manual_seed(seed)
        models.append(HfRopeModel(HfRopeConfig(**sizes, position_embedding_type=name(first))).double().eval())
        shares.append(position_share(models[-1], torch.randint(1, 262, (1, 64))))
    assert sum(shares) / 4 == pytest.approx(float(share), rel=0.1)
    states = [model.state_dict() for model in models]
    found = {key.partition("position.")[2].split(".")[0] for key in states[0] if "position." in key}
    assert {key for key in found if "norm" not in key} == {*stated} - {"word_embeddings"}
    for key in states[0]:
        for part in {*stated} & {*key.split(".")}:
            if "position." in key or part == "word_embeddings":
                values = torch.cat([state[key].flatten() for state in states])  # some have a number a head
                error = 2.5 / (2 * len(values)) ** 0.5  # of an estimate from so few: 2.5 times its own spread
                assert values.std().item() == pytest.approx(float(stated[part]), rel=max(0.15, error)), key


OF_OPTIONS = [
    ("alibi", {"form": "learned"}, "slopes", -2, 1),
    ("kerple", {"kernel": "power"}, "r2", 1, 2 / 12**0.5),
    ("fire", {"threshold": 3}, "log_threshold", math.log(3), 0),
]
"""Mean and standard deviation of what begins otherwise, or is there only, under an option."""


@pytest.mark.parametrize(("scheme", "options", "part", "mean", "spread"), OF_OPTIONS)
def test_what_an_option_starts_with_is_its_sources(scheme, options, part, mean, spread):
    torch.manual_seed(0)
    sizes = {**SIZES, "hidden_size": 512, "num_attention_heads": 256, "num_hidden_layers": 1}
    model = HfRopeModel(HfRopeConfig(**sizes, position_embedding_type=scheme, position_options=options))
    values = model.position.get_parameter(part)
    assert values.mean().item() == pytest.approx(mean, abs=0.2)
    assert values.std(correction=0).item() == pytest.approx(spread, abs=0.1)


@pytest.mark.parametrize(
    ("scheme", "settings"),
    [
        ("rotary", {"position_options": {"rotary_value": True}}),
        ("rotary", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}),
    ],
)
def test_exceptions_to_shift_invariance_hold(scheme, settings):
    assert not HfRopeModel(HfRopeConfig(**SIZES, position_embedding_type=scheme, **settings)).position.shift_invariant


@pytest.mark.parametrize("form", ["symmetric", "one_sided", "learned"])
def test_only_the_symmetric_alibi_is_blind_to_direction(form):
    options = {"position_embedding_type": "alibi", "position_options": {"form": form}}
    torch.manual_seed(0)
    model, ids = HfRopeModel(HfRopeConfig(**SIZES, **options)).double().eval(), torch.randint(1, 99, (1, 9))
    there, back = model(ids).last_hidden_state, model(ids.flip(1)).last_hidden_state.flip(1)
    assert torch.allclose(there, back, rtol=0, atol=1e-9) == (form == "symmetric")


def test_exception_for_shaw_without_values_holds():
    config = HfRopeConfig(**SIZES, position_embedding_type="shaw", position_options={"relative_values": False})
    assert SCHEMES["shaw"].attn_implementations(config) == ("eager", "sdpa", "flex_attention")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_is_run_or_says_why_not(page):
    for block in blocks_of(page):
        assert block.language in RUN + READ, f"a block in no known language: {block.code}"
        assert block.mark in (None, "run with", "not run")
        assert block.mark is None or block.language in RUN
        if block.mark == "run with":
            assert len(block.commands()) == 1, "further arguments are those of one command"
        if block.mark == "not run":
            assert all((ROOT / file).exists() for file in re.findall(r"tests/[\w/]+(?:\.py)?", block.note))
    fences = re.findall(r"^ *(?:```|~~~)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(fences) == 2 * len(blocks_of(page)), "a fence that is indented, or has no end"


def by_cost(page: Path):
    """A page of commands takes a process each."""
    marks = [pytest.mark.full] if any(block.language == "bash" for block in to_run(page)) else []
    return pytest.param(page, marks=marks, id=name_of(page))


@pytest.mark.parametrize("page", [by_cost(page) for page in PAGES if name_of(page) in PRINTS])
def test_blocks_run_as_pasted(page, tmp_path, monkeypatch, capfd):
    """In their order and in one folder. A Python block that trusts remote code runs where the package is not."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    for block in to_run(page):
        code = block.as_run()
        if block.language == "bash":
            subprocess.run(["bash", "-euo", "pipefail", "-c", code], check=True)
        elif "trust_remote_code=True" in code:
            without_package = "import sys\nsys.modules['hf_rope'] = None\n"
            subprocess.run([sys.executable, "-c", without_package + code], check=True)
        else:
            exec(compile(code, name_of(page), "exec"), {"__name__": "__main__"})
    printed = capfd.readouterr().out
    assert [text for text in PRINTS[name_of(page)] if text not in printed] == []


def test_no_page_with_blocks_to_run_is_left_out():
    assert {name_of(page) for page in PAGES if to_run(page)} == PRINTS.keys()


def example_commands() -> list[list[str]]:
    """Every command of a page that starts a script of examples/: the script's name and its arguments."""
    commands = []
    for page in PAGES:
        for block in blocks_of(page):
            for line in block.commands() if block.language == "bash" else ():
                found = re.search(r"\bexamples/(\w+)\.py(?! \.\.\.)(.*)", line)
                if found:
                    commands.append([found[1], *shlex.split(found[2])])
    return commands


@pytest.mark.parametrize("command", example_commands(), ids=lambda command: command[0])
def test_examples_know_the_options_that_pages_give_them(command, monkeypatch):
    """The script reads its whole command line, and is stopped before it does anything."""

    class Read(Exception):
        pass

    def read(parser):
        _, unknown = parser.parse_known_args()
        raise Read(unknown)

    monkeypatch.setattr(HfArgumentParser, "parse_args_into_dataclasses", read)
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(Read, match=r"^\[\]$"):
        importlib.import_module(command[0]).main()


def test_the_example_of_a_scheme_works(monkeypatch):
    (block,) = python_blocks((ROOT / "docs/adding_a_scheme.md").read_text(encoding="utf-8"))
    module = {"__name__": "hf_rope.model.position_tisa", "__package__": "hf_rope.model"}
    exec(block, module)
    monkeypatch.setitem(SCHEMES, "tisa", module["TisaPosition"])
    torch.manual_seed(0)
    model = HfRopeModel(HfRopeConfig(**SIZES, position_embedding_type="tisa", initializer_range=0.3)).eval()
    ids = torch.randint(1, 99, (2, 9))
    model(ids).last_hidden_state.sum().backward()
    with torch.no_grad():
        shifted = model(ids, position_ids=torch.arange(5, 14)[None]).last_hidden_state
        torch.testing.assert_close(model(ids).last_hidden_state, shifted)
    assert all(parameter.grad.abs().min() > 0 for parameter in model.position.parameters())
    assert model.position.attn_implementations(model.config) == ("eager", "sdpa", "flex_attention")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_local_links_lead_to_files(path):
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = [t.split("#")[0] for t in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in t]
    assert [target for target in targets if target and not (path.parent / target).exists()] == []


def test_make_targets_that_documents_name_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    named = {
        t
        for path in DOCUMENTS
        for t in re.findall(r"(?:^|`)make ([a-z-]+)\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert {"demo", "test"} <= named <= targets


def test_the_readme_names_the_lowest_versions_of_the_package():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    named = dict(re.findall(r"(Python|torch|transformers) from ([\d.]*\d)", README))
    assert named == {
        "Python": re.search(r'requires-python = ">=([\d.]+)"', project)[1],
        "torch": re.search(r'"torch>=([\d.]+)', project)[1],
        "transformers": re.search(r'"transformers>=([\d.]+)', project)[1],
    }


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 200


@pytest.mark.full
def test_the_site_builds_without_a_warning(tmp_path):
    """A broken link, a reference that is missing and a docstring that cannot be read are warnings."""
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package, reason="the site needs the extra `docs`")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-n", "--keep-going", "-c", "docs", ".", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr

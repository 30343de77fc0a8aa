"""Several processes and several devices, on existing engines: DDP, FSDP2 and `device_map`, each by accelerate itself.

No test needs an accelerator. Processes are two on a CPU (distributed_run.py is what they run); devices are simulated
ones (two_devices.py), between which only accelerate's hooks and the model move tensors.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import compute_module_sizes
from transformers import AttentionInterface

import distributed_run
import hf_rope
from heads import HEADS, Head
from helpers import SIZES, over, set_reads, tiny_model, token_ids
from hf_rope import SCHEMES, HfRopeForCausalLM
from hf_rope.model import modeling_hf_rope
from hf_rope.model.configuration_hf_rope import AUTO_MAP
from hf_rope.model.modeling_hf_rope import HfRopeLayer
from two_devices import KIND, on_cpu, two_devices

TESTS = Path(__file__).parent
DEVICES = (f"{KIND}:0", f"{KIND}:1")
CUTS = 60
"""Limits of the first device's memory that are tried: parts of the model's size."""
SHARDED = ("--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP")
LAUNCHES = {
    "DDP": ("--multi_gpu", "--mixed_precision", "no"),
    "FSDP2": (*SHARDED, "--mixed_precision", "no"),
    "FSDP2 in bfloat16": (*SHARDED, "--mixed_precision", "bf16"),
}
PARTS = {"DDP": {"DistributedDataParallel": 1}, "FSDP2": {"FSDPHfRopeLayer": SIZES["num_hidden_layers"]}}


def launch(kind: str, folder: Path) -> dict[str, Any]:
    """The results of distributed_run.py, in two processes."""
    processes = ("--num_processes", "2", "--num_machines", "1", "--main_process_port", "0", "--dynamo_backend", "no")
    command = [sys.executable, "-m", "accelerate.commands.launch", *LAUNCHES[kind], *processes]
    done = subprocess.run(
        [*command, TESTS / "distributed_run.py", folder],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "results.json").read_text())
    assert (results["processes"], results["backend"]) == (2, "gloo")
    assert {*SCHEMES} < {*results["cases"]}
    return results["cases"]


@pytest.mark.full
@pytest.mark.parametrize("kind", ["DDP", "FSDP2"])
def test_two_processes_compute_and_save_what_one_does(kind, tmp_path, record_property):
    wrong = {}
    for name, result in launch(kind, tmp_path).items():
        record_property(f"{kind}, {name}: greatest difference of a gradient", result["gradient"])
        assert result["modules"] == PARTS[kind]
        assert result["largest gradient"] > 0.1
        saved = logits_difference(tmp_path / name, distributed_run.CASES[name].model)
        found = {"loss": result["loss"], "gradient": result["gradient"], "logits of what was saved": saved}
        wrong |= {(name, what): size for what, size in found.items() if not size < 1e-5}
    assert not wrong
    assert_carries_its_code(tmp_path / "rotary")


def assert_carries_its_code(folder: Path) -> None:
    """The files of hf_rope/model and no others; FSDP2 makes a class of its own, which lives in a file of torch's."""
    assert json.loads((folder / "config.json").read_text())["auto_map"] == AUTO_MAP
    code = {path.name for path in Path(modeling_hf_rope.__file__).parent.glob("*.py")} - {"__init__.py"}
    assert {path.name for path in folder.glob("*.py")} == code


def logits_difference(folder: Path, model: str) -> float:
    """How far a model that is loaded from a folder is from the distributed one, at real tokens."""
    assert json.loads((folder / "config.json").read_text())["architectures"] == [model]
    expected = torch.load(folder / "logits.pt")
    loaded, info = getattr(hf_rope, model).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        difference = loaded(**expected["inputs"]).logits - expected["logits"]
    if difference.ndim == 3:
        difference = difference[expected["inputs"]["attention_mask"].bool()]
    return difference.abs().max().item()


@pytest.mark.full
def test_sharded_bfloat16_is_as_exact_as_bfloat16_is(tmp_path, record_property):
    cases = launch("FSDP2 in bfloat16", tmp_path)
    for name, errors in cases.items():
        record_property(f"{name}: relative error of the gradient in bfloat16", errors)
        assert errors["query"] == ["torch.bfloat16"]
    wrong = {name: errors for name, errors in cases.items() if not 0 < errors["sharded"] < 1.2 * errors["plain"]}
    assert not wrong
    # FSDP2 casts the numbers that go into a layer, but rotary embedding's angles, which would be lost far from 0.
    assert cases["rotary"]["shared"] == ["torch.float32"]
    assert cases["transformer_xl"]["shared"] == ["torch.bfloat16"]
    assert cases["rotary"]["positions in bfloat16"] > 10 * cases["rotary"]["plain"]


def by_bounds(module, query, key, value, mask, scaling, cu_seq_lens_q, dropout=0.0, is_causal=None, **kwargs):
    """Attention of a user's own that wants real tokens only, and is told where each sequence ends."""
    parts = zip(*(x.split(cu_seq_lens_q.diff().tolist(), dim=2) for x in (query, key, value)), strict=True)
    sdpa = AttentionInterface()["sdpa"]
    outputs = [sdpa(module, *part, None, scaling=scaling, is_causal=False)[0] for part in parts]
    return torch.cat(outputs, dim=1), None


AttentionInterface.register("by_bounds", by_bounds)

MEAN = {"num_labels": 3, "classifier_pooling": "mean"}
PLACED: dict[str, Head] = {
    **{name: HEADS[name] for name in ("encoder", "masked-lm", "tokens", "question-answering", "multiple-choice")},
    "first token": HEADS["single-label"],
    "mean of tokens": Head("", "HfRopeForSequenceClassification", HEADS["single-label"].labels, MEAN),
}


@pytest.fixture
def shapes(monkeypatch) -> list[torch.Size]:
    """Collects what shapes the layers see; no hook, which they would make room for."""
    seen, forward = [], HfRopeLayer.forward

    def record(self, x, *args, **kwargs):
        seen.append(x.shape)
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(HfRopeLayer, "forward", record)
    return seen


def choose_layout(layout: str, monkeypatch) -> dict[str, Any]:
    """The settings of a model; reads are made free for "groups", the layout of a CPU."""
    if layout == "groups":
        set_reads(monkeypatch, free=True)
    return {"attn_implementation": "by_bounds"} if layout == "bounds" else {}


def map_by_hand(model) -> dict[str, str]:
    """Every part on another device than the part before; but what is tied to the embeddings lies beside them."""
    encoder = model.base_model
    names = [name for name, _ in encoder.named_children() if name not in ("layers", "pooler")]
    names += [f"layers.{number}" for number in range(len(encoder.layers))]
    names += ["pooler"] if encoder.pooler is not None else []
    if encoder is not model:
        names = [f"model.{name}" for name in names] + [name for name, _ in model.named_children() if name != "model"]
    places = {name: DEVICES[number % 2] for number, name in enumerate(names)}
    return {**places, "lm_head": places["model.embeddings"]} if "lm_head" in places else places


def accelerates_maps(model) -> list[dict[str, str]]:
    """All that accelerate finds where the first device has room for more and more of the model."""
    size, found = compute_module_sizes(model)[""], {}
    for part in range(1, CUTS):
        memory = {0: size * part // CUTS, 1: 2 * size}
        places = infer_auto_device_map(model, memory, no_split_module_classes=model._no_split_modules)
        if {*places.values()} == {0, 1}:
            found[tuple(places.items())] = {name: DEVICES[number] for name, number in places.items()}
    return [*found.values()]


def place(model, places: dict[str, str]) -> None:
    """As `from_pretrained` with a `device_map` does."""
    skip = model._skip_keys_device_placement
    dispatch_model(model, places, main_device=DEVICES[0], skip_keys=skip, force_hooks=True)


def loss_of(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The head's loss; for the encoder a sum over real tokens and the pooled ones, each with its own weight."""
    out = model(**batch)
    if "loss" in out:
        return out.loss
    real = out.last_hidden_state[batch["attention_mask"].bool()]
    return sum((x * torch.linspace(-1, 1, x.numel()).view_as(x)).sum() for x in (real, out.pooler_output))


def assert_same_on_two_devices(head: Head, scheme: str, places, batch: dict[str, torch.Tensor], **settings) -> None:
    """Loss and gradients of a model that is spread over two devices are those of one on the CPU."""
    alone, spread = (head.build(scheme, **config).train() for config in ({}, settings))
    expected = loss_of(alone, batch)
    expected.backward()
    with two_devices():
        place(spread, places)
        assert {str(weight.device) for weight in spread.parameters()} == {*DEVICES}
        found = loss_of(spread, batch)
        found.backward()
    assert found.device.type == "cpu"
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weights = dict(alone.named_parameters())
    for name, weight in spread.named_parameters():
        gradient = weights[name].grad
        assert (weight.grad is None) == (gradient is None), name
        if gradient is not None:
            assert weight.grad.device == weight.device
            difference = (on_cpu(weight.grad) - gradient).abs().max().item()
            assert difference < 1e-5 * max(1, gradient.abs().max().item()), name


def is_possible(scheme: str, layout: str, name: str) -> bool:
    """Bounds are for what adds nothing to the scores."""
    return layout != "bounds" or SCHEMES[scheme].score == "none"


@over(scheme=SCHEMES, layout=["dense", "groups", "bounds"], name=PLACED, where=is_possible)
def test_a_model_on_two_devices_computes_what_it_does_on_one(scheme, name, layout, shapes, monkeypatch):
    head, settings = PLACED[name], choose_layout(layout, monkeypatch)
    batch = {**head.batch(), **head.labels}
    assert_same_on_two_devices(head, scheme, map_by_hand(head.build(scheme)), batch, **settings)
    rows = batch["attention_mask"].flatten(0, -2)
    assert shapes[-1][:2] == (rows.shape if layout == "dense" else (1, rows.sum()))


@pytest.mark.parametrize("name", ["masked-lm", "question-answering", "multiple-choice"])
def test_a_full_batch_without_a_mask_takes_two_devices(name):
    head = PLACED[name]
    batch = {"input_ids": token_ids(*head.shape), **head.labels}
    assert_same_on_two_devices(head, "rotary", map_by_hand(head.build()), batch)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_model_can_be_cut_wherever_accelerate_cuts_it(scheme):
    head = PLACED["first token"]
    maps = accelerates_maps(head.build(scheme))
    assert len(maps) > 1
    wrong = {}
    for places in maps:
        try:
            assert_same_on_two_devices(head, scheme, places, {**head.batch(), **head.labels})
        except RuntimeError as error:
            wrong[next(name for name, device in places.items() if device == DEVICES[1])] = str(error)
    assert not wrong, f"cut before {wrong}"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_decoder_on_two_devices_generates_what_it_does_on_one(scheme):
    prompt = token_ids(2, 5)
    mask = torch.ones_like(prompt)
    prompt[0, :2] = mask[0, :2] = 0
    alone, spread = (tiny_model(scheme, HfRopeForCausalLM, is_decoder=True) for _ in range(2))
    settings = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False}
    expected = alone.generate(prompt, **settings)
    with two_devices():
        place(spread, map_by_hand(spread))
        found = spread.generate(prompt, **settings)
    assert torch.equal(on_cpu(found), expected)


def test_the_two_devices_are_apart():
    with two_devices():
        one, other = (torch.arange(4.0, device=device) for device in DEVICES)
        assert (str(one.device), str(other.to(one.device).device)) == (DEVICES[0], DEVICES[0])
        assert torch.equal(on_cpu(one + other.to(DEVICES[0])), 2 * torch.arange(4.0))
        assert torch.equal(on_cpu(one * torch.tensor(2.0)), 2 * torch.arange(4.0))
        for stranger in (other, torch.arange(4.0)):
            with pytest.raises(RuntimeError, match="tensors on"):
                one + stranger

"""What only an accelerator can show: its kernels against the CPU's float64, no reads, graphs, compiled attention.

`make test-gpu`; skipped where there is none. `HF_ROPE_DEVICE` names another device than CUDA's.
"""

import copy
import os
from contextlib import contextmanager

import pytest
import torch
import transformers
from packaging import version
from transformers import AttentionInterface, Trainer, TrainingArguments, masking_utils

from benchmarks.gpu import varlen
from heads import HEADS, LOSSES
from helpers import CASES, tiny_config, tiny_model, token_ids
from hf_rope import SCHEMES, HfRopeForMaskedLM
from hf_rope.compare.cell import run_cell
from hf_rope.compare.study import make_study
from studies import tiny_study

DEVICE = torch.device(os.environ.get("HF_ROPE_DEVICE", "cuda"))
CUDA = torch.cuda.is_available()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE.type == "cuda" and not CUDA, reason="there is no CUDA device"),
]
cuda_only = pytest.mark.skipif(not CUDA, reason="asks CUDA's runtime")

MASK = torch.tensor([[1] * 24, [1] * 17 + [0] * 7, [0] * 9 + [1] * 15, [0] * 2 + [1] * 20 + [0] * 2])
IDS = token_ids(4, 24)
PACKED = torch.cat([torch.arange(5), torch.arange(12), torch.arange(7)])[None]
BATCHES = {
    "full": {},
    "padded": {"attention_mask": MASK},
    "packed": {"position_ids": PACKED},
    "types": {"token_type_ids": (IDS > 40).long(), "attention_mask": MASK},
}
EAGER_MASK = version.parse("5.23")
FREE = [scheme for scheme in SCHEMES if SCHEMES[scheme].score == "none"]
FLEX = [s for s in SCHEMES if "flex_attention" in SCHEMES[s].attn_implementations(tiny_config(s))]


def moved(batch: dict) -> dict:
    return {key: x.to(DEVICE) for key, x in batch.items()}


def real(output: torch.Tensor, batch: dict) -> torch.Tensor:
    output = output.cpu().double()
    return output[batch["attention_mask"].bool()] if "attention_mask" in batch else output


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative, of the whole tensor; NaN is never small."""
    return float((actual.cpu().double() - expected).norm() / expected.norm().clamp(min=1e-12))


@pytest.fixture
def no_look_at_the_mask(monkeypatch):
    """Leaves out transformers' own look at the mask, which reads one value."""
    monkeypatch.setattr(masking_utils, "_ignore_bidirectional_mask_sdpa", lambda *args, **kwargs: False)
    monkeypatch.setattr(masking_utils, "_ignore_causal_mask_sdpa", lambda *args, **kwargs: False)


@contextmanager
def nothing_is_read():
    """CUDA raises where the CPU waits for it."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def skip_what_waits_in_transformers(case: str) -> None:
    """Two of its functions copy numbers from the CPU, for which the device is waited for."""
    if "longrope" in case or "dynamic" in case:
        pytest.skip("transformers copies numbers of this rope type to the device")
    if "sdpa" not in tiny_model(case).attn_implementations and version.parse(transformers.__version__) < EAGER_MASK:
        pytest.skip("transformers makes eager attention's mask with a number that it copies to the device")


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("kind", ["sdpa", "eager"])
@pytest.mark.parametrize("case", CASES)
def test_an_encoder_gives_what_it_gives_on_the_cpu(case, kind, batch):
    model = tiny_model(case)
    if kind not in model.attn_implementations:
        pytest.skip(f"{case} has no {kind}")
    inputs = BATCHES[batch]
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(IDS, **inputs)
        model.set_attn_implementation(kind)
        output = model.to(DEVICE)(IDS.to(DEVICE), **moved(inputs))
    assert error(real(output[0], inputs), real(expected[0], inputs)) < 1e-5
    assert error(output[1], expected[1]) < 1e-5


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_losses_and_gradients_are_those_of_the_cpu(scheme, name):
    head = HEADS[name]
    model = head.build(scheme)
    exact = copy.deepcopy(model).double()
    inputs = {**head.batch(), **head.labels}
    exact(**{key: x.double() if x.is_floating_point() else x for key, x in inputs.items()}).loss.backward()
    output = model.to(DEVICE)(**moved(inputs))
    output.loss.backward()
    expected = {key: parameter.grad for key, parameter in exact.named_parameters()}
    sizes = {key: float(gradient.norm()) for key, gradient in expected.items() if gradient is not None}
    for key, parameter in model.named_parameters():
        assert (parameter.grad is None) == (expected[key] is None), key
        if key in sizes:  # of one number that is a sum of large ones that cancel, float32 does not know more
            far = float((parameter.grad.cpu().double() - expected[key]).norm())
            assert far < 1e-4 * max(sizes[key], 0.01 * max(sizes.values())), key


@pytest.mark.parametrize("length", [24, 16, 17, 13, 64])
@pytest.mark.parametrize("how", ["weights", "autocast"])
@pytest.mark.parametrize("case", CASES)
def test_bfloat16_is_as_exact_as_on_the_cpu(case, how, length):
    """On both devices against float64, outputs and gradients: here at most twice as far.

    Full batches of several lengths: what a scheme adds to scores begins at any address in a view of it.
    """
    model = tiny_model(case)
    ids, inputs = (IDS, BATCHES["padded"]) if length == 24 else (token_ids(3, length), {})
    expected = run_backward(copy.deepcopy(model).double(), ids, inputs)
    model = model.bfloat16() if how == "weights" else model
    errors = []
    for device in (torch.device("cpu"), DEVICE):
        with torch.autocast(device.type, torch.bfloat16, enabled=how == "autocast"):
            given = {key: x.to(device) for key, x in inputs.items()}
            found = run_backward(copy.deepcopy(model).to(device), ids.to(device), given)
        errors.append([error(one, exact) for one, exact in zip(found, expected, strict=True)])
    for on_cpu, here in zip(*errors, strict=True):
        assert here < 2 * on_cpu + 1e-3, errors


def run_backward(model, ids, inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs at real tokens, and the gradient of the first layer's keys."""
    output = model(ids, **inputs).last_hidden_state
    kept = output[inputs["attention_mask"].bool()] if inputs else output
    kept.float().pow(2).mean().backward()
    return kept.detach().cpu().double(), model.layers[0].attention.key.weight.grad.cpu().double()


@cuda_only
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("case", CASES)
def test_no_forward_waits_for_the_device(case, batch, no_look_at_the_mask):
    skip_what_waits_in_transformers(case)
    model, ids, inputs = tiny_model(case).to(DEVICE), IDS.to(DEVICE), moved(BATCHES[batch])
    with torch.no_grad(), nothing_is_read():
        model(ids, **inputs)


@cuda_only
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_step_waits_for_the_device(scheme, name, no_look_at_the_mask):
    skip_what_waits_in_transformers(scheme)
    head = HEADS[name]
    model, inputs = head.build(scheme).to(DEVICE).train(), moved({**head.batch(), **head.labels})
    with nothing_is_read():
        model(**inputs).loss.backward()


@cuda_only
@pytest.mark.parametrize("case", CASES)
def test_a_recorded_graph_replays_other_lengths(case, no_look_at_the_mask):
    """What a CUDA graph recorded with one padding, it computes with another: no length went into it."""
    skip_what_waits_in_transformers(case)
    model = tiny_model(case).to(DEVICE)
    ids, mask = IDS.to(DEVICE), MASK.to(DEVICE)
    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            model(ids, mask)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = model(ids, mask).last_hidden_state
        other = MASK.flip(1).roll(1, 0)
        mask.copy_(other)
        ids.copy_(IDS.flip(0))
        graph.replay()
        expected = model(IDS.flip(0).to(DEVICE), other.to(DEVICE)).last_hidden_state
    real_tokens = other.bool()
    assert error(output.cpu()[real_tokens], expected.cpu()[real_tokens].double()) < 1e-5


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_decoder_generates_what_it_generates_on_the_cpu(scheme):
    model = HEADS["causal-lm"].build(scheme, use_cache=True).double()
    settings = {"max_new_tokens": 12, "do_sample": False, "num_beams": 2, "pad_token_id": 0, "eos_token_id": None}
    prompt = {"input_ids": IDS[:, :9], "attention_mask": torch.tensor([[1] * 9, [0] * 3 + [1] * 6] * 2)}
    expected = model.generate(**prompt, **settings)
    assert torch.equal(model.to(DEVICE).generate(**moved(prompt), **settings).cpu(), expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_compiled_model_equals_the_plain_one(scheme):
    """Inductor's kernels, forward and gradients."""
    torch._dynamo.reset()
    model = tiny_model(scheme, HfRopeForMaskedLM).to(DEVICE)
    inputs = moved({"input_ids": IDS, "attention_mask": MASK, "labels": IDS.where(MASK.bool(), -100)})
    losses, gradients = [], []
    for forward in (model, torch.compile(model)):
        model.zero_grad()
        losses.append(forward(**inputs).loss)
        losses[-1].backward()
        gradients.append({key: p.grad.cpu().double() for key, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-5)
    for key, gradient in gradients[0].items():
        if float(gradient.norm()) > 1e-6:
            assert error(gradients[1][key], gradient) < 1e-3, key


@cuda_only
@pytest.mark.parametrize("decoder", [False, True], ids=["encoder", "decoder"])
@pytest.mark.parametrize("scheme", FLEX)
def test_flex_attention_equals_eager(scheme, decoder):
    """With heads of 16, the fewest that flex's kernel takes."""
    torch._dynamo.reset()
    changes = {"hidden_size": 64, "is_decoder": decoder, **({"use_cache": False} if decoder else {})}
    model = tiny_model(scheme, **changes).to(DEVICE)
    with torch.no_grad():
        outputs = []
        for kind in ("eager", "flex_attention"):
            model.set_attn_implementation(kind)
            outputs.append(real(model(IDS.to(DEVICE), MASK.to(DEVICE)).last_hidden_state, BATCHES["padded"]))
    assert error(outputs[1], outputs[0]) < 1e-3


@cuda_only
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("scheme", FREE)
def test_a_flash_kernel_told_of_bounds_equals_sdpa(scheme, batch):
    pytest.importorskip("torch.nn.attention.varlen")
    AttentionInterface.register("varlen_of_torch", varlen)
    model = tiny_model(scheme, hidden_size=64).to(DEVICE)
    exact = copy.deepcopy(model).double()
    inputs, found = BATCHES[batch], []
    for kind, dtype in (("sdpa", None), ("sdpa", torch.bfloat16), ("varlen_of_torch", torch.bfloat16)):
        one = copy.deepcopy(exact if dtype is None else model).to(dtype or torch.float64)
        one.set_attn_implementation(kind)
        output = one(IDS.to(DEVICE), **moved(inputs))
        rows = real(output.last_hidden_state, inputs)
        rows.pow(2).mean().backward()
        found.append((rows.detach(), one.layers[0].attention.query.weight.grad))
    for part in (0, 1):
        expected = found[0][part].cpu().double()
        of_sdpa, of_flash = (error(one[part], expected) for one in found[1:])
        assert of_flash < 1.5 * of_sdpa + 1e-3, (of_flash, of_sdpa)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_trainer_in_bfloat16_learns(scheme, tmp_path):
    """Tokens are their own labels: the loss falls far below that of guessing, 4.6."""
    rows = torch.randint(5, 99, (64, 1), generator=torch.Generator().manual_seed(0)).expand(64, 16)
    data = [{"input_ids": row, "labels": row} for row in rows]
    settings = {"max_steps": 150, "learning_rate": 1e-2, "report_to": "none", "per_device_train_batch_size": 16}
    arguments = TrainingArguments(
        str(tmp_path), **settings, bf16=True, save_strategy="no", disable_tqdm=True, use_cpu=DEVICE.type == "cpu"
    )
    model = HfRopeForMaskedLM(tiny_config(scheme))
    trainer = Trainer(model, arguments, train_dataset=data)
    trainer.train()
    assert trainer.evaluate(data)["eval_loss"] < 3.0


@cuda_only
def test_a_cell_of_a_study_is_trained_on_the_gpu(tmp_path):
    settings = tiny_study(schemes=["rotary"], seeds=[0], learning_rates=[1e-2], device="cuda", precision="bfloat16")
    (cell,) = make_study(settings).cells.values()
    result = run_cell(cell, tmp_path)
    assert result["versions"]["device"] == torch.cuda.get_device_name()
    assert result["curve"]["validation_loss"][-1] < result["curve"]["validation_loss"][0]

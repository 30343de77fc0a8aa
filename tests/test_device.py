"""The device contract: on an accelerator a forward reads no value, and its kernels do not depend on the lengths.

The meta device stands in for an accelerator: it has no values, so that reading one raises, and what would be a kernel
is what the dispatcher sees and is no view.
"""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertForMaskedLM, BertModel, masking_utils

from heads import HEADS
from helpers import CASES, FEW, over, tiny_config
from hf_rope import SCHEMES, HfRopeConfig, HfRopeForMaskedLM, HfRopeModel

LAYERS = 12
WIDTHS = {"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 97}
SIZES_OF_RESULTS = {"aten.nonzero", "aten._unique2", "aten.unique_consecutive", "aten.unique_dim", "aten.masked_select"}
"""Operators whose result has a size that depends on values, which a device has to tell."""


class Kernels(TorchDispatchMode):
    """Counts what would run on a device, by operator: all that is no view and makes no empty tensor."""

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function.overloadpacket)
        assert name not in SIZES_OF_RESULTS, name
        out = function(*args, **(kwargs or {}))
        on_device = any(isinstance(x, torch.Tensor) and x.is_meta for x in (*args, *(kwargs or {}).values(), out))
        if on_device and not function.is_view and "empty" not in name:
            self.counts[name] += 1
        return out


@pytest.fixture(autouse=True)
def transformers_own_look_at_the_mask(monkeypatch):
    """Which reads one value, whether anything is padding; here something is."""
    monkeypatch.setattr(masking_utils, "_ignore_bidirectional_mask_sdpa", lambda *args, **kwargs: False)
    monkeypatch.setattr(masking_utils, "_ignore_causal_mask_sdpa", lambda *args, **kwargs: False)


def numbers(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.long, device="meta")


def count(model, gradients: bool = False, **inputs) -> int:
    with torch.set_grad_enabled(gradients), Kernels() as kernels:
        output = model(**inputs)
        if gradients:
            output.loss.backward()
    return sum(kernels.counts.values())


def on_meta(model_class, config, **settings):
    with torch.device("meta"):
        return model_class._from_config(config, **settings).eval()


BATCHES = {
    "full": lambda b, n: {},
    "masked": lambda b, n: {"attention_mask": numbers(b, n)},
    "positions": lambda b, n: {"position_ids": numbers(1, n)},
    "positions a row": lambda b, n: {"position_ids": numbers(b, n), "attention_mask": numbers(b, n)},
    "bounds": lambda b, n: {"cu_seq_lens_q": numbers(4)} if b == 1 else {},  # which are of one row
    "types": lambda b, n: {"token_type_ids": numbers(b, n), "attention_mask": numbers(b, n)},
}


@over(case=CASES, what=BATCHES)
def test_no_forward_of_an_encoder_reads_a_value(case, what):
    model = on_meta(HfRopeModel, tiny_config(case))
    for shape in ((4, 10), (1, 10)):
        count(model, input_ids=numbers(*shape), **BATCHES[what](*shape))
        count(model, inputs_embeds=numbers(*shape, model.config.embedding_size).float(), **BATCHES[what](*shape))


@over(scheme=SCHEMES, name=HEADS, training=[False, True])
def test_no_head_reads_a_value_with_labels_or_without(scheme, name, training):
    head = HEADS[name]
    model = on_meta(head.model_class, tiny_config(scheme, **head.config)).train(training)
    inputs = {key: x.to("meta") for key, x in head.batch().items()}
    labels = {key: x.to("meta") for key, x in head.labels.items()}
    for given in (inputs, {"input_ids": inputs["input_ids"]}):
        count(model, **given)
        if labels:
            count(model, gradients=True, **given, **labels)


@over(case=CASES)
def test_no_step_of_a_decoder_reads_a_value(case):
    model = on_meta(HEADS["causal-lm"].model_class, tiny_config(case, is_decoder=True))
    first = model(numbers(2, 5), attention_mask=numbers(2, 5), use_cache=True)
    cache = first.get("past_key_values", first.get("cache"))
    second = model(numbers(2, 1), attention_mask=numbers(2, 6), cache=cache, use_cache=True)
    assert second.logits.shape == (2, 1, model.config.vocab_size)
    third = model(numbers(2, 2), position_ids=numbers(2, 2), cache=cache, use_cache=True)
    assert third.logits.shape == (2, 2, model.config.vocab_size)


@over(case=CASES, training=[False, True])
def test_what_goes_to_a_kernel_begins_where_it_can_read(case, training, monkeypatch):
    """A term that is a view into other numbers begins at an address that kernels for GPUs stop at."""
    monkeypatch.undo()  # without a mask transformers reads nothing
    seen = []

    def kernel(query, key, value, attn_mask=None, **kwargs):
        seen.extend(x for x in (query, key, value, attn_mask) if x is not None)
        return torch.empty_like(query)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", kernel)
    model = on_meta(HfRopeModel, tiny_config(case), dtype=torch.bfloat16).train(training)
    if "sdpa" in model.attn_implementations and model.config.attention_type == "softmax":
        for length in (16, 17):
            model(numbers(3, length))
        assert seen
        assert all(x.storage_offset() == 0 and x.stride(-1) == 1 for x in seen)


def test_bounds_of_the_wrong_shape_are_refused_without_a_read():
    with pytest.raises(ValueError, match=r"cu_seq_lens_q has the shape \(1, 4\)"):
        on_meta(HfRopeModel, tiny_config("rotary"))(numbers(1, 10), cu_seq_lens_q=numbers(1, 4))


@pytest.fixture(scope="module")
def native() -> dict[str, int]:
    """The kernels of native BERT, padded batch, forward and training step with labels."""
    config = BertConfig(num_hidden_layers=LAYERS, **WIDTHS)
    inputs = {"input_ids": numbers(32, 128), "attention_mask": numbers(32, 128)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masking_utils, "_ignore_bidirectional_mask_sdpa", lambda *args, **kwargs: False)
        return {
            "forward": count(on_meta(BertModel, config, attn_implementation="sdpa"), **inputs),
            "step": count(on_meta(BertForMaskedLM, config), gradients=True, **inputs, labels=numbers(32, 128)),
        }


def with_scheme(scheme: str, layers: int) -> HfRopeConfig:
    sizes = {**WIDTHS, "max_position_embeddings": 1536, "num_hidden_layers": layers}
    return HfRopeConfig(position_embedding_type=scheme, **sizes)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_number_of_kernels_does_not_depend_on_the_lengths(scheme):
    encoder = on_meta(HfRopeModel, with_scheme(scheme, 1))
    for what, batch in BATCHES.items():
        shapes = [(1, 128), (1, 1536)] if what == "bounds" else [(32, 128), (128, 64), (2, 1536)]
        found = {shape: count(encoder, input_ids=numbers(*shape), **batch(*shape)) for shape in shapes}
        assert len({*found.values()}) == 1, (what, found)


@over(quick=FEW, scheme=SCHEMES)
def test_kernels_are_few(scheme, native, record_property):
    config = with_scheme(scheme, LAYERS)
    encoder, head = on_meta(HfRopeModel, config), on_meta(HfRopeForMaskedLM, config)
    record_property("kernels of native BERT, forward and step", (native["forward"], native["step"]))
    limit = 1.5 if SCHEMES[scheme].score == "none" else 3
    for what, batch in BATCHES.items():
        shape = (1, 1536) if what == "bounds" else (32, 128)
        found = count(encoder, input_ids=numbers(*shape), **batch(*shape))
        record_property(f"kernels, {what}", found)
        assert found <= limit * native["forward"], what
    inputs = {"input_ids": numbers(32, 128), "attention_mask": numbers(32, 128), "labels": numbers(32, 128)}
    steps = count(head, gradients=True, **inputs)
    record_property("kernels, masked-LM step", steps)
    assert steps <= limit * native["step"]

"""Runs a draw and compares what comes out with what has to.

Shapes: B rows of the batch, L length, T real tokens of the batch.
"""

import copy
from collections import defaultdict
from contextlib import ExitStack
from typing import Any
from unittest import mock

import pytest
import torch
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from fuzz.alone import alone, by_choice, by_row, by_token, expected_loss, record
from fuzz.batch import Batch, fill, lay
from fuzz.draw import LABELLED, Draw
from heads import CHOICES
from helpers import set_reads
from hf_rope.model import linear_attention, relative
from hf_rope.model.versions import CACHE


def mine(module, query, key, value, mask, **kwargs):
    """A user's attention that takes a mask."""
    return AttentionInterface()["sdpa"](module, query, key, value, mask, **kwargs)


def told(module, query, key, value, mask, scaling, is_causal, cu_seq_lens_q=None, **kwargs):
    """A user's attention that wants the bounds of sequences, as flash does."""
    if cu_seq_lens_q is None:
        return mine(module, query, key, value, mask, scaling=scaling, is_causal=is_causal)
    sizes = cu_seq_lens_q.diff().tolist()
    assert max(sizes) <= kwargs.get("max_length_q", sum(sizes))
    parts = zip(*(x.split(sizes, dim=2) for x in (query, key, value)), strict=True)
    out = [F.scaled_dot_product_attention(*part, is_causal=is_causal, scale=scaling) for part in parts]
    return torch.cat(out, dim=2).transpose(1, 2), None


for function in (mine, told):
    AttentionInterface.register(function.__name__, function)
    AttentionMaskInterface.register(function.__name__, sdpa_mask)


def surroundings(draw: Draw) -> ExitStack:
    """Where a draw runs: on something like an accelerator, with few numbers at once."""
    stack = ExitStack()
    if not draw.reads:
        set_reads(stack.enter_context(pytest.MonkeyPatch.context()), free=False)
    if draw.few:
        stack.enter_context(mock.patch.object(relative, "SCORES_AT_ONCE", 1))
        stack.enter_context(mock.patch.object(relative, "rows_at_once", return_value=draw.few))
        stack.enter_context(mock.patch.object(linear_attention, "BLOCK", draw.few))
    return stack


def run(draw: Draw, model, batch: Batch):
    """The batch's outputs."""
    given = {**batch.given, **record(draw)}
    if draw.cache is not None:
        given["use_cache"] = draw.cache
    if draw.checkpoint is not None:
        model.gradient_checkpointing_enable({"use_reentrant": draw.checkpoint})
    shapes = []
    if draw.hook:
        hooked = (model if draw.hook == "lm_head" else getattr(model, "model", model)).get_submodule(draw.hook)
        hooked.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape[:2]))
    if draw.pieces:
        return in_pieces(draw, model, given)
    if draw.compiled:
        torch._dynamo.reset()
        model = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    output = model(**by_choice(draw, given, CHOICES))
    told = draw.hook == "lm_head" and draw.config.sparse_prediction  # to see labelled tokens alone
    if draw.hook in ("embeddings", "layers.0", "lm_head") and not told:
        assert {*shapes} == {batch.real.shape}  # who looks on sees the batch as it came
    return output


def in_pieces(draw: Draw, model, given: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The outputs by token of some tokens after the others."""
    cache, parts = None, defaultdict(list)
    length = (given["inputs_embeds"] if draw.embeds else given["input_ids"]).shape[1]
    for start, end in zip((0, *draw.pieces), (*draw.pieces, length), strict=True):
        piece = dict(given)
        for key in ("input_ids", "inputs_embeds", "token_type_ids", "position_ids"):
            if given.get(key) is not None:
                piece[key] = given[key][:, start:end]
        if given["attention_mask"] is not None:
            piece["attention_mask"] = given["attention_mask"][:, :end]
        output = model(**piece, cache=cache)
        cache = output[CACHE]
        for key, value in by_token(draw, output).items():
            parts[key].append(value)
    return {key: torch.cat(values, dim=1) for key, values in parts.items()}


def tolerance(config) -> float:
    """1e-9 in float64; transformers computes the frequencies of scaled rotary schemes in float32."""
    if (config.rope_parameters or {}).get("rope_type", "default") != "default":
        return 1e-4
    return 1e-8 if config.attention_type == "linear" else 1e-9


def close(actual: torch.Tensor, expected: torch.Tensor, name: str, atol: float) -> None:
    torch.testing.assert_close(
        actual, expected, rtol=atol, atol=atol, check_dtype=False, msg=lambda text: f"{name}: {text}"
    )


def at_tokens(draw: Draw, batch: Batch, output) -> dict[str, torch.Tensor]:
    """What can be compared: outputs at real tokens, (T, ...), and of rows that are one sequence, (B, ...)."""
    found = {key: value[batch.real] for key, value in by_token(draw, output).items()}
    pools = batch.whole and not (draw.square and not batch.real[:, 0].all())
    return found | (by_row(draw, output) if pools else {})


def compare_attentions(batch: Batch, ours, expected, atol: float) -> None:
    """Every sequence attends to itself as it does alone, and so to nothing else."""
    for (row, places), alone_attentions in zip(batch.sequences, expected, strict=True):
        for layer, (its, own) in enumerate(zip(alone_attentions, ours, strict=True)):
            close(own[row][:, places][..., places], its[0], f"attentions of layer {layer}", atol)


def weigh(values: dict[str, torch.Tensor], seed: int) -> torch.Tensor:
    """A number that depends on all values, each in a way of its own."""
    generator = torch.Generator().manual_seed(seed)
    return sum((x * torch.randn(x.shape, generator=generator)).sum() for _, x in sorted(values.items()))


def compare_gradients(model, reference, atol: float) -> None:
    expected = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        ours, its = (torch.zeros_like(x) if x.grad is None else x.grad for x in (parameter, expected[name]))
        close(ours, its, f"gradient of {name}", atol)


def room_of(draw: Draw, batch: Batch) -> dict[str, int]:
    """The size of the tables: ample, or just enough; padding needs none of it where it can be seen to be padding."""
    if draw.config.rope_parameters:
        return {}
    seen = torch.ones_like(batch.real) if draw.square else batch.real
    longest = int(batch.positions[seen].max()) + 1
    if not draw.tight:
        longest = 128
    elif draw.square or draw.pieces or draw.compiled or not draw.reads:
        longest = max(longest, batch.real.shape[1], 10)
    return {"max_position_embeddings": longest}


def check(draw: Draw) -> None:
    """The batch has the outputs, the loss and the gradients of its sequences."""
    batch = lay(draw)
    model = draw.build(**room_of(draw, batch))
    fill(draw, batch, model.config)
    reference, own = copy.deepcopy(model).eval(), copy.copy(batch)
    reference.set_attn_implementation("eager")
    reference.config.unpad_inputs = True
    if draw.embeds:
        own.given = {**batch.given, "inputs_embeds": batch.given["inputs_embeds"].detach().requires_grad_()}
    expected, atol = alone(draw, reference, own), tolerance(model.config)
    attentions = expected.pop("attentions")
    with surroundings(draw):
        output = run(draw, model, batch)
        ours = at_tokens(draw, batch, output)
        for name, value in ours.items():
            close(value, expected[name], name, atol)
        if draw.recorded == "attentions":
            compare_attentions(batch, output["attentions"], attentions, atol)
        if draw.labels:
            totals = output["loss"], expected_loss(draw, batch, expected)
        else:
            totals = weigh(ours, draw.seed), weigh({name: expected[name] for name in ours}, draw.seed)
        totals[0].backward()
    totals[1].backward()
    if draw.labels and draw.head in LABELLED:
        atol = max(atol, 1e-5)
    close(*totals, "loss", atol)
    compare_gradients(model, reference, atol)
    if draw.embeds:
        close(batch.given["inputs_embeds"].grad, own.given["inputs_embeds"].grad, "inputs_embeds", atol)

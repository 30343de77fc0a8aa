"""What every position scheme keeps, over the whole table and its variants."""

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

from helpers import CASES, FEW, over, tiny_config, tiny_model, token_ids
from hf_rope import SCHEMES, HfRopeForMaskedLM, HfRopeForSequenceClassification, HfRopeModel
from hf_rope.model import relative
from hf_rope.model.modeling_hf_rope import ATTENTIONS

LENGTH = 20


def implementations(case: str) -> tuple[str, ...]:
    config = tiny_config(case)
    return ATTENTIONS[config.attention_type].attn_implementations(config)


def computes(case: str, implementation: str, *rest) -> bool:
    return implementation in implementations(case)


def with_attention(model: HfRopeModel, implementation: str) -> HfRopeModel:
    model = copy.deepcopy(model)
    model.set_attn_implementation(implementation)
    return model


def tolerance(case: str) -> float:
    """1e-9 in float64; transformers computes the frequencies of scaled rotary schemes in float32."""
    scaled = (tiny_config(case).rope_parameters or {}).get("rope_type", "default") != "default"
    return 1e-5 if scaled else 1e-9


def padded_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Four rows: full, padded on the right, on the left, and with a hole."""
    mask = torch.ones(4, LENGTH, dtype=torch.long)
    mask[1, 13:], mask[2, :6], mask[3, 8:11] = 0, 0, 0
    return token_ids(4, LENGTH) * mask, mask


def gradients_of(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor | None]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same_gradients(ours: dict, expected: dict, atol: float = 1e-9) -> None:
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        same = torch.testing.assert_close
        same(ours[name], gradient, rtol=1e-6, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


@over(case=CASES, where=lambda case: "sdpa" in implementations(case))
def test_sdpa_equals_eager(case):
    model = tiny_model(case).double()
    ids, mask = padded_batch()
    outputs, gradients = [], []
    for implementation in ("eager", "sdpa"):
        other = with_attention(model, implementation)
        assert other.config._attn_implementation == implementation
        # Recorded hidden states keep padding in the batch, so that masks and biases meet.
        hidden = other(ids, mask, output_hidden_states=True).hidden_states[-1][mask.bool()]
        outputs.append(hidden)
        gradients.append(gradients_of(other, hidden.square().sum()))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=tolerance(case))
    assert_same_gradients(gradients[1], gradients[0], tolerance(case))


@over(quick=FEW, scheme=SCHEMES, where=lambda scheme: "flex_attention" in implementations(scheme))
def test_flex_equals_eager(scheme):
    torch._dynamo.reset()
    model, (ids, mask) = tiny_model(scheme), padded_batch()
    with torch.no_grad():
        expected = with_attention(model, "eager")(ids, mask).last_hidden_state
        ours = with_attention(model, "flex_attention")(ids, mask).last_hidden_state
    torch.testing.assert_close(ours[mask.bool()], expected[mask.bool()], rtol=0, atol=1e-4)


@pytest.mark.full
@over(scheme=SCHEMES, where=lambda scheme: "flex_attention" in implementations(scheme))
def test_packed_equals_separate_under_flex(scheme):
    torch._dynamo.reset()
    model, lengths = tiny_model(scheme), (9, 4, 7)
    parts = [token_ids(1, length, seed=length) for length in lengths]
    at = torch.cat([torch.arange(length) for length in lengths])[None]
    with torch.no_grad():
        separate = torch.cat([model(part).last_hidden_state for part in parts], dim=1)
        packed = with_attention(model, "flex_attention")(torch.cat(parts, dim=1), position_ids=at).last_hidden_state
    torch.testing.assert_close(packed, separate, rtol=0, atol=1e-4)


@over(case=CASES, implementation=["eager", "sdpa"], where=computes)
def test_leaving_padding_out_changes_nothing(case, implementation):
    model = with_attention(tiny_model(case).double(), implementation)
    ids, mask = padded_batch()
    real = mask.bool()
    compact = model(ids, mask).last_hidden_state
    dense = model(ids, mask, output_hidden_states=True).last_hidden_state
    assert not compact[~real].any()
    assert dense[~real].any()
    torch.testing.assert_close(compact[real], dense[real], rtol=0, atol=tolerance(case))
    target = torch.randn_like(dense)[real]
    ours, expected = (gradients_of(model, (x[real] * target).sum()) for x in (compact, dense))
    assert_same_gradients(ours, expected, tolerance(case))


@over(case=CASES, dense=[False, True])
def test_padding_on_either_side_changes_nothing(case, dense):
    model, ids = tiny_model(case).double(), token_ids(1, 12)
    with torch.no_grad():
        expected = model(ids).last_hidden_state
        for left, right in ((0, 5), (5, 0), (3, 4)):
            padded = F.pad(ids, (left, right), value=7)
            mask = F.pad(torch.ones_like(ids), (left, right))
            out = model(padded, mask, output_hidden_states=dense).last_hidden_state
            torch.testing.assert_close(out[:, left : left + 12], expected, rtol=0, atol=tolerance(case))


@over(case=CASES, dense=[False, True])
def test_a_fully_padded_row_gives_no_nan(case, dense):
    ids, mask = padded_batch()
    mask[0] = 0
    for rows in (slice(None), slice(0, 1)):
        out = tiny_model(case)(ids[rows], mask[rows], output_hidden_states=dense).last_hidden_state
        assert out.isfinite().all()


@over(case=CASES, dense=[False, True])
def test_packed_equals_separate(case, dense):
    model = tiny_model(case).double()
    lengths = (7, 1, 9, 7)
    ids = token_ids(1, sum(lengths))
    at = torch.cat([torch.arange(n) for n in lengths])[None]
    separate = torch.cat([model(part).last_hidden_state for part in ids.split(lengths, dim=1)], dim=1)
    packed = model(ids, position_ids=at, output_hidden_states=dense).last_hidden_state
    torch.testing.assert_close(packed, separate, rtol=0, atol=tolerance(case))
    target = torch.randn_like(packed)
    ours, expected = (gradients_of(model, (x * target).sum()) for x in (packed, separate))
    assert_same_gradients(ours, expected, tolerance(case))
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    told = model(ids, cu_seq_lens_q=bounds, output_hidden_states=dense).last_hidden_state
    torch.testing.assert_close(told, separate, rtol=0, atol=tolerance(case))


@over(case=CASES, stride=[1, 2])
def test_computing_few_sequences_and_few_rows_at_once_changes_nothing(case, stride, monkeypatch):
    model, ids = tiny_model(case).double(), token_ids(5, LENGTH)
    at, target = stride * torch.arange(LENGTH)[None], torch.randn(5, LENGTH, 1)
    outputs, gradients = [], []
    for scores, rows in ((2**22, 64), (1, 7), (1, 1)):
        monkeypatch.setattr(relative, "SCORES_AT_ONCE", scores)
        monkeypatch.setattr(relative, "rows_at_once", lambda x, rows=rows: rows)
        outputs.append(model(ids, position_ids=at).last_hidden_state)
        gradients.append(gradients_of(model, (outputs[-1] * target).sum()))
        recorded = model(ids, position_ids=at, output_hidden_states=True).last_hidden_state
        torch.testing.assert_close(recorded, outputs[0], rtol=0, atol=tolerance(case))
    for few in (1, 2):
        torch.testing.assert_close(outputs[few], outputs[0], rtol=0, atol=tolerance(case))
        assert_same_gradients(gradients[few], gradients[0], tolerance(case))


def by_mask_alone(case: str, implementation: str) -> bool:
    """Whether positions do not follow the length of a sequence, which a 4-D mask does not tell."""
    return computes(case, implementation) and SCHEMES[case](tiny_config(case)).length_independent


@over(case=SCHEMES, implementation=["eager", "sdpa"], where=by_mask_alone)
def test_four_dimensional_masks_boolean_or_additive_are_the_padding_mask(case, implementation):
    model = with_attention(tiny_model(case).double(), implementation)
    ids, mask = padded_batch()
    allowed = mask.bool()[:, None, None, :].expand(-1, 1, LENGTH, -1)
    at = torch.arange(LENGTH)[None]
    with torch.no_grad():
        expected = model(ids, mask, position_ids=at).last_hidden_state[mask.bool()]
        added = torch.zeros(allowed.shape, dtype=torch.double).masked_fill(~allowed, torch.finfo(torch.double).min)
        for square in (allowed, added):
            out = model(ids, square, position_ids=at).last_hidden_state[mask.bool()]
            torch.testing.assert_close(out, expected, rtol=0, atol=1e-9)
        if implementation == "eager":  # a query without any key
            added[:, :, 3] = -torch.inf
            assert model(ids, added, position_ids=at).last_hidden_state.isfinite().all()


@over(scheme=SCHEMES, dense=[False, True])
def test_padding_does_not_count_against_the_length_limit(scheme, dense):
    model, ids = tiny_model(scheme).double(), token_ids(1, 80)
    mask = torch.ones_like(ids)
    mask[:, 50:] = 0
    with torch.no_grad():
        out = model(ids, mask, output_hidden_states=dense).last_hidden_state[:, :50]
        torch.testing.assert_close(out, model(ids[:, :50]).last_hidden_state, rtol=0, atol=1e-9)


@over(case=CASES)
def test_packing_and_padding_meet_in_one_batch(case):
    model, ids = tiny_model(case).double(), token_ids(2, 12)
    mask = torch.ones_like(ids)
    mask[0, 9:] = 0
    at = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 0, 0], [*range(5), *range(7)]])
    with torch.no_grad():
        out = model(ids, mask, position_ids=at).last_hidden_state
        for row, start, end in ((0, 0, 4), (0, 4, 9), (1, 0, 5), (1, 5, 12)):
            alone = model(ids[row : row + 1, start:end]).last_hidden_state[0]
            torch.testing.assert_close(out[row, start:end], alone, rtol=0, atol=tolerance(case))


@over(case=CASES)
def test_shift_invariance_is_as_declared(case):
    model, ids = tiny_model(case).double(), token_ids(2, LENGTH)
    at = torch.arange(LENGTH)[None]
    with torch.no_grad():
        still, moved = (model(ids, position_ids=x).last_hidden_state for x in (at, at + 37))
    assert torch.allclose(still, moved, rtol=0, atol=tolerance(case)) == model.position.shift_invariant


@over(case=CASES)
def test_tokens_permuted_with_their_positions_permute_the_output(case):
    model, ids = tiny_model(case).double(), token_ids(2, LENGTH)
    order = torch.randperm(LENGTH, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(ids).last_hidden_state[:, order]
        permuted = model(ids[:, order], position_ids=order[None]).last_hidden_state
    torch.testing.assert_close(permuted, expected, rtol=0, atol=tolerance(case))


@over(case=CASES)
def test_order_matters_where_there_are_positions(case):
    model, ids = tiny_model(case).double(), token_ids(1, LENGTH)
    swapped = ids.clone()
    swapped[0, [3, 9]] = ids[0, [9, 3]]
    with torch.no_grad():
        first = [model(x).last_hidden_state[0, 0] for x in (ids, swapped)]
    assert torch.allclose(*first, rtol=0, atol=tolerance(case)) == (model.position.kind == "none")


@over(case=CASES, reentrant=[True, False])
def test_gradients_reach_every_parameter_and_survive_checkpointing(case, reentrant):
    model = tiny_model(case, HfRopeForMaskedLM).double().train()
    ids, mask = padded_batch()
    labels = ids.where(token_ids(4, LENGTH, seed=1) > 60, torch.tensor(-100))
    expected = gradients_of(model, model(ids, mask, labels=labels).loss)
    assert [name for name, gradient in expected.items() if gradient is None] == []
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert_same_gradients(gradients_of(model, model(ids, mask, labels=labels).loss), expected)


@over(scheme=SCHEMES, pooling=["cls", "mean"])
def test_classifiers_leave_no_parameter_unused(scheme, pooling):
    model = tiny_model(scheme, HfRopeForSequenceClassification, classifier_pooling=pooling)
    loss = model(token_ids(3, 9), labels=torch.tensor([0, 1, 0])).loss
    assert [name for name, gradient in gradients_of(model, loss).items() if gradient is None] == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_dropout_of_attention_zeroes_its_share_and_scales_the_rest(scheme):
    model = tiny_model(scheme, attn_implementation="eager", attention_probs_dropout_prob=0.25, num_hidden_layers=1)
    ids = token_ids(4, LENGTH)
    plain, dropped = (model.train(mode)(ids, output_attentions=True).attentions[0] for mode in (False, True))
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], plain[kept] / 0.75, rtol=1e-4, atol=1e-6)
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.05)


@over(scheme=SCHEMES, where=lambda scheme: "sdpa" in implementations(scheme))
def test_sdpa_is_told_the_dropout_that_the_modules_have(scheme, monkeypatch):
    """In training; and where somebody turns the modules on or off, as estimates of uncertainty do."""
    told, compute = [], F.scaled_dot_product_attention

    def kernel(*args, dropout_p=0.0, **kwargs):
        told.append(dropout_p)
        return compute(*args, dropout_p=dropout_p, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", kernel)
    model = tiny_model(scheme, attn_implementation="sdpa", attention_probs_dropout_prob=0.25, num_hidden_layers=1)
    dropouts = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    for training, of_modules in ((True, True), (False, False), (False, True), (True, False)):
        model.train(training)
        for module in dropouts:
            module.train(of_modules)
        model(token_ids(4, LENGTH))
    assert told == [0.25, 0.0, 0.25, 0.0]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_where_every_probability_is_dropped_no_token_gets_anything(scheme):
    """Neither of the values nor of what a scheme adds to them."""
    model, seen = tiny_model(scheme, attn_implementation="eager", attention_probs_dropout_prob=1.0).train(), []
    for layer in model.layers:
        layer.attention.output.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(token_ids(4, LENGTH))
    assert len(seen) == len(model.layers)
    assert not any(x.any() for x in seen)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_dropout_of_hidden_states_comes_after_the_embeddings_and_twice_a_layer(scheme):
    decodes = {"is_decoder": True, "add_cross_attention": True, "use_cache": False}
    for settings, states, a_layer in (({}, {}, 2), (decodes, {"encoder_hidden_states": torch.randn(4, 5, 32)}, 3)):
        model, seen = tiny_model(scheme, hidden_dropout_prob=0.25, **settings).train(), []
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Dropout) and not name.startswith("position"):
                module.register_forward_hook(lambda module, args, output, seen=seen: seen.append(output == 0))
        model(token_ids(4, LENGTH), **states)
        shares = [dropped.float().mean().item() for dropped in seen]
        assert len(shares) == 1 + a_layer * model.config.num_hidden_layers
        assert shares == pytest.approx([0.25] * len(shares), abs=0.05)


@over(case=CASES, dtype=[torch.bfloat16, torch.float16])
def test_half_precision_stays_close_up_to_position_8191(case, dtype):
    model = tiny_model(case, max_position_embeddings=8192)
    half = copy.deepcopy(model).to(dtype)
    model = copy.deepcopy(half).float()
    ids = token_ids(2, LENGTH)
    errors = {}
    for name, at in (("near", torch.arange(LENGTH)), ("far", torch.linspace(0, 8191, LENGTH).long())):
        with torch.no_grad():
            exact, rounded = (m(ids, position_ids=at[None]).last_hidden_state.float() for m in (model, half))
        errors[name] = float((exact - rounded).norm() / exact.norm())
    assert errors["far"] < (0.05 if dtype == torch.bfloat16 else 0.01), errors


WAYS: dict[str, dict[str, torch.Tensor]] = {
    "full": {},
    "few rows": {},
    "padded": {"attention_mask": padded_batch()[1]},
    "packed": {"position_ids": torch.cat([torch.arange(15), torch.arange(LENGTH - 15)])[None]},
}


@over(case=CASES, way=list(WAYS), mode=["weights", "autocast"])
def test_bfloat16_is_within_bounds_of_float64(case, way, mode, monkeypatch):
    """Outputs to 4% and the gradient to 15%, in the norm; 8 bits are 0.4% a number, and FAVOR+ takes exponentials."""
    model, ids, inputs = tiny_model(case).bfloat16(), padded_batch()[0], WAYS[way]
    exact = copy.deepcopy(model).double()
    model = model if mode == "weights" else model.float()
    if way == "few rows":
        monkeypatch.setattr(relative, "SCORES_AT_ONCE", 1)
        monkeypatch.setattr(relative, "rows_at_once", lambda x: 7)
    real = inputs.get("attention_mask", torch.ones_like(ids)).bool()
    target, found = torch.randn(4, LENGTH, model.config.hidden_size), []
    for computed in (model, exact):
        with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast" and computed is model):
            out = computed(ids, **inputs).last_hidden_state[real].double()
        out.backward(target[real].double())
        gradients = [x.grad.double().flatten() for x in computed.parameters() if x.grad is not None]
        found.append((out.detach(), torch.cat(gradients)))
    errors = [float((ours - theirs).norm() / theirs.norm()) for ours, theirs in zip(*found, strict=True)]
    assert errors[0] < 0.04, errors
    assert errors[1] < 0.15, errors


@pytest.mark.full
@pytest.mark.parametrize("scheme", SCHEMES)
def test_compiles_to_one_graph(scheme):
    torch._dynamo.reset()
    model, (ids, mask) = tiny_model(scheme, num_hidden_layers=1).double(), padded_batch()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch.no_grad():
        for length in (LENGTH, LENGTH - 3):
            inputs = (ids[:, :length], mask[:, :length])
            real = inputs[1].bool()
            ours, expected = (m(*inputs).last_hidden_state[real] for m in (compiled, model))
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_inductor_computes_outputs_and_gradients(scheme):
    torch._dynamo.reset()
    model, (ids, mask) = tiny_model(scheme), padded_batch()
    compiled = torch.compile(model, fullgraph=True)
    outputs, gradients = [], []
    for computed in (model, compiled):
        outputs.append(computed(ids, mask).last_hidden_state[mask.bool()])
        gradients.append(gradients_of(model, outputs[-1].square().mean()))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=1e-4)
    for name, expected in gradients[0].items():
        if expected is not None:
            torch.testing.assert_close(gradients[1][name], expected, rtol=1e-3, atol=1e-4)


@over(quick=FEW, scheme=SCHEMES)
def test_a_new_length_recompiles_once_at_most(scheme):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(tiny_model(scheme, num_hidden_layers=1), fullgraph=True, backend=counter)
    with torch.no_grad():
        for length in (LENGTH, 17, 12, 9):
            compiled(token_ids(2, length), torch.ones(2, length, dtype=torch.long))
    assert counter.frame_count <= 2


@over(case=CASES)
def test_trains_under_bfloat16_autocast(case):
    model, (ids, mask) = tiny_model(case), padded_batch()
    target = torch.randn(4, LENGTH, model.config.hidden_size)
    outputs, gradients = [], []
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs.append(model(ids, mask).last_hidden_state)
            loss = ((outputs[-1] - target)[mask.bool()] ** 2).mean()
        gradients.append(gradients_of(model, loss))
    real = [x.detach()[mask.bool()].float() for x in outputs]
    assert (real[1] - real[0]).norm() < 0.05 * real[0].norm()
    for name, expected in gradients[0].items():
        if expected is not None:
            assert gradients[1][name].dtype == torch.float32
            assert (gradients[1][name] - expected).norm() < 0.2 * expected.norm() + 1e-3, name

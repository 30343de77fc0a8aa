"""The layout contract: how a batch is laid out is nobody's business. The fuzz draws many; these have names."""

import copy

import pytest
import torch
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import eager_mask

from heads import HEADS, LOSSES, some_tokens
from helpers import CASES, FEW, over, set_reads, tiny_model, token_ids
from hf_rope import SCHEMES, HfRopeForMaskedLM, HfRopeForQuestionAnswering, HfRopeModel
from hf_rope.model.versions import CACHE

MASK = torch.tensor([[1] * 9, [1] * 6 + [0] * 3, [0] * 4 + [1] * 5])
IDS = token_ids(3, 9)
REAL = MASK.bool()
WAYS = ["plain", "recorded", "dense", "accelerator"]
FREE = [scheme for scheme in SCHEMES if SCHEMES[scheme].score == "none"]


@pytest.fixture
def no_reads(monkeypatch):
    """Reads are not free, as on an accelerator."""
    set_reads(monkeypatch, free=False)


def rows_alone(model, inputs: dict[str, torch.Tensor]) -> list:
    """What the model gives for each row's real tokens as a batch of one."""
    outputs = []
    for row, real in enumerate(inputs["attention_mask"].bool()):
        part = {key: x[row : row + 1] for key, x in inputs.items() if key != "attention_mask"}
        outputs.append(model(**{key: x[..., real] if x.shape[-1] == len(real) else x for key, x in part.items()}))
    return outputs


def close(actual, expected, atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=atol)


@over(case=CASES, way=WAYS)
def test_padded_rows_give_what_each_gives_alone(case, way, request):
    model = tiny_model(case, unpad_inputs=way != "dense").double()
    if way == "accelerator":
        request.getfixturevalue("no_reads")
    with torch.no_grad():
        output = model(IDS, MASK, output_hidden_states=way == "recorded")
        for row, alone in enumerate(rows_alone(model, {"input_ids": IDS, "attention_mask": MASK})):
            close(output.last_hidden_state[row, REAL[row]], alone.last_hidden_state[0], 1e-5)
            close(output.pooler_output[row], alone.pooler_output[0], 1e-5)


def shifted(places: torch.Tensor) -> torch.Tensor:
    """Where tokens of the rows without padding lie in the padded ones."""
    return places + torch.tensor([0, 0, 4])


@over(scheme=SCHEMES, way=WAYS)
def test_the_loss_of_an_answer_is_that_of_each_row_alone(scheme, way, request):
    model = tiny_model(scheme, HfRopeForQuestionAnswering, unpad_inputs=way != "dense")
    starts, ends = torch.tensor([2, 0, 1]), torch.tensor([4, 5, 4])
    alone = [
        model(IDS[row : row + 1, REAL[row]], start_positions=starts[row : row + 1], end_positions=ends[row : row + 1])
        for row in range(3)
    ]
    if way == "accelerator":
        request.getfixturevalue("no_reads")
    asked = {"output_hidden_states": way == "recorded"}
    output = model(IDS, MASK, start_positions=shifted(starts), end_positions=shifted(ends), **asked)
    close(output.loss, torch.stack([one.loss for one in alone]).mean())
    assert (output.start_logits[~REAL] == torch.finfo(torch.float32).min).all()
    inside = model(IDS, MASK, start_positions=torch.tensor([4, 7, 0]), end_positions=torch.tensor([5, 8, 3]), **asked)
    first = model(IDS[:1], start_positions=torch.tensor([4]), end_positions=torch.tensor([5]))
    close(inside.loss, first.loss)  # the other two answers lie in padding, and count as beyond the input


@over(name=LOSSES, way=WAYS, training=[True, False])
def test_what_stands_at_padding_changes_no_loss_and_no_gradient(name, way, training, request):
    """Neither its ids and types nor its labels."""
    head = HEADS[name]
    model = head.build("t5", unpad_inputs=way != "dense").double().train(training)
    if way == "accelerator":
        request.getfixturevalue("no_reads")
    inputs = {**head.batch(), **head.labels}
    padding = inputs["attention_mask"] == 0
    losses, gradients = [], []
    for filler in (0, 1):
        changed = {**inputs, "input_ids": inputs["input_ids"].masked_fill(padding, filler)}
        changed["token_type_ids"] = padding.long() * filler
        if "labels" in inputs and inputs["labels"].shape == padding.shape:
            changed["labels"] = inputs["labels"].masked_fill(padding, filler)
        model.zero_grad()
        losses.append(model(**changed, output_hidden_states=way == "recorded").loss)
        losses[-1].backward()
        gradients.append({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
    close(*losses)
    assert gradients[0].keys() == gradients[1].keys()
    for key, gradient in gradients[0].items():
        close(gradients[1][key], gradient, 1e-9)


@over(quick=FEW, case=CASES)
def test_a_compiled_model_takes_positions_with_gaps(case):
    torch._dynamo.reset()
    model = tiny_model(case, num_hidden_layers=1).double()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    at = torch.tensor([[0, 5, 11, 20, 33, 40]])
    with torch.no_grad():
        ours, expected = (m(IDS[:, :6], position_ids=at).last_hidden_state for m in (compiled, model))
    close(ours, expected, 1e-6)


@over(case=CASES, way=WAYS)
def test_one_row_of_packed_positions_serves_the_whole_batch(case, way, request):
    model = tiny_model(case, unpad_inputs=way != "dense").double()
    if way == "accelerator":
        request.getfixturevalue("no_reads")
    at = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    with torch.no_grad():
        output = model(IDS, position_ids=at, output_hidden_states=way == "recorded").last_hidden_state
        separate = [model(part).last_hidden_state for part in IDS.split((4, 5), dim=1)]
    close(output, torch.cat(separate, dim=1))


@over(case=CASES, way=["plain", "accelerator"])
def test_positions_of_padding_are_nobodys(case, way, request):
    """Far beyond a table, or in the middle of the tokens."""
    model = tiny_model(case).double()
    if way == "accelerator":
        request.getfixturevalue("no_reads")
    at = torch.tensor([[*range(9)], [*range(6), 0, 0, 0], [0, 0, 0, 0, *range(5)]]) + 3
    with torch.no_grad():
        expected = model(IDS, MASK, position_ids=at).last_hidden_state[REAL]
        for filler in (0, 7, 5000):
            moved = at.masked_fill(~REAL, filler)
            for asked in (False, True):
                found = model(IDS, MASK, position_ids=moved, output_hidden_states=asked).last_hidden_state[REAL]
                close(found, expected, 1e-5)


@over(case=CASES)
def test_a_decoder_with_a_pooler_takes_a_cache_and_padding_on_the_left(case):
    model = tiny_model(case, is_decoder=True)
    ids, mask = IDS[2:], MASK[2:]
    with torch.no_grad():
        first = model(ids[:, :7], mask[:, :7], cache=DynamicCache(config=model.config))
        second = model(ids[:, 7:], mask, cache=first[CACHE])
        whole = model(ids, mask).last_hidden_state
    close(second.last_hidden_state, whole[:, 7:], 1e-4)
    close(first.pooler_output, model.pooler(whole[:, 4:5], None), 1e-4)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_embeddings_see_the_batch_as_it_came(scheme):
    model, shapes = tiny_model(scheme), []
    for name in ("embeddings", "embeddings.word_embeddings", "embeddings.token_type_embeddings", "position"):
        model.get_submodule(name).register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape[:2]))
    for inputs in ({"attention_mask": MASK}, {"position_ids": torch.arange(9)[None] % 4}, {}):
        assert model(IDS, **inputs).last_hidden_state.shape[:2] == IDS.shape
    assert {*shapes} == {IDS.shape}
    assert len(shapes) == 12


@pytest.mark.parametrize("unpad", [True, False])
def test_a_setting_keeps_batches_dense(unpad, monkeypatch):
    model, shapes = tiny_model("rotary", HfRopeForMaskedLM, unpad_inputs=unpad).train(), []
    for module in (model.model.layers[0], model.lm_head):  # not by hooks, with which the model stays dense too

        def forward(x, *rest, compute=module.forward, **named):
            shapes.append(x.shape)
            return compute(x, *rest, **named)

        monkeypatch.setattr(module, "forward", forward)
    labels = some_tokens(IDS)
    output = model(IDS, MASK, labels=labels)
    real = int((labels != -100)[REAL].sum())
    assert shapes == ([(1, 20, 32), (real, 32)] if unpad else [(3, 9, 32), (3, 9, 32)])
    assert (output.logits is None) == unpad


@over(name=["masked-lm", "causal-lm"], sparse=[None, True, False])
def test_sparse_prediction_is_a_setting_that_changes_no_loss(name, sparse, no_reads):
    head = HEADS[name]
    model, inputs = head.build(sparse_prediction=sparse).train(), {**head.batch(), **head.labels}
    output = model(**inputs)
    assert (output.logits is None) == bool(sparse)
    close(output.loss, model.eval()(**inputs).loss)


class Varlen:
    """Stands in for a flash kernel: each sequence between the bounds by itself; keeps what it was called with."""

    def __init__(self):
        self.calls = []

    def compute(self, module, query, key, value, attention_mask, scaling=None, is_causal=False, dropout=0.0, **kwargs):
        self.calls.append({**kwargs, "attention_mask": attention_mask, "shape": query.shape})
        bounds, keys = kwargs["cu_seq_lens_q"], kwargs["cu_seq_lens_k"]
        assert torch.equal(bounds, keys)
        lengths = bounds.diff()
        assert kwargs["max_length_q"] == kwargs["max_length_k"] >= int(lengths.max())
        assert query.shape[0] == 1
        assert int(bounds[-1]) == query.shape[2]
        parts = [x.split(lengths.tolist(), dim=2) for x in (query, key, value)]
        outputs = [
            F.scaled_dot_product_attention(q, k, v, scale=scaling, is_causal=is_causal)
            for q, k, v in zip(*parts, strict=True)
        ]
        return torch.cat(outputs, dim=2).transpose(1, 2), None


BATCHES = {
    "padded": {"attention_mask": MASK},
    "packed": {"position_ids": torch.arange(9)[None] % 4},
    "packed and padded": {
        "attention_mask": MASK,
        "position_ids": torch.tensor([[*range(4), *range(5)], [*range(3)] * 3, [0, 0, 0, 0, *range(2), *range(3)]]),
    },
    "a mask of ones": {"attention_mask": torch.ones_like(MASK)},
    "nothing is real": {"attention_mask": torch.zeros_like(MASK)},
    "full": {},
}


@over(scheme=FREE, batch=BATCHES, is_decoder=[False, True], named=[True, False])
def test_a_function_that_takes_bounds_is_called_once_a_layer(scheme, batch, is_decoder, named):
    varlen = Varlen()

    def with_names(module, query, key, value, attention_mask, cu_seq_lens_q=None, cu_seq_lens_k=None, **kwargs):
        bounds = {"cu_seq_lens_q": cu_seq_lens_q, "cu_seq_lens_k": cu_seq_lens_k}
        return varlen.compute(module, query, key, value, attention_mask, **bounds, **kwargs)

    def without_names(module, query, key, value, attention_mask, **kwargs):
        return varlen.compute(module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register("varlen", with_names if named else without_names)
    model = tiny_model(scheme, is_decoder=is_decoder, use_cache=False)
    other = copy.deepcopy(model)
    other.set_attn_implementation("varlen")
    real = BATCHES[batch].get("attention_mask", torch.ones_like(MASK)).bool()
    expected = model(IDS, **BATCHES[batch]).last_hidden_state
    for asked in ({}, {"output_hidden_states": True}):
        varlen.calls.clear()
        found = other(IDS, **BATCHES[batch], of_the_callers_own=7, **asked).last_hidden_state
        assert len(varlen.calls) == 2
        assert all(call["of_the_callers_own"] == 7 and call["attention_mask"] is None for call in varlen.calls)
        tokens = int(real.sum()) or real.numel()  # where nothing is real, nothing is left out
        assert all(call["shape"] == (1, 4, tokens, 8) for call in varlen.calls)
        torch.testing.assert_close(found[real], expected[real], rtol=0, atol=2e-6)
        gradients = [
            torch.autograd.grad((x[real] ** 2).sum(), m.layers[0].attention.key.weight, retain_graph=True)[0]
            for m, x in ((other, found), (model, expected))
        ]
        close(*gradients, 1e-3)


@pytest.mark.parametrize("scheme", FREE)
def test_bounds_of_the_callers_reach_the_function_as_they_are(scheme):
    varlen = Varlen()

    def function(module, query, key, value, attention_mask, **kwargs):
        return varlen.compute(module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register("varlen", function)
    model = tiny_model(scheme)
    ids, bounds = IDS[:1], torch.tensor([0, 4, 9], dtype=torch.int32)
    expected = torch.cat([model(part).last_hidden_state for part in ids.split((4, 5), dim=1)], dim=1)
    model.set_attn_implementation("varlen")
    all_four = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": 5, "max_length_k": 5}
    for given in (all_four, {"cu_seq_lens_q": bounds}):
        close(model(ids, **given).last_hidden_state, expected)
        assert varlen.calls[-1]["cu_seq_lens_q"] is bounds
        assert varlen.calls[-1]["max_length_q"] == given.get("max_length_q", 9)
    for wrong in ({"max_length_q": 5}, {"cu_seq_lens_q": bounds, "cu_seq_lens_k": torch.tensor([0, 5, 9])}):
        with pytest.raises(ValueError, match="cu_seq_lens_"):
            model(ids, **wrong)


@pytest.mark.parametrize("scheme", FREE)
def test_bounds_are_of_the_decoder_alone_and_not_of_the_states_that_it_attends_to(scheme):
    seen = []

    def function(module, query, key, value, attention_mask, **kwargs):
        seen.append({*kwargs} & {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"})
        if seen[-1]:
            return Varlen().compute(module, query, key, value, attention_mask, **kwargs)
        return AttentionInterface()["sdpa"](module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register("varlen", function)
    model = tiny_model(scheme, is_decoder=True, add_cross_attention=True, use_cache=False)
    bounds, states = torch.tensor([0, 4, 9]), torch.randn(1, 5, 32)
    parts = [model(part, encoder_hidden_states=states).last_hidden_state for part in IDS[:1].split((4, 5), dim=1)]
    model.set_attn_implementation("varlen")
    found = model(IDS[:1], encoder_hidden_states=states, cu_seq_lens_q=bounds).last_hidden_state
    close(found, torch.cat(parts, dim=1))
    assert [len(names) for names in seen] == [4, 0, 4, 0]


def by_mask_alone(module, query, key, value, mask, scaling, position_bias=None, **kwargs):
    """A user's function as the eager ones of transformers' models: what it is not told by the mask it does not do."""
    scores = query @ key.mT * scaling
    for term in (position_bias, mask):
        scores = scores if term is None else scores + term
    return (scores.softmax(-1) @ value).transpose(1, 2), None


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if not SCHEMES[scheme].changes_values])
@pytest.mark.parametrize("is_decoder", [False, True])
@pytest.mark.parametrize("reads", [True, False])
def test_a_function_of_the_users_with_a_mask_of_its_own_gets_the_mask(scheme, is_decoder, reads, monkeypatch):
    """And the scheme's term as `position_bias`."""
    AttentionInterface.register("masked", by_mask_alone)
    AttentionMaskInterface.register("masked", eager_mask)
    model = tiny_model(scheme, is_decoder=is_decoder, attn_implementation="eager").double()
    other = copy.deepcopy(model)
    other.set_attn_implementation("masked")
    for batch in BATCHES.values():
        real = batch.get("attention_mask", torch.ones_like(MASK)).bool()
        for use_cache in [False, True] if is_decoder and "position_ids" not in batch else [False]:
            expected = model(IDS, **batch, use_cache=use_cache).last_hidden_state[real]
            with monkeypatch.context() as patch:
                set_reads(patch, free=reads)
                found = other(IDS, **batch, use_cache=use_cache).last_hidden_state[real]
            close(found, expected, 1e-9)


@pytest.mark.parametrize("scheme", ["t5", "rotary"])
def test_a_function_that_could_not_keep_padding_apart_is_refused(scheme, no_reads):
    AttentionInterface.register("blind", AttentionInterface()["sdpa"])
    model = tiny_model(scheme, attn_implementation="blind")
    assert model(IDS).last_hidden_state.isfinite().all()
    for inputs in ({"attention_mask": MASK}, {"position_ids": torch.arange(9)[None] % 4}):
        with pytest.raises(ValueError, match=r"'blind' cannot keep padding or packed .* AttentionMaskInterface\.$"):
            model(IDS, **inputs)


@over(case=CASES)
def test_an_accelerator_computes_every_kind_of_batch_alike(case, monkeypatch):
    """Positions with gaps, of each row's own, packed; token by token what a CPU gives, and its gradients."""
    model = tiny_model(case).double()
    gaps = torch.tensor([[0, 2, 3, 9, 1, 12, 21, 30, 5]])
    batches = [
        {"position_ids": torch.arange(30, 39)[None]},
        {"position_ids": gaps},
        {"position_ids": gaps + torch.tensor([[0], [3], [11]])},
        {"position_ids": gaps, "attention_mask": MASK},
        *BATCHES.values(),
    ]
    found = []
    for free in (False, True):
        set_reads(monkeypatch, free)
        for batch in batches:
            real = batch.get("attention_mask", torch.ones_like(MASK)).bool()
            out = model(IDS, **batch).last_hidden_state[real]
            own = [*model.position.parameters(), *model.layers[0].parameters()]
            found.append((out, torch.autograd.grad(out.square().sum(), own, allow_unused=True)))
    for here, there in zip(found[: len(batches)], found[len(batches) :], strict=True):
        close(here, there, 1e-5)


def test_packed_rows_are_computed_where_they_are_whatever_the_default_device():
    model, at = tiny_model("rotary"), torch.arange(9)[None] % 4
    expected = model(IDS, position_ids=at).last_hidden_state
    with torch.device("meta"):  # of nothing that is given
        found = model(IDS, position_ids=at).last_hidden_state
    assert torch.equal(found, expected)


def test_a_model_on_the_cpu_leaves_padding_out_and_an_accelerator_does_not(request):
    model = HfRopeModel(tiny_model("rotary").config)
    assert not model(IDS, MASK).last_hidden_state[~REAL].any()
    request.getfixturevalue("no_reads")
    assert model(IDS, MASK).last_hidden_state[~REAL].any()

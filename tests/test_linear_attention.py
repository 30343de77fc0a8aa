"""Linear attention: what the tables of cases do not hold. Equality with the formula is in test_formulas."""

import copy

import pytest
import torch
from torch.nn import functional as F
from transformers import DynamicCache, StaticCache

from helpers import CASES, over, tiny_config, tiny_model, token_ids
from hf_rope import SCHEMES, HfRopeConfig, HfRopeForCausalLM, HfRopeForMaskedLM, HfRopeModel
from hf_rope.analysis import score_terms
from hf_rope.convert import convert, to_native
from hf_rope.model import linear_attention
from hf_rope.model.linear_attention import FavorFeatures, LinearState, attend_in_blocks, attend_to_all
from test_decoder import decoder, generate, in_steps
from test_properties import LENGTH, assert_same_gradients, gradients_of, padded_batch, tolerance

LINEAR = [case for case in CASES if tiny_config(case).attention_type == "linear"]
LINEAR_SCHEMES = [name for name, scheme in SCHEMES.items() if scheme.score == "none" and not scheme.changes_values]
FAVOR = {"attention_type": "linear", "feature_map": "favor"}


def features(size: int, count: int, seed: int = 0) -> FavorFeatures:
    """FAVOR+ for one head of `size`, in float64."""
    config = HfRopeConfig(hidden_size=size, num_attention_heads=1, num_features=count, feature_seed=seed, **FAVOR)
    module = FavorFeatures(config, 0).double()
    module.init_weights(0.02)
    return module


@over(case=LINEAR, block=[1, 3, 7, 64])
def test_the_size_of_a_block_changes_nothing(case, block, monkeypatch):
    model, (ids, mask) = decoder(case, HfRopeModel), padded_batch()
    at = torch.tensor([[*range(7), *range(13)]])
    outputs, gradients = [], []
    for size in (LENGTH, block):
        monkeypatch.setattr(linear_attention, "BLOCK", size)
        padded = model(ids, mask, output_hidden_states=True, use_cache=False).last_hidden_state[mask.bool()]
        packed = [model(ids[:1], position_ids=at, output_hidden_states=dense).last_hidden_state for dense in (0, 1)]
        with torch.no_grad():
            stepped = in_steps(decoder(case), ids, (3, 7, 1, 2, 7))
        outputs.append((padded, *packed, stepped))
        gradients.append(gradients_of(model, padded.square().sum() + packed[1].square().sum()))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=tolerance(case))
    torch.testing.assert_close(outputs[0][1], outputs[0][2], rtol=0, atol=tolerance(case))
    assert_same_gradients(gradients[1], gradients[0], tolerance(case))


@over(name=linear_attention.FEATURE_MAPS, causal=[False, True], long=[False, True])
def test_gradients_are_those_of_finite_differences(name, causal, long, monkeypatch):
    """Where queries and keys are long, what is added to features counts as much as they do."""
    monkeypatch.setattr(linear_attention, "BLOCK", 2)
    config = HfRopeConfig(hidden_size=4, num_attention_heads=1, attention_type="linear", feature_map=name)
    module = linear_attention.FEATURE_MAPS[name](config, 0).double()
    module.init_weights(0.02)

    def attention(query, key, value):
        query, key, scale = module(query, key)
        turned = (query.flip(-1) - 0.5 * query, 2 * key - key.flip(-1), value)
        if not causal:
            return attend_to_all(query, key, turned, scale)
        return attend_in_blocks(query, key, turned, scale, True, None, None)[0]

    factor, generator = 5.0 if long else 1.0, torch.Generator().manual_seed(0)
    drawn = factor * torch.randn(3, 1, 1, 5, 4, dtype=torch.double, generator=generator)
    assert torch.autograd.gradcheck(attention, [x.clone().requires_grad_() for x in drawn])


def with_long(case: str, is_decoder: bool, queries: float = 1.0, keys: float = 1.0):
    """A tiny model with queries and keys so many times as long."""
    model = tiny_model(case, is_decoder=is_decoder, use_cache=False)
    with torch.no_grad():
        for layer in model.layers:
            layer.attention.query.weight *= queries
            layer.attention.key.weight *= keys
    return model


@over(case=LINEAR, is_decoder=[False, True])
def test_very_large_and_very_different_keys_give_no_nan_and_reach_no_other_token(case, is_decoder):
    """In float32, with keys of which one's features are e^1000 times another's."""
    model, ids = with_long(case, is_decoder, keys=60), token_ids(2, LENGTH)
    outputs = {dtype: copy.deepcopy(model).to(dtype)(ids).last_hidden_state for dtype in (torch.float, torch.double)}
    assert outputs[torch.float].isfinite().all()
    alone = model(ids[:1, : LENGTH // 2] if is_decoder else ids[:1]).last_hidden_state[0]
    torch.testing.assert_close(
        outputs[torch.float][0, : len(alone)], alone, rtol=0, atol=1e-3 if "yarn" in case else 1e-4
    )
    if "yarn" not in case:
        torch.testing.assert_close(outputs[torch.float].double(), outputs[torch.double], rtol=0, atol=1e-2)


@over(case=LINEAR, is_decoder=[False, True])
def test_long_queries_and_keys_have_finite_gradients(case, is_decoder):
    """As a model that learns has them: in float32 the features of some have no direction in common."""
    model = with_long(case, is_decoder, queries=10, keys=10)
    output = model(token_ids(2, LENGTH)).last_hidden_state
    gradients = gradients_of(model, output.square().sum())
    assert output.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients.values() if gradient is not None)


@over(case=LINEAR)
def test_gradients_at_a_fully_padded_row_are_finite(case):
    model, (ids, mask) = tiny_model(case), padded_batch()
    mask[0] = 0
    gradients = gradients_of(model, model(ids, mask, output_hidden_states=True).last_hidden_state.square().sum())
    assert all(gradient.isfinite().all() for gradient in gradients.values() if gradient is not None)


def test_favor_comes_nearer_to_softmax_attention_the_more_features_there_are():
    """The mean over seeds of the squared error, which falls as 1 / features."""
    query, key, value = torch.randn(3, 1, 1, 32, 16, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    query, key = 0.6 * query, 0.6 * key
    expected = F.scaled_dot_product_attention(query, key, value)
    errors = []
    for count in (16, 64, 256, 1024, 4096):
        found = []
        for seed in range(10):
            q, k, scale = features(16, count, seed)(query, key)
            found.append((attend_to_all(q, k, (q, k, value), scale) - expected).square().mean())
        errors.append(float(torch.stack(found).mean() / expected.square().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02
    assert errors[-1] < errors[0] / 20


def test_features_estimate_the_exponential_without_bias():
    query, key = torch.randn(2, 1, 1, 6, 8, dtype=torch.double, generator=torch.Generator().manual_seed(0)) / 2
    config = HfRopeConfig(hidden_size=8, num_attention_heads=1, num_features=200_000, **FAVOR)
    module = FavorFeatures(config, 0).double()
    module.init_weights(0.02)
    product = module.exponents(query).exp() @ module.exponents(key).exp().mT / config.num_features
    torch.testing.assert_close(product, (query @ key.mT / 8**0.5).exp(), rtol=0.05, atol=0)


def test_directions_are_orthogonal_in_blocks_and_as_long_as_gaussian_vectors():
    drawn = features(16, 16 * 200 + 6).projection
    assert drawn.shape == (16 * 200 + 6, 16)
    blocks = F.normalize(drawn[: 16 * 200], dim=-1).unflatten(0, (200, 16))
    torch.testing.assert_close(blocks @ blocks.mT, torch.eye(16).double().expand(200, 16, 16), rtol=0, atol=1e-9)
    assert float(drawn.square().sum(-1).mean()) == pytest.approx(16, rel=0.03)  # chi-squared: mean 16, variance 32
    assert float(drawn.square().sum(-1).var()) == pytest.approx(32, rel=0.15)
    torch.testing.assert_close(drawn.mT @ drawn / len(drawn), torch.eye(16).double(), rtol=0, atol=0.1)
    assert drawn.mean().abs() < 0.02


def projections(model) -> list[torch.Tensor]:
    return [module.projection.clone() for module in model.modules() if isinstance(module, FavorFeatures)]


def test_features_follow_from_the_seed_and_differ_by_layer():
    first, again, other = (
        projections(HfRopeModel(tiny_config("rotary-favor", feature_seed=seed))) for seed in (1, 1, 2)
    )
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(first, other, strict=True))
    assert not torch.equal(first[0], first[1])
    with torch.device("meta"):
        model = HfRopeModel(tiny_config("rotary-favor", feature_seed=1))
    model.to_empty(device="cpu").init_weights()
    assert all(torch.equal(x, y) for x, y in zip(first, projections(model), strict=True))


def test_a_saved_model_has_the_features_that_it_had(tmp_path):
    model, ids = tiny_model("rotary-favor", redraw_interval=1).train(), token_ids(2, 9)
    model(ids)
    model.eval().save_pretrained(tmp_path)
    for changes in ({}, {"feature_seed": 7}):
        loaded = HfRopeModel.from_pretrained(tmp_path, **changes)
        assert torch.equal(loaded(ids).last_hidden_state, model(ids).last_hidden_state)
    assert not torch.equal(projections(model)[0], projections(HfRopeModel(model.config))[0])


def test_features_are_redrawn_at_every_nth_training_forward_and_in_a_resumed_training(tmp_path):
    def run(model, forwards: int) -> list[torch.Tensor]:
        return [model(token_ids(1, 5)) and projections(model)[0] for _ in range(forwards)]

    model = HfRopeModel(tiny_config("none-favor", redraw_interval=3)).train()
    start = projections(model)[0]
    drawn = run(model, 7)
    same = [torch.equal(x, y) for x, y in zip([start, *drawn], drawn, strict=False)]
    assert same == [True, True, False, True, True, False, True]
    model.eval()
    assert all(torch.equal(x, drawn[-1]) for x in run(model, 4))
    model.save_pretrained(tmp_path)
    further = run(model.train(), 5)
    resumed = run(HfRopeModel.from_pretrained(tmp_path).train(), 5)
    assert all(torch.equal(x, y) for x, y in zip(further, resumed, strict=True))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_redraws_as_often_and_changes_no_gradient(reentrant):
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model("rotary-favor", HfRopeForMaskedLM, redraw_interval=1).double().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        ids = token_ids(2, 9)
        for _ in range(3):
            gradients.append(gradients_of(model, model(ids, labels=ids).loss))
    for ours, expected in zip(gradients[3:], gradients[:3], strict=True):
        assert_same_gradients(ours, expected)


def test_an_earlier_forward_keeps_its_features_for_the_backward():
    model, ids = tiny_model("rotary-favor", redraw_interval=1).double().train(), token_ids(2, 9)
    first, second = (model(ids).last_hidden_state for _ in range(2))
    assert not torch.allclose(first, second)
    (first.sum() + second.sum()).backward()


@over(case=LINEAR)
def test_the_decoding_state_has_a_constant_size(case):
    model, ids = decoder(case), token_ids(2, LENGTH)
    with torch.no_grad():
        short, long = (model(ids[:, :length]).past_key_values for length in (1, LENGTH))
    sizes = [[(layer.keys.shape, layer.values.shape) for layer in cache.layers] for cache in (short, long)]
    count = model.config.head_dim
    assert sizes[0] == sizes[1] == [((2, 4, count, 9), (2, 4))] * 2
    assert [cache.get_seq_length() for cache in (short, long)] == [1, LENGTH]


@over(case=LINEAR)
def test_generation_with_other_caches_and_inputs(case):
    model, ids = decoder(case), token_ids(2, 5)
    expected = generate(model, ids, do_sample=False)
    assert torch.equal(generate(model, ids, do_sample=False, prefill_chunk_size=2), expected)
    embedded = model.generate(inputs_embeds=model.get_input_embeddings()(ids), max_new_tokens=6, do_sample=False)
    assert torch.equal(embedded, expected[:, 5:])
    with torch.no_grad():
        filled = model(ids[:, :-1]).past_key_values
    for cache in (DynamicCache(), DynamicCache(config=model.config), filled):
        other = copy.deepcopy(cache)
        for given in (cache, other):
            assert torch.equal(generate(model, ids, do_sample=False, past_key_values=given), expected)
        given.reset()
        assert torch.equal(generate(model, ids, do_sample=False, past_key_values=given), expected)


def test_a_state_is_repeated_and_selected_by_row():
    model, ids = decoder("rotary-favor"), token_ids(3, 6)
    with torch.no_grad():
        cache = model(ids[:, :5]).past_key_values
        expected = model(ids[:, 5:], past_key_values=copy.deepcopy(cache)).logits
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([4, 1, 2]))
        cache.reorder_cache(torch.tensor([1, 0, 2]))
        rows = torch.tensor([0, 2, 1])
        torch.testing.assert_close(model(ids[rows, 5:], past_key_values=cache).logits, expected[rows])


@pytest.mark.full
@pytest.mark.parametrize(("case", "is_decoder"), [("rotary-elu", True), ("rotary-favor", False)])
def test_compiles_to_one_graph_with_padding_and_with_packing(case, is_decoder):
    torch._dynamo.reset()
    model = tiny_model(case, is_decoder=is_decoder, use_cache=False, num_hidden_layers=1).double()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    ids, mask = padded_batch()
    at = torch.tensor([[*range(7), *range(13)]]).expand(4, -1)
    with torch.no_grad():
        for length in (LENGTH, LENGTH - 3):
            ours, expected = (m(ids[:, :length], mask[:, :length]).last_hidden_state for m in (compiled, model))
            real = mask[:, :length].bool()
            torch.testing.assert_close(ours[real], expected[real], rtol=0, atol=1e-9)
        ours, expected = (m(ids, position_ids=at).last_hidden_state for m in (compiled, model))
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)


def test_a_checkpoint_with_softmax_loads_with_linear_attention(tmp_path):
    """The projections are the same; features are drawn."""
    model, ids = tiny_model("rotary"), token_ids(2, 9)
    model.save_pretrained(tmp_path)
    loaded = HfRopeModel.from_pretrained(tmp_path, num_features=8, **FAVOR)
    assert torch.equal(loaded.layers[0].attention.query.weight, model.layers[0].attention.query.weight)
    assert torch.equal(projections(loaded)[1], projections(HfRopeModel(loaded.config))[1])
    back = HfRopeModel.from_pretrained(tmp_path, attention_type="softmax")
    assert torch.equal(back(ids).last_hidden_state, model(ids).last_hidden_state)


def test_a_keyword_that_changes_the_attention_drops_its_settings():
    saved = tiny_config("rotary", num_features=10, redraw_interval=2, **FAVOR).to_dict()
    assert (
        HfRopeConfig.from_dict(saved, attention_type="softmax").to_diff_dict() == tiny_config("rotary").to_diff_dict()
    )
    elu = HfRopeConfig.from_dict(saved, feature_map="elu")
    assert (elu.feature_map, elu.num_features, elu.redraw_interval) == ("elu", None, None)
    same = HfRopeConfig.from_dict(saved, feature_map="favor", feature_seed=4)
    assert (same.num_features, same.feature_seed, same.redraw_interval) == (10, 4, 2)
    defaults = tiny_config("rotary", **FAVOR)
    assert (defaults.num_features, defaults.feature_seed, defaults.redraw_interval) == (32, 0, None)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_schemes_that_add_to_scores_or_values_are_refused_and_all_others_work(scheme):
    if scheme in LINEAR_SCHEMES:
        assert (
            HfRopeModel(tiny_config(scheme, attention_type="linear"))(token_ids(1, 5))
            .last_hidden_state.isfinite()
            .all()
        )
        return
    sentence = (
        rf"^attention_type='linear' [^\n]* position_embedding_type='{scheme}' [^\n]*: {', '.join(LINEAR_SCHEMES)}\.$"
    )
    with pytest.raises(ValueError, match=sentence):
        tiny_config(scheme, attention_type="linear")
    config = tiny_config("rotary", attention_type="linear")
    config.position_embedding_type, config.position_options, config.rope_parameters = scheme, {}, None
    with pytest.raises(ValueError, match=sentence):
        HfRopeModel(config)


# settings: the sentence
CONFIGS = {
    "a feature map of softmax": ({"feature_map": "elu"}, r"feature_map='elu' has no effect with attention_type='softm"),
    "features of softmax": ({"num_features": 8}, r"num_features=8 has no effect .*, or set attention_type='linear'\."),
    "features of elu": (
        {"attention_type": "linear", "num_features": 8},
        r"num_features=8 has no effect with feature_map='elu': leave it out, or set feature_map='favor'\.",
    ),
    "no features": ({"num_features": 0, **FAVOR}, r"num_features is 0; it must be 1 or more\."),
    "a negative seed": ({"feature_seed": -1, **FAVOR}, r"feature_seed is -1; it must be 0 or more\."),
    "no interval": ({"redraw_interval": 0, **FAVOR}, r"redraw_interval is 0; it must be 1 or more\."),
    "odd features": ({"num_features": 9, **FAVOR}, r"even rotary size of 2 or more, got 9 \(num_features 9, partial"),
    "values of another size": (
        {"position_options": {"rotary_value": True}, **FAVOR},
        r"turns values, of size 8, by the angles of the features, num_features=32: set num_features=8, or leave",
    ),
    "a head size": ({"head_dim": 8}, r"head_dim=8 cannot be set, since it is .*: leave it out\."),
}


@pytest.mark.parametrize(("settings", "sentence"), CONFIGS.values(), ids=CONFIGS)
def test_settings_that_do_not_fit_are_refused_in_one_sentence(settings, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        tiny_config("rotary", **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings", [{"attention_type": "cosine"}, {"attention_type": "linear", "feature_map": "relu"}]
)
def test_names_that_do_not_exist_are_refused(settings):
    with pytest.raises(Exception, match="|".join(settings.values())):
        tiny_config("rotary", **settings)


IDS = token_ids(2, 5)
SQUARE = torch.ones(2, 1, 5, 5, dtype=torch.bool)
# what is done: the sentence
CALLS = {
    "probabilities": (
        lambda model: model(IDS, output_attentions=True),
        r"output_attentions is True and attention_type='linear' has no probabilities: leave it out, or use att",
    ),
    "a mask of pairs": (
        lambda model: model(IDS, SQUARE),
        r"attention_mask has shape \(2, 1, 5, 5\), .*: pass one of shape \(batch, length\)\.",
    ),
    "a static cache": (
        lambda model: generate(model, IDS, cache_implementation="static"),
        r"The cache is a StaticCache .*: leave it and cache_implementation out, or pass an empty DynamicCa",
    ),
    "another static cache": (
        lambda model: model(IDS, past_key_values=StaticCache(model.config, 9)),
        r"The cache is a StaticCache .* an empty DynamicCache\.",
    ),
    "keys and values": (
        lambda model: model(IDS, past_key_values=decoder("rotary")(IDS).past_key_values),
        r"The cache is a DynamicCache for 5 tokens' keys and values",
    ),
    "an interface": (
        lambda model: model.set_attn_implementation("flex_attention"),
        r"'flex_attention' cannot compute attention_type='linear'; it works with: eager, sdpa\.",
    ),
    "a native class": (lambda model: to_native(model), r"has attention_type='linear', which cannot be converted"),
    "scores": (lambda model: score_terms(model.model, IDS), r"attention_type='linear' has no scores to take apart"),
}


@pytest.mark.parametrize(("call", "sentence"), CALLS.values(), ids=CALLS)
def test_what_linear_attention_has_not_is_refused_in_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        call(decoder("rotary-elu"))
    assert "\n" not in str(error.value)


def test_a_state_cannot_forget():
    cache = decoder("rotary-elu")(IDS).past_key_values
    assert all(isinstance(layer, LinearState) for layer in cache.layers)
    with pytest.raises(RuntimeError, match="none can be taken away, as assisted generation does: use a way"):
        cache.crop(-2)


def test_redrawing_is_refused_in_a_traced_graph():
    torch._dynamo.reset()
    model = tiny_model("none-favor", redraw_interval=2).train()
    with pytest.raises(Exception, match=r"redraw_interval=2 draws new features in training, and a traced graph cannot"):
        torch.compile(model, fullgraph=True, backend="eager")(IDS)


def test_another_scheme_takes_the_features_along():
    model = tiny_model("rotary-favor", HfRopeForCausalLM, is_decoder=True)
    moved = convert(model, "learned")
    assert moved.config.position_embedding_type == "learned"
    assert all(torch.equal(x, y) for x, y in zip(projections(moved), projections(model), strict=True))

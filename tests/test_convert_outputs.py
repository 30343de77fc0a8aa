"""A converted model computes what its source does: every head, schemes and pairings, decoders."""

import pytest
import torch

import hf_rope
from helpers import tiny_model, token_ids
from hf_rope import SCHEMES
from hf_rope.convert import convert, to_native
from hf_rope.convert.check import difference
from hf_rope.convert.weights import HEADS
from native_models import ENCODERS, FAMILIES, MASKED, NO_SUCH_HEAD, SOURCES, assert_equal, batch, native

PAIRS = [(name, head) for name in SOURCES for head in ENCODERS if (name, head) not in NO_SUCH_HEAD]


@pytest.mark.parametrize(("name", "head"), PAIRS)
def test_outputs_equal_the_native_models(name, head, record_property):
    theirs = native(name, head)
    ours = convert(theirs)
    assert type(ours).__name__ == HEADS[head]
    assert not ours.training
    record_property("greatest difference", difference(theirs, ours, batch(theirs.config, head))[0])
    assert_equal(theirs, ours, head=head)


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_sequences_equal_the_native_model_on_each(name):
    theirs = native(name)
    ours, ids = convert(theirs), batch(theirs.config)["input_ids"][0]
    parts = ids.split((7, 1, 12, 20))
    packed = ours(ids[None], position_ids=torch.cat([torch.arange(len(part)) for part in parts])[None])
    with torch.no_grad():
        expected = torch.cat([theirs(part[None]).last_hidden_state for part in parts], dim=1)
    torch.testing.assert_close(packed.last_hidden_state, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("head", ENCODERS)
def test_a_saved_conversion_computes_the_same(name, head, tmp_path):
    if (name, head) in NO_SUCH_HEAD:
        head = "Model"
    theirs = native(name, head)
    model = convert(theirs)
    model.save_pretrained(tmp_path)
    options = {"add_pooling_layer": model.pooler is not None} if head == "Model" else {}
    again, info = type(model).from_pretrained(tmp_path, output_loading_info=True, **options)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert_equal(theirs, again, head=head)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_target_tensor_is_copied_or_named_as_new(name):
    model, report = convert(native(name, "ForSequenceClassification"), return_report=True)
    assert report.copied + len(report.new) == len(model.state_dict())
    assert bool(report.new) == (name == "deberta")
    assert report.target == "HfRopeForSequenceClassification"
    assert not report.needs_training


OTHER_NAMES = {
    "albert-groups": "classifier_dropout_prob",
    "deberta": "cls_dropout",
    "deberta-v3-absolute": "cls_dropout",
}
"""Of `classifier_dropout`."""
WITHOUT = ("mpnet", "roformer-summary")


@pytest.mark.parametrize("name", FAMILIES)
def test_dropouts_are_the_native_models(name):
    own = {} if name in WITHOUT else {OTHER_NAMES.get(name, "classifier_dropout"): 0.33}
    rates = {"hidden_dropout_prob": 0.11, "attention_probs_dropout_prob": 0.22, **own}
    theirs = native(name, "ForSequenceClassification", **rates)
    ours, modules = convert(theirs), dict(theirs.named_modules())
    expected = modules.get("classifier.dropout") or modules["dropout"]
    assert ours.dropout.p == expected.p == (0.33 if own else 0.11)
    assert ours.config.hidden_dropout_prob == 0.11
    assert ours.config.attention_probs_dropout_prob == 0.22
    notes = " ".join(convert(theirs, return_report=True)[1].notes)
    assert ("drops out (" in notes) == ("classifier.out_proj" in modules)


@pytest.mark.parametrize(
    ("name", "head"),
    [("roberta", "ForMultipleChoice"), ("deberta", "ForTokenClassification"), ("bert", "ForMultipleChoice")],
)
def test_a_head_whose_dropout_is_that_of_hidden_states_keeps_it(name, head):
    rates = {"hidden_dropout_prob": 0.11, "classifier_dropout": 0.33, "cls_dropout": 0.33}
    theirs = native(name, head, **rates)
    assert convert(theirs).dropout.p == theirs.dropout.p


TRAINED = ["bert", "roberta", "electra", "mpnet", "deberta-v3-absolute", "roformer-summary", "jina-v3", "nomic", "gte"]


@pytest.mark.parametrize("name", [name for name in TRAINED if name in SOURCES])
def test_training_takes_the_same_steps(name):
    theirs = native(name, MASKED)
    ours = convert(theirs)
    inputs = batch(theirs.config)
    labels = torch.where((torch.rand(4, 40) < 0.3) & inputs["attention_mask"].bool(), inputs["input_ids"], -100)
    losses: list[list[float]] = [[], []]
    for model, found in zip((theirs, ours), losses, strict=True):
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-4)
        for _ in range(4):
            optimizer.zero_grad()
            loss = model(**inputs, labels=labels).loss
            loss.backward()
            optimizer.step()
            found.append(float(loss.detach()))
    assert losses[0][0] - losses[0][-1] > 0.05
    assert losses[1] == pytest.approx(losses[0], rel=0, abs=1e-5)


@pytest.mark.parametrize("name", ["albert", "albert-groups"])
def test_gradients_of_alberts_copies_add_up_to_the_shared_ones(name):
    theirs = native(name, MASKED)
    ours = convert(theirs)
    inputs = batch(theirs.config)
    labels = torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], -100)
    losses = []
    for model in (theirs, ours):
        loss = model.train()(**inputs, labels=labels).loss
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=0, abs=1e-5)
    groups = theirs.albert.encoder.albert_layer_groups
    per_group = len(ours.model.layers) // len(groups)
    for number, group in enumerate(groups):
        for place, layer in enumerate(group.albert_layers):
            copies = ours.model.layers[number * per_group : (number + 1) * per_group][place :: len(group.albert_layers)]
            total = sum(copy.intermediate.weight.grad for copy in copies)
            torch.testing.assert_close(total, layer.ffn.weight.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_decoder_is_tied_as_in_the_source(name):
    model = convert(native(name, MASKED))
    assert model.lm_head.decoder.weight is model.get_input_embeddings().weight
    untied = convert(native(name, MASKED, tie_word_embeddings=False))
    assert untied.lm_head.decoder.weight is not untied.get_input_embeddings().weight


@pytest.mark.parametrize("family", ["Bert", "Albert"])
def test_pre_training_heads_become_masked_lm_heads(family):
    theirs = native(family.lower(), "ForPreTraining")
    model, report = convert(theirs, return_report=True)
    assert type(model).__name__ == "HfRopeForMaskedLM"
    assert_equal(theirs, model)
    assert len(report.dropped) == 6


# Other schemes and pairings.


def is_positional(key: str) -> bool:
    return key.startswith("position.") or ".attention.position." in key


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["bert", "roberta", "deberta", "hf_rope"])
def test_another_scheme_drops_and_renews_the_positions_alone(name, scheme):
    source = tiny_model("rotary") if name == "hf_rope" else native(name)
    own = convert(source)
    model, report = convert(source, scheme, return_report=True)
    assert model.config.position_embedding_type == scheme
    same = own.config.position_embedding_type == scheme
    assert report.needs_training == (not same)
    if not same:
        zero = {key for key in model.state_dict() if name == "deberta" and key.endswith("attention.key.bias")}
        assert {*report.new} == {key for key in model.state_dict() if is_positional(key)} | zero
        assert all(any(key.endswith(dropped) for key in source.state_dict()) for dropped in report.dropped)
        assert bool([key for key in report.dropped if "rel_emb" in key or "position_embeddings" in key]) == (
            name != "hf_rope"
        )
    before, after = own.state_dict(), model.state_dict()
    shared = [key for key in before if not is_positional(key)]
    assert all(torch.equal(before[key], after[key]) for key in shared)
    assert torch.isfinite(model(token_ids(2, 9) % 90 + 4).last_hidden_state).all()


def test_embeddings_are_scaled_as_they_were_trained_or_as_the_new_scheme_needs():
    bert, scaled = native("bert"), tiny_model("sinusoidal")
    assert not convert(bert).config.scale_embedding
    assert convert(bert, "sinusoidal").config.scale_embedding
    assert not convert(bert, "rotary").config.scale_embedding
    assert not convert(tiny_model("sinusoidal-unscaled")).config.scale_embedding
    for scheme in ("sinusoidal", "rotary"):
        assert convert(scaled, scheme).config.scale_embedding


def test_another_option_needs_training_and_says_so():
    model, report = convert(native("mpnet"), position_options={"num_buckets": 8}, return_report=True)
    assert report.needs_training
    assert model.position.bias.weight.shape == (8, 4)
    assert model.config.position_options["absolute_embeddings"]


@pytest.mark.parametrize("case", ["rotary", "rotary-value", "rotary-partial", "rotary-proportional", "rotary-longrope"])
@pytest.mark.parametrize("head", ["Model", MASKED])
def test_pairings_are_the_same_model(case, head):
    source = tiny_model(case, getattr(hf_rope, HEADS[head]))
    halves, report = convert(source, position_options={"pairing": "halves"}, return_report=True)
    assert halves.config.position_options["pairing"] == "halves"
    assert not report.needs_training
    assert not torch.equal(
        halves.base_model.layers[0].attention.query.weight, source.base_model.layers[0].attention.query.weight
    )
    assert_equal(source, halves)
    back = convert(halves, position_options={"pairing": "interleaved"})
    assert all(torch.equal(tensor, source.state_dict()[key]) for key, tensor in back.state_dict().items())


@pytest.mark.parametrize("name", ["jina-v3", "nomic", *(["gte"] if "gte" in SOURCES else [])])
def test_a_source_in_halves_gets_the_faster_pairing_unless_asked_otherwise(name):
    theirs = native(name)
    faster, report = convert(theirs, return_report=True)
    kept = convert(theirs, position_options={"pairing": "halves"})
    assert faster.config.position_options["pairing"] == "interleaved"
    assert not report.needs_training
    assert any("'interleaved'" in note for note in report.notes)
    assert kept.config.position_options["pairing"] == "halves"
    assert_equal(faster, kept)
    back = to_native(faster).state_dict()
    assert all(torch.equal(tensor, back[key]) for key, tensor in theirs.state_dict().items())


# Decoders.

DECODERS = {"bert": "LMHeadModel", "bert-odd": "LMHeadModel", "roformer": "ForCausalLM", "roformer-odd": "ForCausalLM"}


def cross_inputs(hidden_size: int) -> dict[str, torch.Tensor]:
    """An encoder's states, padded in two rows."""
    mask = torch.ones(4, 9, dtype=torch.long)
    mask[1, 4:], mask[2, 1:] = 0, 0
    return {"encoder_hidden_states": torch.randn(4, 9, hidden_size), "encoder_attention_mask": mask}


def is_causal(model, inputs) -> bool:
    """Whether another last token leaves the first row's outputs before it as they were."""
    changed = inputs["input_ids"].clone()
    changed[0, -1] = (changed[0, -1] + 1) % model.config.vocab_size
    with torch.no_grad():
        one, other = (model(**{**inputs, "input_ids": ids}).logits[0, :-1] for ids in (inputs["input_ids"], changed))
    return torch.allclose(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("name", DECODERS)
def test_decoders_equal_the_native_ones_with_a_cache_and_without(name, cross, record_property):
    theirs = native(name, DECODERS[name], is_decoder=True, add_cross_attention=cross)
    ours, report = convert(theirs, return_report=True)
    assert type(ours).__name__ == "HfRopeForCausalLM"
    assert not report.new
    inputs = {**batch(theirs.config), **(cross_inputs(theirs.config.hidden_size) if cross else {})}
    again, back = to_native(ours, return_report=True)
    assert type(again) is type(theirs)
    assert not back.dropped
    assert_equal(theirs, again, inputs, limit=0)
    causal = is_causal(theirs, inputs)
    for notes in (report.notes, back.notes):
        assert any("sees later tokens" in note for note in notes) is not causal
    if not causal:
        pytest.skip(f"a decoder of this transformers sees later tokens: {type(theirs).__name__}")
    assert_equal(theirs, ours, inputs)
    assert_equal(theirs, ours, {**inputs, "use_cache": False})
    ids = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 5)
    states = {key: value for key, value in inputs.items() if key.startswith("encoder_")}
    caches, greatest = [None, None], 0.0
    for part in ids.split((33, 1, 1, 1, 4), dim=1)[:4]:  # native RoFormer has positions of one length only
        outputs = []
        for number, model in enumerate((theirs, ours)):
            with torch.no_grad():
                output = model(part, past_key_values=caches[number], use_cache=True, **states)
            caches[number] = output.past_key_values
            outputs.append(output.logits)
        greatest = max(greatest, float((outputs[0] - outputs[1]).abs().max()))
        torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=1e-5)
    record_property("greatest difference", greatest)
    gradients = []
    for model in (theirs, ours):
        weights = torch.linspace(-1, 1, theirs.config.vocab_size)
        ((model(**inputs).logits * weights)[inputs["attention_mask"].bool()]).sum().backward()
        gradients.append(model.get_input_embeddings().weight.grad)
    limit = 1e-4 * float(gradients[0].abs().max())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=limit)


def test_a_decoder_without_a_head_and_one_of_another_scheme():
    theirs = native("bert", is_decoder=True)
    assert_equal(theirs, convert(theirs))
    ours, report = convert(native("bert", "LMHeadModel", is_decoder=True), "rotary", return_report=True)
    assert (ours.config.is_decoder, report.needs_training) == (True, True)

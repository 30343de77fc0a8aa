"""Conversion is exact and loses no tensor in silence: every source with every head, in folders, and back."""

import copy
import json
import shutil
import subprocess
import sys
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from typer.testing import CliRunner

import hf_rope
import hf_rope.convert
from helpers import tiny_model, token_ids
from hf_rope import SCHEMES
from hf_rope.cli import app
from hf_rope.convert import convert, convert_with_report, to_native, to_native_with_report
from hf_rope.convert.check import difference
from hf_rope.convert.weights import HEADS

SIZES: dict[str, Any] = {
    **{"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48},
    **{"max_position_embeddings": 60, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}
ODD = {"vocab_size": 101, "hidden_size": 36, "num_attention_heads": 3, "num_hidden_layers": 3}
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 50}
V3 = {**RELATIVE, "position_buckets": 16, "share_att_key": True, "norm_rel_ebd": "layer_norm"}
SHORT = {"max_relative_positions": 12}
SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {}),
    "bert-odd": ("Bert", {**ODD, "hidden_act": "relu", "type_vocab_size": 3, "layer_norm_eps": 1e-3}),
    "bert-untied": ("Bert", {"tie_word_embeddings": False}),
    "roberta": ("Roberta", {"type_vocab_size": 1, "pad_token_id": 1}),
    "roberta-odd": ("Roberta", {**ODD, "type_vocab_size": 2, "pad_token_id": 3}),
    "xlm-roberta": ("XLMRoberta", {"type_vocab_size": 1, "pad_token_id": 1}),
    "camembert": ("Camembert", {"type_vocab_size": 1, "pad_token_id": 1}),
    "electra": ("Electra", {"embedding_size": 20}),
    "electra-equal-sizes": ("Electra", {"embedding_size": 32, "summary_activation": "tanh"}),
    "albert": ("Albert", {"embedding_size": 20}),
    "albert-groups": (
        "Albert",
        {"embedding_size": 20, "num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2},
    ),
    "mpnet": ("MPNet", {}),
    "mpnet-odd": ("MPNet", ODD),
    "deberta": ("Deberta", RELATIVE),
    "deberta-short": ("Deberta", {**RELATIVE, **SHORT, "type_vocab_size": 2, "pooler_hidden_act": "tanh"}),
    "deberta-c2p": ("Deberta", {**RELATIVE, "pos_att_type": ["c2p"], "position_biased_input": False}),
    "deberta-p2c": ("Deberta", {**RELATIVE, "pos_att_type": "p2c", "legacy": False}),
    "deberta-no-relative": ("Deberta", {}),
    "deberta-v2": ("DebertaV2", RELATIVE),
    "deberta-v2-short": ("DebertaV2", {**RELATIVE, **SHORT, "legacy": False}),
    "deberta-v3": ("DebertaV2", {**V3, "position_biased_input": False}),
    "deberta-v3-absolute": ("DebertaV2", V3),
    "deberta-v2-no-relative": ("DebertaV2", {"position_biased_input": False, "norm_rel_ebd": "layer_norm"}),
    "roformer": ("RoFormer", {"summary_type": "first"}),
    "roformer-odd": ("RoFormer", {**ODD, "embedding_size": 20, "rotary_value": True, "hidden_act": "relu"}),
    "roformer-summary": (
        "RoFormer",
        {"summary_type": "first", "summary_use_proj": True, "summary_activation": "tanh", "embedding_size": 20},
    ),
}
NO_SUCH_HEAD = {
    *((name, "ForMultipleChoice") for name, (family, _) in SOURCES.items() if family == "Deberta"),
    ("roformer-odd", "ForMultipleChoice"),
}
ENCODERS = [head for head in HEADS if head != "ForCausalLM"]
PAIRS = [(name, head) for name in SOURCES for head in ENCODERS if (name, head) not in NO_SUCH_HEAD]
FAMILIES = [
    "bert",
    "roberta",
    "electra",
    "albert-groups",
    "mpnet",
    "deberta",
    "deberta-v3-absolute",
    "roformer-summary",
]
MASKED = "ForMaskedLM"


def native(name: str, head: str = "Model", **changes):
    """A native model in eval mode with weights, biases and norms that are all at random and large enough to matter."""
    family, settings = SOURCES[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **settings, **changes})
    model = getattr(transformers, family + head)(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "embed_positions" not in key:
                center = 1.0 if "norm" in key.lower() and key.endswith("weight") else 0.0
                parameter.copy_(center + 0.15 * torch.randn_like(parameter))
    return model


def batch(config, head: str = "Model") -> dict[str, torch.Tensor]:
    """40 tokens, 21 and 1 in rows padded on the right; token types that change where there are any."""
    ids, mask = torch.randint(0, config.vocab_size - 1, (4, 40)), torch.ones(4, 40, dtype=torch.long)
    pad = config.pad_token_id
    ids = ids + (ids >= pad)
    for row, length in enumerate((40, 21, 1, 33)):
        ids[row, length:], mask[row, length:] = pad, 0
    found = {"input_ids": ids, "attention_mask": mask}
    if getattr(config, "type_vocab_size", 0) > 1:
        found["token_type_ids"] = (torch.arange(40) % config.type_vocab_size).expand(4, 40).clone()
    return {key: x.unflatten(0, (2, 2)) for key, x in found.items()} if head == "ForMultipleChoice" else found


def assert_equal(one, other, inputs=None, head="Model", limit=1e-5) -> None:
    greatest, size = difference(one, other, inputs or batch(one.config, head))
    assert greatest <= limit
    assert size > 0.1


def rewrite(folder, change) -> None:
    """Changes the tensors of a saved folder in place."""
    tensors = {key: tensor.clone() for key, tensor in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "model.safetensors")


def reconfigure(folder, **changes) -> None:
    """Changes the config.json of a saved folder; None takes a key out."""
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(("name", "head"), PAIRS)
def test_outputs_equal_the_native_models(name, head, record_property):
    theirs = native(name, head)
    ours = convert(theirs)
    assert type(ours).__name__ == HEADS[head]
    assert not ours.training
    record_property("greatest difference", difference(theirs, ours, batch(theirs.config, head))[0])
    assert_equal(theirs, ours, head=head)


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


@pytest.mark.parametrize("name", SOURCES)
def test_a_folder_converts_as_the_model_does(name, tmp_path):
    theirs = native(name, MASKED)
    theirs.save_pretrained(tmp_path / "one")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").exists()
    expected = convert(theirs).state_dict()
    for folder in ("one", "shards"):
        found = convert(tmp_path / folder).state_dict()
        assert list(found) == list(expected)
        assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_tensor_matters_or_is_named(name, tmp_path):
    """Adds to one tensor of the folder after the other; the conversion changes, or the report names the tensor."""
    native(name, MASKED).save_pretrained(tmp_path)
    before = convert(tmp_path).state_dict()
    for key in load_file(tmp_path / "model.safetensors"):
        rewrite(tmp_path, lambda tensors, key=key: tensors[key].add_(1.0))
        if "embed_positions" in key:
            with pytest.raises(ValueError, match="differs by 1 from the sines"):
                convert(tmp_path)
        else:
            model, report = convert_with_report(tmp_path)
            after = model.state_dict()
            changed = any(not torch.equal(after[key], before[key]) for key in before)
            assert changed or any(key.endswith(name) for name in report.dropped), key
        rewrite(tmp_path, lambda tensors, key=key: tensors[key].sub_(1.0))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_target_tensor_is_copied_or_named_as_new(name):
    model, report = convert_with_report(native(name, "ForSequenceClassification"))
    assert report.copied + len(report.new) == len(model.state_dict())
    assert bool(report.new) == (name == "deberta")
    assert report.target == "HfRopeForSequenceClassification"
    assert not report.needs_training


@pytest.mark.parametrize("name", ["bert", "roberta", "electra", "mpnet", "deberta-v3-absolute", "roformer-summary"])
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


def test_a_decoder_that_differs_from_the_words_stays_untied(tmp_path):
    theirs = native("bert", MASKED)
    theirs.save_pretrained(tmp_path)
    words = theirs.get_input_embeddings().weight.detach()
    rewrite(tmp_path, lambda tensors: tensors.update({"cls.predictions.decoder.weight": words + 1}))
    model, report = convert_with_report(tmp_path)
    assert "not tied" in report.notes[0]
    assert_equal(transformers.BertForMaskedLM.from_pretrained(tmp_path), model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_dtype_is_kept(dtype, tmp_path):
    theirs = native("roberta", MASKED).to(dtype)
    theirs.save_pretrained(tmp_path)
    for source in (theirs, tmp_path):
        model = convert(source)
        assert model.dtype == dtype
        assert model.config.dtype == dtype


@pytest.mark.parametrize("family", ["Bert", "Albert"])
def test_pre_training_heads_become_masked_lm_heads(family):
    theirs = native(family.lower(), "ForPreTraining")
    model, report = convert_with_report(theirs)
    assert type(model).__name__ == "HfRopeForMaskedLM"
    assert_equal(theirs, model)
    assert len(report.dropped) == 6


# Checkpoints of transformers 4 with relative keys, whose native class is gone.


def write_old_bert(folder, ours, kind: str) -> None:
    """An hf_rope model with relative keys, written by hand as transformers 4 wrote BERT."""
    model, found = ours.model, {}

    def put(name, module, weight="weight", bias="bias"):
        found[f"{name}.{weight}"], found[f"{name}.{bias}"] = module.weight, module.bias

    found["bert.embeddings.position_ids"] = torch.arange(64)[None]
    found["bert.embeddings.position_embeddings.weight"] = torch.randn(64, 32)
    found["bert.embeddings.word_embeddings.weight"] = model.embeddings.word_embeddings.weight
    found["bert.embeddings.token_type_embeddings.weight"] = model.embeddings.token_type_embeddings.weight
    put("bert.embeddings.LayerNorm", model.embedding_norm, "gamma", "beta")
    for number, layer in enumerate(model.layers):
        here = f"bert.encoder.layer.{number}"
        for name in ("query", "key", "value"):
            put(f"{here}.attention.self.{name}", getattr(layer.attention, name))
        table = layer.attention.position.distance_embeddings.weight
        found[f"{here}.attention.self.distance_embedding.weight"] = table
        put(f"{here}.attention.output.dense", layer.attention.output)
        put(f"{here}.attention.output.LayerNorm", layer.attention_norm, "gamma", "beta")
        put(f"{here}.intermediate.dense", layer.intermediate)
        put(f"{here}.output.dense", layer.output)
        put(f"{here}.output.LayerNorm", layer.output_norm, "gamma", "beta")
    put("bert.pooler.dense", model.layers[0].attention.output)
    put("cls.predictions.transform.dense", ours.lm_head.dense)
    put("cls.predictions.transform.LayerNorm", ours.lm_head.norm, "gamma", "beta")
    found["cls.predictions.bias"] = ours.lm_head.decoder.bias
    put("cls.seq_relationship", torch.nn.Linear(32, 2))
    folder.mkdir(exist_ok=True)
    save_file(
        {key: tensor.detach().clone().contiguous() for key, tensor in found.items()}, folder / "model.safetensors"
    )
    config = {**SIZES, "model_type": "bert", "architectures": ["BertForMaskedLM"], "max_position_embeddings": 64}
    (folder / "config.json").write_text(json.dumps({**config, "position_embedding_type": kind}))


@pytest.mark.parametrize("kind", ["relative_key", "relative_key_query"])
def test_old_bert_with_relative_keys_lands_where_it_should(kind, tmp_path):
    expected = tiny_model(kind, hf_rope.HfRopeForMaskedLM)
    write_old_bert(tmp_path, expected, kind)
    model, report = convert_with_report(tmp_path)
    assert model.config.position_embedding_type == kind
    state = model.state_dict()
    for key, tensor in expected.state_dict().items():
        assert torch.equal(state[key], tensor), key
    assert_equal(expected, model, limit=0)
    assert set(report.dropped) == {
        *("embeddings.position_ids", "embeddings.position_embeddings.weight", "pooler.dense.weight"),
        *("pooler.dense.bias", "cls.seq_relationship.weight", "cls.seq_relationship.bias"),
    }


# Other schemes and pairings.


def is_positional(key: str) -> bool:
    return key.startswith("position.") or ".attention.position." in key


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["bert", "roberta", "deberta", "hf_rope"])
def test_another_scheme_drops_and_renews_the_positions_alone(name, scheme):
    source = tiny_model("rotary") if name == "hf_rope" else native(name)
    own = convert(source)
    model, report = convert_with_report(source, scheme)
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


def test_another_option_needs_training_and_says_so():
    model, report = convert_with_report(native("mpnet"), position_options={"num_buckets": 8})
    assert report.needs_training
    assert model.position.bias.weight.shape == (8, 4)
    assert model.config.position_options["absolute_embeddings"]


@pytest.mark.parametrize("case", ["rotary", "rotary-value", "rotary-partial", "rotary-proportional", "rotary-longrope"])
@pytest.mark.parametrize("head", ["Model", MASKED])
def test_pairings_are_the_same_model(case, head):
    source = tiny_model(case, getattr(hf_rope, HEADS[head]))
    halves, report = convert_with_report(source, position_options={"pairing": "halves"})
    assert halves.config.position_options["pairing"] == "halves"
    assert not report.needs_training
    assert not torch.equal(
        halves.base_model.layers[0].attention.query.weight, source.base_model.layers[0].attention.query.weight
    )
    assert_equal(source, halves)
    back = convert(halves, position_options={"pairing": "interleaved"})
    assert all(torch.equal(tensor, source.state_dict()[key]) for key, tensor in back.state_dict().items())


# Back.


@pytest.mark.parametrize("head", ENCODERS)
@pytest.mark.parametrize("name", ["bert", "bert-untied", "roformer-summary"])
def test_there_and_back_is_the_source(name, head):
    theirs = native(name, head)
    again, report = to_native_with_report(convert(theirs))
    assert type(again) is type(theirs)
    assert not report.dropped
    for key, tensor in theirs.state_dict().items():
        if not key.endswith("predictions.bias"):  # not read where there is a decoder.bias
            assert torch.equal(again.state_dict()[key], tensor), key
    assert_equal(theirs, again, head=head, limit=0)


@pytest.mark.parametrize("head", ENCODERS)
@pytest.mark.parametrize("case", ["learned", "rotary", "rotary-value", "rotary-halves-value"])
def test_native_class_computes_what_hf_rope_does(case, head):
    changes = {"pooler_activation": "gelu"} if case != "learned" else {}
    ours = tiny_model(case, getattr(hf_rope, HEADS[head]), **changes).double()  # large weights: float32 rounds by 1e-5
    theirs = to_native(ours)
    assert_equal(theirs, ours, head=head)


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
    ours, report = convert_with_report(theirs)
    assert type(ours).__name__ == "HfRopeForCausalLM"
    assert not report.new
    inputs = {**batch(theirs.config), **(cross_inputs(theirs.config.hidden_size) if cross else {})}
    again, back = to_native_with_report(ours)
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
    ours, report = convert_with_report(native("bert", "LMHeadModel", is_decoder=True), "rotary")
    assert (ours.config.is_decoder, report.needs_training) == (True, True)


NATIVE_REFUSALS = {
    "scheme": ("alibi", "Model", {}, "'alibi' has no native class to go back to; these have one: learned, rotary"),
    "mean": (
        "learned",
        "ForSequenceClassification",
        {"classifier_pooling": "mean"},
        "classifier_pooling='mean'.*first",
    ),
    "factorised": ("learned-factorised", "Model", {}, "embedding_size=20.*BERT's embeddings have hidden_size=32"),
    "pooler": ("learned", "Model", {"pooler_activation": "gelu"}, "pooler_activation='gelu'.*BERT's pooler has tanh"),
    "types": ("rotary", "Model", {"type_vocab_size": 0}, "type_vocab_size=0.*one token type at least"),
    "theta": ("rotary-partial", "Model", {}, "rope_parameters=.*theta 10000"),
    "scaling": ("rotary-yarn", "Model", {}, "rope_parameters=.*theta 10000"),
    "activation": ("rotary", "ForSequenceClassification", {}, "pooler_activation='tanh'.*has hidden_act='gelu' there"),
}


@pytest.mark.parametrize("row", NATIVE_REFUSALS)
def test_what_no_native_class_computes_is_refused(row):
    case, head, changes, sentence = NATIVE_REFUSALS[row]
    with pytest.raises(ValueError, match=sentence):
        to_native(tiny_model(case, getattr(hf_rope, HEADS[head]), **changes))


def test_only_hf_rope_models_go_back():
    with pytest.raises(TypeError, match="takes an hf_rope model, and got a BertModel"):
        to_native(native("bert"))


# Refusals. source, head, changed settings, what is done to the folder, the sentence.
def without(key):
    return lambda folder: rewrite(folder, lambda tensors: tensors.pop(key))


def extra(key):
    return lambda folder: rewrite(folder, lambda tensors: tensors.update({key: torch.zeros(3)}))


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def without_shard(folder):
    model = native("bert", MASKED)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    next(folder.glob("model-00002*")).unlink()


def setting(**changes):
    return lambda folder: reconfigure(folder, **changes)


QUERY = "bert.encoder.layer.1.attention.self.query.weight"
REFUSALS: dict[str, tuple[str, str, Any, str]] = {
    "missing": (
        "bert",
        MASKED,
        without(QUERY),
        r"lacks the tensor encoder\.layer\.1\.attention\.self\.query\.weight: load",
    ),
    "missing head": (
        "bert",
        MASKED,
        without("cls.predictions.transform.dense.bias"),
        r"cls\.predictions\.transform\.dense\.b",
    ),
    "unknown": (
        "bert",
        MASKED,
        extra("bert.encoder.gate.weight"),
        r"tensor encoder\.gate\.weight, which hf_rope does not",
    ),
    "more layers": (
        "bert",
        MASKED,
        setting(num_hidden_layers=1),
        r"layer\.1\..*has no place for it: check the number of l",
    ),
    "shape": (
        "bert",
        MASKED,
        setting(vocab_size=98),
        r"word_embeddings\.weight has shape \(99, 32\).* it is \(98, 32\)",
    ),
    "old positions": (
        "bert",
        MASKED,
        setting(position_embedding_type="relative_key"),
        r"lacks the tensor .*distance_embedding",
    ),
    "odd positions": ("bert", MASKED, setting(position_embedding_type="rope"), r"position_embedding_type='rope'"),
    "decoder": (
        "bert",
        MASKED,
        setting(is_decoder=True),
        r"HfRopeForMaskedLM with is_decoder=True sees no token after its own",
    ),
    "another decoder": (
        "roberta",
        MASKED,
        setting(is_decoder=True),
        r"is_decoder=True, which cannot be converted: only decoders of BERT and RoFormer are",
    ),
    "cross attention": (
        "bert",
        MASKED,
        setting(add_cross_attention=True),
        r"add_cross_attention=True is for decoders, and is_decoder is False",
    ),
    "activation": ("bert", MASKED, setting(hidden_act="swoosh"), r"hidden_act='swoosh' is unknown"),
    "cut file": (
        "bert",
        MASKED,
        cut,
        r"model\.safetensors is not a complete safetensors file \(.*\): download it again",
    ),
    "pickle": ("bert", MASKED, pickled, r"has pytorch_model\.bin, a pickle, and no model\.safetensors: save it again"),
    "no weights": (
        "bert",
        MASKED,
        lambda folder: (folder / "model.safetensors").unlink(),
        r"has no model\.safetensors: s",
    ),
    "no shard": (
        "bert",
        MASKED,
        without_shard,
        r"has no model-00002-of-.*safetensors, which model.safetensors.index.json",
    ),
    "no config": (
        "bert",
        MASKED,
        lambda folder: (folder / "config.json").unlink(),
        r"has no config\.json that can be read",
    ),
    "wrong type": (
        "bert",
        MASKED,
        setting(hidden_size="32"),
        r"config\.json does not fit: .*'hidden_size' expected int",
    ),
    "no type": (
        "bert",
        MASKED,
        setting(model_type=None),
        r"has no model_type: add the one that is right of bert, roberta",
    ),
    "other type": (
        "bert",
        MASKED,
        setting(model_type="gpt2"),
        r"model_type='gpt2', which has no conversion; known: bert,",
    ),
    "other head": (
        "bert",
        MASKED,
        setting(architectures=["BertForX"]),
        r"BertForX cannot be converted; of this family: BertM",
    ),
    "next sentence": ("bert", "ForNextSentencePrediction", None, r"no next-sentence head: convert BertModel"),
    "generation in both directions": (
        "bert",
        "LMHeadModel",
        None,
        r"is_decoder=False sees the tokens that it is to pred",
    ),
    "generation": (
        "roberta",
        "ForCausalLM",
        None,
        r"only decoders of BERT and RoFormer are: convert the encoder alone",
    ),
    "discriminator": (
        "electra",
        "ForPreTraining",
        None,
        r"no discriminator head: convert ElectraModel\.from_pretrained",
    ),
    "summary": (
        "electra",
        "ForMultipleChoice",
        setting(summary_type="mean"),
        r"summary_type='mean'.*pools the first token",
    ),
    "last token": (
        "roformer-odd",
        "ForMultipleChoice",
        None,
        r"no summary_type.*pools the last token.*summary_type='first'",
    ),
    "fixed gelu": ("roberta", MASKED, setting(hidden_act="relu"), r"hidden_act='relu'.*head has gelu whatever"),
    "no padding": ("roberta", MASKED, setting(pad_token_id=-1), r"pad_token_id is -1; it must be"),
    "equal sizes": (
        "albert",
        MASKED,
        setting(embedding_size=32),
        r"embedding_size=32, equal to hidden_size, and still",
    ),
    "buckets": ("mpnet", MASKED, setting(relative_attention_num_buckets=16), r"relative_attention_num_buckets=16"),
    "convolution": ("deberta-v2", MASKED, setting(conv_kernel_size=3), r"conv_kernel_size=3.*no convolution layer"),
    "head size": (
        "deberta-v2",
        MASKED,
        setting(attention_head_size=4),
        r"attention_head_size=4.*hidden_size / num_att",
    ),
    "early projection": ("deberta-v2", MASKED, setting(embedding_size=16), r"embedding_size=16.*before the norm"),
    "position to position": ("deberta-v2", MASKED, setting(pos_att_type=["p2p"]), r"'pos_att_type'\] is \['p2p'\]"),
    "talking heads": ("deberta", MASKED, setting(talking_head=True), r"talking_head=True.*does not mix"),
    "terms without": ("deberta", MASKED, setting(relative_attention=False), r"relative_attention=False, which cannot"),
    "no biases": (
        "roformer",
        MASKED,
        without("roformer.encoder.layer.0.output.dense.bias"),
        r"lacks .*layer\.0\.output\.de",
    ),
    "rms norm": ("roformer", MASKED, setting(norm_type="rms_norm"), r"norm_type='rms_norm'.*RoFormer-V2"),
}


@pytest.mark.parametrize("row", REFUSALS)
def test_what_cannot_be_exact_is_refused(row, tmp_path):
    name, head, change, sentence = REFUSALS[row]
    native(name, head).save_pretrained(tmp_path)
    if change is not None:
        change(tmp_path)
    with pytest.raises(ValueError, match=sentence) as error:
        convert(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source", [3, None, torch.nn.Linear(2, 2)])
def test_sources_of_another_kind_are_refused(source):
    with pytest.raises(TypeError, match="it must be a model, a folder or a name on the Hub"):
        convert(source)


def test_an_unknown_scheme_is_refused():
    with pytest.raises(ValueError, match="'rotery' is unknown; the nearest is 'rotary'"):
        convert(native("bert"), "rotery")


def test_an_encoder_that_calls_itself_a_masked_lm_is_an_encoder(tmp_path):
    theirs = native("mpnet")
    theirs.save_pretrained(tmp_path)
    reconfigure(tmp_path, architectures=["MPNetForMaskedLM"], gradient_checkpointing=False)
    model, report = convert_with_report(tmp_path)
    assert any("holds an encoder alone" in note for note in report.notes)
    assert "Settings that nothing reads: gradient_checkpointing." in report.notes
    assert_equal(theirs, model)


# The command line.

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "short", "one", ".", "rotary", "##s", "turn", "and", "keys"]


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    native("bert", MASKED).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder


def command(*arguments, name="convert"):
    return CliRunner().invoke(app, [name, *(str(argument) for argument in arguments)], env={"COLUMNS": "200"})


def test_command_writes_model_code_and_tokenizer(source, tmp_path):
    target = tmp_path / "new" / "target"
    result = command(source, target, "--check")
    assert result.exit_code == 0, result.output
    assert "greatest difference from the source's own class" in result.output
    assert "HfRopeForMaskedLM" in result.output
    assert {"config.json", "model.safetensors", "modeling_hf_rope.py", "tokenizer_config.json"} <= {
        path.name for path in target.iterdir()
    }
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(source)
    assert_equal(theirs, transformers.AutoModelForMaskedLM.from_pretrained(target))
    tokenizers = [transformers.AutoTokenizer.from_pretrained(folder) for folder in (source, target)]
    assert tokenizers[0]("a rotary one")["input_ids"] == tokenizers[1]("a rotary one")["input_ids"] == [2, 5, 9, 7, 3]
    assert [path.name for path in target.parent.iterdir()] == ["target"]


@pytest.mark.parametrize("check", [(), ("--check",)])
@pytest.mark.parametrize("name", ["bert", "roformer"])
def test_command_saves_the_tokenizer_as_it_is(name, check, source, tmp_path):
    """Its side of padding, and in tokenizer.json the padding and truncation that it was saved with."""
    kind = {"bert": transformers.BertTokenizer, "roformer": transformers.RoFormerTokenizer}[name]
    tokenizer = kind.from_pretrained(source, padding_side="left", truncation_side="left")
    shutil.rmtree(source)
    native(name, MASKED).save_pretrained(source)
    tokenizer(["a", "a short one"], padding="max_length", truncation=True, max_length=9)
    tokenizer.save_pretrained(source)
    result = command(source, tmp_path / "target", *check)
    assert result.exit_code == 0, result.output
    before, after = (json.loads((folder / "tokenizer.json").read_text()) for folder in (source, tmp_path / "target"))
    assert before["padding"]["direction"] == before["truncation"]["direction"] == "Left"
    assert after == before
    settings = json.loads((tmp_path / "target" / "tokenizer_config.json").read_text())
    assert settings["padding_side"] == settings["truncation_side"] == "left"


def test_command_to_another_scheme_says_that_it_needs_training(source, tmp_path):
    (tmp_path / "target").mkdir()
    result = command(source, tmp_path / "target", "--position", "rotary")
    assert result.exit_code == 0, result.output
    assert "needs training" in result.output
    assert json.loads((tmp_path / "target" / "config.json").read_text())["position_embedding_type"] == "rotary"


def test_command_says_where_there_is_no_tokenizer(tmp_path):
    native("electra").save_pretrained(tmp_path / "source")
    result = command(tmp_path / "source", tmp_path / "target", "--check")
    assert result.exit_code == 0, result.output
    assert "has no tokenizer" in result.output


def refused(result, tmp_path, sentence) -> None:
    assert result.exit_code == 1
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.output
    assert {path.name for path in tmp_path.iterdir()} <= {"source", "taken"}


def test_command_refuses_in_one_sentence_and_writes_nothing(source, tmp_path):
    refused(command(tmp_path / "nowhere", tmp_path / "target"), tmp_path, "has no config.json that can be read")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    refused(command(tmp_path / "nowhere", tmp_path / "taken"), tmp_path, "exists and is not an empty folder")
    refused(command(source, tmp_path / "target", "--position", "alibi", "--check"), tmp_path, "'alibi' is new")
    cut(source)
    refused(command(source, tmp_path / "target"), tmp_path, "not a complete safetensors file")
    assert (tmp_path / "taken" / "file").exists()


def test_check_refuses_what_differs_and_what_no_class_computes(source, tmp_path, monkeypatch):
    wrong = hf_rope.convert.convert_with_report(source)
    with torch.no_grad():
        wrong[0].model.layers[1].attention.output.bias[0] += 1e-3
    with monkeypatch.context() as patch:
        patch.setattr("hf_rope.cli.convert_with_report", lambda *_: copy.deepcopy(wrong))
        refused(command(source, tmp_path / "target", "--check"), tmp_path, "is allowed, so nothing is written")
    write_old_bert(source, tiny_model("relative_key", hf_rope.HfRopeForMaskedLM), "relative_key")
    refused(command(source, tmp_path / "target", "--check"), tmp_path, "no class of transformers 5 computes")
    assert command(source, tmp_path / "target").exit_code == 0


def test_a_write_that_fails_leaves_nothing(source, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(hf_rope.HfRopeForMaskedLM, "save_pretrained", fail)
    refused(command(source, tmp_path / "target"), tmp_path, "No space left on device")


@pytest.fixture(params=["bert", "roformer-summary"])
def ours(request, source, tmp_path):
    """An hf_rope folder with a tokenizer, and the native model that it was converted from."""
    theirs = native(request.param, MASKED)
    convert(theirs).save_pretrained(tmp_path / "ours")
    transformers.AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path / "ours")
    shutil.rmtree(source)
    (tmp_path / "ours").rename(source)
    return source, theirs


def test_to_native_writes_a_native_folder_with_the_tokenizer(ours, tmp_path):
    folder, theirs = ours
    target = tmp_path / "new" / "target"
    result = command(folder, target, "--check", name="to-native")
    assert result.exit_code == 0, result.output
    assert "greatest difference from the source's own class" in result.output
    assert f"HfRopeForMaskedLM,{folder}->{type(theirs).__name__}" in "".join(result.output.split())
    assert not [*target.glob("*.py")]
    again = transformers.AutoModelForMaskedLM.from_pretrained(target)
    assert type(again) is type(theirs)
    assert_equal(theirs, again)
    tokenizer = transformers.AutoTokenizer.from_pretrained(target)
    assert tokenizer("a rotary one")["input_ids"] == [2, 5, 9, 7, 3]
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_to_native_refuses_in_one_sentence_and_writes_nothing(ours, tmp_path, monkeypatch):
    folder, theirs = ours

    def to_native(*arguments):
        return command(*arguments, name="to-native")

    wrong = to_native_with_report(folder)
    with torch.no_grad():
        next(wrong[0].parameters())[5:] += 1e-2
    with monkeypatch.context() as patch:
        patch.setattr("hf_rope.cli.to_native_with_report", lambda *_: copy.deepcopy(wrong))
        refused(to_native(folder, tmp_path / "target", "--check"), tmp_path, "is allowed, so nothing is written")
    refused(to_native(tmp_path / "nowhere", tmp_path / "target"), tmp_path, "has no config.json that can be read")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    refused(to_native(folder, tmp_path / "taken"), tmp_path, "exists and is not an empty folder")
    cut(folder)
    refused(to_native(folder, tmp_path / "target"), tmp_path, "not a complete safetensors file")
    shutil.rmtree(folder)
    tiny_model("alibi", hf_rope.HfRopeForMaskedLM).save_pretrained(folder)
    refused(to_native(folder, tmp_path / "target"), tmp_path, "'alibi' has no native class to go back to")
    shutil.rmtree(folder)
    theirs.save_pretrained(folder)
    refused(to_native(folder, tmp_path / "target"), tmp_path, "which has no conversion; known: hf_rope")


# Folders of sentence-transformers.

TEXTS = ["a rotary one turn", "keys", "short and short and short keys . a one"]
EMBED = """
import sys
sys.modules["hf_rope"] = None  # makes it impossible to import
import json, torch
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(sys.argv[1], trust_remote_code=True, device="cpu")
torch.save(model.encode(json.loads(sys.argv[2]), convert_to_tensor=True, prompt_name="query"), sys.argv[3])
"""


@pytest.fixture
def sentences(source):
    """A SentenceTransformer with every kind of file beside its encoder: a length, a prompt, modules with weights."""
    encoder = source.parent / "encoder"
    native("bert").save_pretrained(encoder)
    transformers.AutoTokenizer.from_pretrained(source).save_pretrained(encoder)
    parts = [
        modules.Transformer(str(encoder), max_seq_length=8),
        modules.Pooling(SIZES["hidden_size"], pooling_mode="max"),
        modules.Dense(SIZES["hidden_size"], 8),
        modules.Normalize(),
    ]
    model = SentenceTransformer(modules=parts, prompts={"query": "turn "}, device="cpu")
    shutil.rmtree(encoder)
    shutil.rmtree(source)
    model.save_pretrained(str(source))
    return model.encode(TEXTS, convert_to_tensor=True, prompt_name="query")


def embed(folder) -> torch.Tensor:
    """The embeddings of a folder, in a process where the package is not."""
    out = folder.with_name("embeddings.pt")
    command = [sys.executable, "-c", EMBED, str(folder), json.dumps(TEXTS), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out)


def test_a_sentence_transformer_gives_the_same_embeddings(source, sentences, tmp_path):
    result = command(source, tmp_path / "target", "--check")
    assert result.exit_code == 0, result.output
    assert "2_Dense/model.safetensors" in result.output
    found = embed(tmp_path / "target")
    assert found.shape == (3, 8)
    torch.testing.assert_close(found, sentences, rtol=0, atol=1e-6)


def test_a_sentence_transformer_goes_back_with_its_files(source, sentences, tmp_path):
    assert command(source, tmp_path / "ours", "--position", "learned").exit_code == 0
    result = command(tmp_path / "ours", tmp_path / "target", "--check", name="to-native")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "target" / "config.json").read_text())["model_type"] == "bert"
    torch.testing.assert_close(embed(tmp_path / "target"), sentences, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[", "is not a list of modules"),
        ('[{"name": "0"}]', "is not a list of modules"),
        ("3", "is not a list of modules"),
        ('[{"path": null}]', "is not a list of modules"),
        ('[{"path": "../elsewhere"}]', "names '../elsewhere', which is not inside the folder"),
        ('[{"path": "/etc"}]', "names '/etc', which is not inside the folder"),
    ],
)
def test_a_list_of_modules_that_does_not_fit_is_refused(text, sentence, source, tmp_path):
    (source / "modules.json").write_text(text)
    refused(command(source, tmp_path / "target"), tmp_path, sentence)


def test_a_module_without_files_needs_no_folder(source, tmp_path):
    (source / "modules.json").write_text('[{"path": "."}, {"path": ""}, {"path": "1_Normalize"}]')
    assert command(source, tmp_path / "target").exit_code == 0
    assert json.loads((tmp_path / "target" / "config.json").read_text())["model_type"] == "hf_rope"
    assert (tmp_path / "target" / "modules.json").read_bytes() == (source / "modules.json").read_bytes()

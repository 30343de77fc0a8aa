"""Bad input is refused at once, in one sentence that names the value, the limit and the way out."""

import logging
import os

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AttentionInterface, AutoConfig, AutoModel, AutoModelForMaskedLM, DynamicCache

from heads import HEADS
from helpers import tiny_config, tiny_model, token_ids
from hf_rope import (
    SCHEMES,
    HfRopeConfig,
    HfRopeForCausalLM,
    HfRopeForMaskedLM,
    HfRopeForMultipleChoice,
    HfRopeForTokenClassification,
    HfRopeModel,
)

ROPE_TYPES = "default, dynamic, linear, llama3, longrope, proportional, yarn"
ALL = ", ".join(SCHEMES)


def rope(**values):
    return {"rope_parameters": {"rope_type": "linear", "factor": 2.0, **values}}


def options(**values):
    return {"position_options": values}


# name: (scheme, the settings that do not fit, the sentence)
CONFIGS = {
    "unknown scheme": ("rotery", {}, rf"'rotery' is unknown; the nearest is 'rotary', all are: {ALL}\."),
    "unknown option": (
        "t5",
        options(num_bucket=32),
        r"has 'num_bucket', .*'t5' does not know; it takes: num_buckets, max_",
    ),
    "option where there are none": ("none", options(size=1), r"has 'size', .*'none' does not know; it takes: none\."),
    "option of another type": (
        "t5",
        options(num_buckets="32"),
        r"'t5': Field 'num_buckets' expected int, got str.*'32'",
    ),
    "option not among the choices": (
        "rotary",
        options(pairing="half"),
        r"'pairing' expected one of \('interleaved', 'hal",
    ),
    "t5 buckets": ("t5", options(num_buckets=6), r"\['num_buckets'\] is 6; it must be a multiple of 4, 4 or more"),
    "t5 distance": ("t5", options(max_distance=8), r"\['max_distance'\] is 8; it must exceed the 8 distances"),
    "tupe buckets": ("tupe", options(num_buckets=0), r"\['num_buckets'\] is 0; it must be a multiple of 4, 4 or more"),
    "shaw distance": ("shaw", options(max_distance=0), r"\['max_distance'\] is 0; it must be 1 or more"),
    "deberta terms": (
        "deberta",
        options(pos_att_type=["p2p"]),
        r"\['pos_att_type'\] is \['p2p'\]; it must hold 'c2p', 'p2c'",
    ),
    "deberta without terms": (
        "deberta",
        options(pos_att_type=[]),
        r"\['pos_att_type'\] is \[\]; it must hold 'c2p', 'p2c'",
    ),
    "deberta buckets": (
        "deberta",
        options(position_buckets=2),
        r"\['position_buckets'\] is 2; it must be 0, for none, or 4",
    ),
    "deberta distance": (
        "deberta",
        options(max_relative_positions=1),
        r"max_relative_positions'\] is 1; it must be 2 or",
    ),
    "odd head size": (
        "rotary",
        {"hidden_size": 36},
        r"needs an even rotary size .* got 9 \(head size 9 = hidden_size 36 / num",
    ),
    "odd embedding size": ("sinusoidal", {"embedding_size": 15}, r"needs an even embedding_size, got 15"),
    "odd hidden size": ("transformer_xl", {"hidden_size": 33, "num_attention_heads": 3}, r"even hidden_size, got 33"),
    "heads do not divide": (
        "none",
        {"num_attention_heads": 5},
        r"hidden_size=32 is not a multiple of num_attention_heads=5",
    ),
    "rotary parameters without rotation": (
        "learned",
        rope(),
        r"rope_parameters=.*'learned' does not rotate; leave it out",
    ),
    "no rotary parameters without rotation": (
        "t5",
        {"rope_parameters": {}},
        r"rope_parameters=\{\} has no effect: .*'t5'",
    ),
    "theta without rotation": ("t5", {"rope_theta": 1e4}, r"rope_theta=10000.0 has no effect: .*'t5' does not rotate"),
    "old scaling without rotation": (
        "t5",
        {"rope_scaling": {"type": "linear"}},
        r"rope_(scaling|parameters)=.* has no effect: .*'t5'",
    ),
    "unknown rope_type": ("rotary", rope(rope_type="linaer"), rf"\['rope_type'\] is 'linaer'; known: {ROPE_TYPES}\."),
    "rope_type of other models": (
        "rotary",
        rope(rope_type="axial"),
        rf"is 'axial'; known: {ROPE_TYPES}\.",
    ),
    "no factor": (
        "rotary",
        {"rope_parameters": {"rope_type": "linear"}},
        r"'rope_type'='linear': \{'factor'\}; add them to",
    ),
    "no factors": (
        "rotary",
        {"rope_parameters": {"rope_type": "longrope"}},
        r"'longrope': \{'(long|short)_factor', .*; add",
    ),
    "factor below 1": ("rotary", rope(factor=0), r"rope_parameters\['factor'\] is 0; it must be a number of 1 or more"),
    "factor of another type": (
        "rotary",
        rope(factor="2"),
        r"rope_parameters\['factor'\] is '2'; it must be a number of 1",
    ),
    "theta below 0": (
        "rotary",
        rope(rope_theta=-1),
        r"rope_parameters\['rope_theta'\] is -1; it must be a number above 0",
    ),
    "partial above 1": (
        "rotary",
        rope(partial_rotary_factor=2.0),
        r"factor'\] is 2.0; it must be a number above 0 and up to 1",
    ),
    "partial of nothing": ("rotary", rope(partial_rotary_factor=0.1), r"needs an even rotary size of 2 or more, got 0"),
    "factors of another count": (
        "rotary",
        rope(rope_type="longrope", short_factor=[1.0] * 3, long_factor=[1.0] * 4),
        r"rope_parameters\['short_factor'\] has 3 numbers and needs one a rotated pair, 4",
    ),
    "factors not a list": (
        "rotary",
        rope(rope_type="longrope", short_factor=1.0, long_factor=[1.0] * 4),
        r"rope_parameters\['short_factor'\] is 1.0; it must be a list of numbers",
    ),
    "padding id beyond the vocabulary": (
        "none",
        {"pad_token_id": 99},
        r"pad_token_id is 99; .*from 0 to 98 \(vocab_size=99\)",
    ),
    "negative padding id": ("none", {"pad_token_id": -1}, r"pad_token_id is -1; it must be None or from 0 to 98"),
    "unknown activation": (
        "none",
        {"hidden_act": "gleu"},
        r"hidden_act='gleu' is unknown; the nearest is 'gelu', all are: .*silu",
    ),
    "pooler activation": (
        "none",
        {"pooler_activation": "tahn"},
        r"pooler_activation='tahn' is unknown; the nearest is 'tanh', all are: .*silu",
    ),
    **{
        f"{key}={value}": ("none", {key: value}, rf"{key} is {value}; it must be 1 or more")
        for key in (
            *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
            *("max_position_embeddings", "embedding_size", "num_labels"),
        )
        for value in ((0,) if key == "num_labels" else (0, -1))
    },
    **{
        f"{key}=-1": ("none", {key: -1}, rf"{key} is -1; it must be 0 or more")
        for key in ("type_vocab_size", "chunk_size_feed_forward", "initializer_range", "layer_norm_eps")
    },
    **{
        f"{key}={value}": ("none", {key: value}, rf"{key} is {value}; it is a probability, from 0 to 1")
        for key in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
        for value in (-0.1, 1.5, float("nan"))
    },
}
WRONG_TYPES = {
    "scheme": {"position_embedding_type": None},
    "options": {"position_options": [1]},
    "rotary parameters": {"rope_parameters": "yarn"},
    "number as text": {"vocab_size": "99"},
    "fraction": {"hidden_size": 32.0},
    "pooling": {"classifier_pooling": "max"},
}

IDS = token_ids(2, 7)
AT = torch.arange(7)[None]
STATES = torch.zeros(2, 7, 32)
# name: (the arguments, the exception, the sentence)
INPUTS = {
    "neither": ({}, ValueError, r"takes input_ids or inputs_embeds, one of them, and got neither"),
    "both": ({"input_ids": IDS, "inputs_embeds": STATES}, ValueError, r"one of them, and got both"),
    "id beyond the vocabulary": (
        {"input_ids": IDS * 0 + 99},
        ValueError,
        r"input_ids holds 99, outside 0 to 98 .*resize",
    ),
    "negative id": ({"input_ids": IDS - 99}, ValueError, r"input_ids holds -\d+, outside 0 to 98 \(vocab_size=99\)"),
    "float ids": (
        {"input_ids": IDS.float()},
        TypeError,
        r"input_ids has dtype torch.float32; .* whole numbers: pass .long",
    ),
    "bool ids": ({"input_ids": IDS > 5}, TypeError, r"input_ids has dtype torch.bool; .* whole numbers"),
    "list of ids": (
        {"input_ids": IDS.tolist()},
        TypeError,
        r"input_ids is a list; pass a tensor \(return_tensors='pt'",
    ),
    "one row": ({"input_ids": IDS[0]}, ValueError, r"input_ids has shape \(7,\); it must be \(batch, length\)"),
    "no tokens": ({"input_ids": IDS[:, :0]}, ValueError, r"has shape \(2, 0\); it must hold one token at least"),
    "no rows": ({"input_ids": IDS[:0]}, ValueError, r"has shape \(0, 7\); it must hold one token at least"),
    "embeddings of another width": (
        {"inputs_embeds": STATES[..., 1:]},
        ValueError,
        r"inputs_embeds has shape \(2, 7, 31\); it must be \(batch, length, embedding_size=32\)",
    ),
    "embeddings without batch": ({"inputs_embeds": STATES[0]}, ValueError, r"inputs_embeds has shape \(7, 32\)"),
    "whole embeddings": (
        {"inputs_embeds": STATES.long()},
        TypeError,
        r"inputs_embeds has dtype torch.int64; .* ids go to input",
    ),
    "negative positions": (
        {"input_ids": IDS, "position_ids": AT - 2},
        ValueError,
        r"position_ids holds -2; positions start at 0",
    ),
    "float positions": (
        {"input_ids": IDS, "position_ids": AT / 2},
        TypeError,
        r"position_ids has dtype torch.float32; .* whole",
    ),
    "positions of another length": (
        {"input_ids": IDS, "position_ids": AT[:, 1:]},
        ValueError,
        r"position_ids has shape \(1, 6\); it must be \(2, 7\) or \(1, 7\)",
    ),
    "positions of another batch": (
        {"input_ids": IDS, "position_ids": AT.repeat(3, 1)},
        ValueError,
        r"has shape \(3, 7\); it",
    ),
    "one row of positions": (
        {"input_ids": IDS, "position_ids": AT[0]},
        ValueError,
        r"position_ids has shape \(7,\); it must",
    ),
    **{
        f"mask of shape {shape}": (
            {"input_ids": IDS, "attention_mask": torch.ones(shape)},
            ValueError,
            rf"attention_mask has shape {shape}; it must have the input's, (2, 7)".replace("(", r"\(").replace(
                ")", r"\)"
            ),
        )
        for shape in ((2, 8), (1, 7), (7,), (2, 7, 7), (2, 1, 8, 8), (2, 1, 7, 8), (3, 1, 7, 7))
    },
    "type beyond the table": (
        {"input_ids": IDS, "token_type_ids": torch.full_like(IDS, 2)},
        ValueError,
        r"token_type_ids holds 2, outside 0 to 1 \(type_vocab_size=2\): build the model with a larger type_vocab_size",
    ),
    "negative type": (
        {"input_ids": IDS, "token_type_ids": -IDS},
        ValueError,
        r"token_type_ids holds -\d+, outside 0 to 1",
    ),
    "float types": (
        {"input_ids": IDS, "token_type_ids": IDS / 1},
        TypeError,
        r"token_type_ids has dtype torch.float32",
    ),
    "types of another length": (
        {"input_ids": IDS, "token_type_ids": IDS[:, 1:] * 0},
        ValueError,
        r"token_type_ids has shape \(2, 6\); the input's is \(2, 7\)",
    ),
}


def refusal(call, exception, sentence) -> str:
    with pytest.raises(exception, match=sentence) as caught:
        call()
    return str(caught.value)


def assert_one_sentence(message: str) -> None:
    assert "\n" not in message
    assert message.endswith(".")
    assert ". " not in message


@pytest.mark.parametrize(("scheme", "settings", "sentence"), CONFIGS.values(), ids=CONFIGS)
def test_configuration(scheme, settings, sentence):
    assert_one_sentence(refusal(lambda: tiny_config(scheme, **settings), ValueError, sentence))


@pytest.mark.parametrize("settings", WRONG_TYPES.values(), ids=WRONG_TYPES)
def test_configuration_value_of_another_type(settings):
    (key,) = settings
    refusal(lambda: HfRopeConfig(**settings), StrictDataclassFieldValidationError, rf"(?s)'{key}'.* expected ")


@pytest.mark.parametrize(("scheme", "settings", "sentence"), CONFIGS.values(), ids=CONFIGS)
def test_configuration_changed_at_load(scheme, settings, sentence, folders):
    start = folders["none" if scheme == "rotery" else scheme]
    changes = {"position_embedding_type": scheme, **settings}
    for load in (AutoConfig.from_pretrained, AutoModel.from_pretrained):
        refusal(lambda load=load: load(start, **changes), ValueError, sentence)


@pytest.mark.parametrize(("arguments", "exception", "sentence"), INPUTS.values(), ids=INPUTS)
def test_input(arguments, exception, sentence):
    for scheme in ("none", "rotary", "learned"):
        assert_one_sentence(refusal(lambda scheme=scheme: tiny_model(scheme)(**arguments), exception, sentence))


BOUNDS = torch.tensor([0, 3, 7])
HEAD_INPUTS = {
    "labels of another shape": (
        HfRopeForMaskedLM,
        {"input_ids": IDS, "labels": IDS[:, 1:]},
        r"labels has shape \(2, 6\)",
    ),
    "labels a row": (
        HfRopeForTokenClassification,
        {"input_ids": IDS, "labels": IDS[:, 0]},
        r"labels has shape \(2,\); ",
    ),
    "choices left out": (
        HfRopeForMultipleChoice,
        {"input_ids": IDS},
        r"has shape \(2, 7\); .* \(batch, choices, length",
    ),
    "no choices": (HfRopeForMultipleChoice, {}, r"one of them, and got neither"),
    "bounds of two rows": (
        HfRopeModel,
        {"input_ids": IDS, "cu_seq_lens_q": BOUNDS},
        r"of one row, and the batch has 2",
    ),
    "bounds too short": (
        HfRopeModel,
        {"input_ids": IDS[:1], "cu_seq_lens_q": BOUNDS[:2]},
        r"is \[0, 3\]; .* length, 7",
    ),
    "bounds that fall": (
        HfRopeModel,
        {"input_ids": IDS[:1], "cu_seq_lens_q": BOUNDS[[0, 1, 1, 2]]},
        r"must rise from 0",
    ),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("model_class", "arguments", "sentence"), HEAD_INPUTS.values(), ids=HEAD_INPUTS)
def test_head_input(model_class, arguments, sentence, training):
    model = tiny_model("rotary", model_class).train(training)
    assert_one_sentence(refusal(lambda: model(**arguments), ValueError, sentence))


@pytest.mark.parametrize("shape", [(2, 7), (2, 1, 7, 7), (2, 4, 7, 7), (1, 1, 7, 7), (2, 1, 1, 7)], ids=str)
def test_masks_of_every_fitting_shape_are_taken(shape):
    mask = torch.ones(shape, dtype=torch.long if len(shape) == 2 else torch.bool)
    assert tiny_model("none")(IDS, attention_mask=mask).last_hidden_state.isfinite().all()


SETTERS = {
    "config": ("learned", "rotary", r"needs rope_parameters, and they are None: give the scheme when"),
    "options left behind": ("rotary", "learned", r"has 'pairing', which .*'learned' does not know"),
    "unknown": ("none", "rotery", r"'rotery' is unknown; the nearest is 'rotary'"),
}


@pytest.mark.parametrize(("before", "after", "sentence"), SETTERS.values(), ids=SETTERS)
def test_scheme_changed_on_a_built_configuration(before, after, sentence):
    config = tiny_config(before)
    config.position_embedding_type = after
    assert_one_sentence(refusal(lambda: HfRopeModel(config), ValueError, sentence))


WALLED = {"learned", "tupe", "relative_key", "relative_key_query"}
LONG = {
    "ids": {"input_ids": token_ids(1, 65)},
    "embeddings": {"inputs_embeds": torch.zeros(1, 65, 32)},
    "padding on the right": {
        "input_ids": token_ids(2, 65),
        "attention_mask": torch.tensor([[1] * 65, [1] * 9 + [0] * 56]),
    },
    "far positions": {"input_ids": token_ids(1, 2), "position_ids": torch.tensor([[0, 64]])},
    "far positions in one row": {"input_ids": token_ids(2, 2), "position_ids": torch.tensor([[0, 1], [0, 64]])},
}


@pytest.mark.parametrize("inputs", LONG.values(), ids=LONG)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_input_longer_than_max_position_embeddings(scheme, inputs):
    model = tiny_model(scheme)
    if scheme in WALLED:
        sentence = (
            rf"'{scheme}' has a table for 64 positions \(max_position_embeddings=64\) and the input needs 65: "
            r"shorten .* \(truncation=True in the tokenizer\), or use a scheme without a table"
        )
        assert_one_sentence(refusal(lambda: model(**inputs), ValueError, sentence))
    else:
        assert model(**inputs).last_hidden_state.isfinite().all()


KINDS = {"sdpa": "sdpa", "flex_attention": "flex_attention", "mine": None}
KINDS |= dict.fromkeys(("flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2"), "flash_attention")
ALLOWED = {
    "shaw": ("eager",),
    "t5": ("eager", "sdpa", "flex_attention"),
    "rotary": ("eager", "sdpa", "flex_attention", "flash_attention"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_attention_that_cannot_compute_the_scheme(scheme, kind, folders):
    AttentionInterface.register("mine", AttentionInterface()["sdpa"])
    allowed = SCHEMES[scheme].attn_implementations(tiny_config(scheme))
    assert allowed == ALLOWED.get(scheme, allowed)
    ways = {
        "config": lambda: HfRopeModel(tiny_config(scheme, attn_implementation=kind)),
        "from_config": lambda: AutoModel.from_config(tiny_config(scheme), attn_implementation=kind),
        "from_pretrained": lambda: AutoModel.from_pretrained(folders[scheme], attn_implementation=kind),
        "set": lambda: (model := tiny_model(scheme)).set_attn_implementation(kind) or model,
    }
    sentence = rf"attn_implementation='{kind}' cannot compute .*'{scheme}' .*; it works with: {', '.join(allowed)}\."
    for way in ways.values():
        if KINDS[kind] in allowed or (KINDS[kind] is None and "sdpa" in allowed):
            if KINDS[kind] != "flash_attention":  # not installed everywhere
                assert way().config._attn_implementation == kind
        else:
            assert_one_sentence(refusal(way, ValueError, sentence))


def test_attention_that_does_not_exist():
    model = tiny_model("rotary")
    refusal(lambda: model.set_attn_implementation("spda"), ValueError, r'attn_implementation="spda". is not supported')
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("target", SCHEMES)
@pytest.mark.parametrize("source", SCHEMES)
def test_weights_of_another_scheme(source, target, folders):
    folder = folders[source]
    ways = {
        "keyword": lambda: AutoModelForMaskedLM.from_pretrained(folder, position_embedding_type=target),
        "config": lambda: HfRopeForMaskedLM.from_pretrained(folder, config=tiny_config(target)),
        "encoder alone": lambda: AutoModel.from_pretrained(folder, config=tiny_config(target)),
    }
    for way in ways.values():
        if source == target:
            assert way().config.position_embedding_type == target
        else:
            sentence = (
                rf"were trained with position_embedding_type='{source}' and cannot be used with '{target}': load them "
                r"under their own scheme, or build a new model with from_config\."
            )
            assert_one_sentence(refusal(way, ValueError, sentence))


OTHER_OPTIONS = {
    "tupe with a bias": ("tupe", {"relative_bias": True}, r"the checkpoint lacks position\.bias\.weight"),
    "shaw without values": (
        "shaw",
        {"relative_values": False},
        r"the checkpoint also has model\.layers\.0\.attention\.position\.relative_values",
    ),
    "deberta's own projections": (
        "deberta",
        {"share_att_key": False},
        r"lacks layers\.0\.attention\.position\.key_projection\.bias",
    ),
}


@pytest.mark.parametrize(("scheme", "changes", "sentence"), OTHER_OPTIONS.values(), ids=OTHER_OPTIONS)
def test_weights_of_other_options(scheme, changes, sentence, folders):
    refusal(lambda: AutoModel.from_pretrained(folders[scheme], position_options=changes), ValueError, sentence)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_file_without_any_weight_of_the_model_is_transformers_to_report(scheme, tmp_path):
    model = tiny_model(scheme)
    model.save_pretrained(tmp_path)
    save_file({"tensor": torch.ones(2)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    _, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert {*info["missing_keys"]} == {*model.state_dict()}


TABLES = {"learned": 128, "relative_key": 128, "tupe": 32}


@pytest.mark.parametrize(("scheme", "length"), TABLES.items(), ids=TABLES)
def test_position_table_of_another_size(scheme, length, folders):
    refusal(
        lambda: AutoModel.from_pretrained(folders[scheme], max_position_embeddings=length),
        RuntimeError,
        r"ignore_mismatched_sizes",
    )


SIDES = {
    "masked LM": (
        HfRopeForMaskedLM,
        True,
        r"MaskedLM with is_decoder=True sees no token after its own: pass is_decoder=F",
    ),
    "tokens": (
        HfRopeForTokenClassification,
        True,
        r"is_decoder=True sees no token after its own: pass is_decoder=False",
    ),
    "choice": (
        HfRopeForMultipleChoice,
        True,
        r"is_decoder=True sees no token after its own: pass is_decoder=False to th",
    ),
    "causal LM": (
        HfRopeForCausalLM,
        False,
        r"is_decoder=False sees the tokens that it is to predict: pass is_decoder=T",
    ),
}


@pytest.mark.parametrize(("model_class", "is_decoder", "sentence"), SIDES.values(), ids=SIDES)
def test_heads_of_the_other_direction(model_class, is_decoder, sentence):
    config = tiny_config("rotary", is_decoder=is_decoder)
    assert_one_sentence(refusal(lambda: model_class(config), ValueError, sentence))


def decoder():
    return tiny_model("rotary", HfRopeForCausalLM, is_decoder=True)


def cached(**inputs):
    """A forward of the decoder after one of 7 tokens."""
    model = decoder()
    return lambda: model(**inputs, past_key_values=model(IDS).past_key_values)


def checkpointed():
    model = decoder().train()
    model.gradient_checkpointing_enable()
    return model(IDS, past_key_values=DynamicCache())


DECODING = {
    "a cache in an encoder": (
        lambda: tiny_model("none")(IDS, past_key_values=DynamicCache()),
        r"A cache is given and is_decoder is False: an encoder keeps none; leave it out, or set is_decoder=True\.",
    ),
    "an encoder's states without cross-attention": (
        lambda: decoder()(IDS, encoder_hidden_states=torch.zeros(2, 3, 32)),
        r"encoder_hidden_states are given and add_cross_attention is False: set it, and is_decoder, to True",
    ),
    "cross-attention in an encoder": (
        lambda: tiny_config("none", add_cross_attention=True),
        r"add_cross_attention=True is for decoders, and is_decoder is False: set is_decoder=True, or leave",
    ),
    "mask of the new tokens alone": (
        cached(input_ids=IDS, attention_mask=torch.ones_like(IDS)),
        r"attention_mask has shape \(2, 7\); it must have the input's, \(2, 14\) \(7 cached and 7 new tokens\), or be",
    ),
    "packed sequences after a cache": (
        cached(input_ids=IDS[:1], cu_seq_lens_q=torch.tensor([0, 3, 7])),
        r"cu_seq_lens_q tells packed sequences apart, which cannot be continued: leave the cache out",
    ),
    "packed positions into an empty cache": (
        lambda: decoder()(IDS[:1], position_ids=torch.arange(7)[None] % 4, past_key_values=DynamicCache()),
        r"position_ids are of packed sequences, which cannot be continued, and a cache is given: leave the cache out",
    ),
    "positions with gaps after a cache": (
        cached(input_ids=IDS[:, :2], position_ids=torch.tensor([[7, 9]])),
        r"position_ids are \[7, 9\] where a cache is in use; with one, they must count up by one: leave them out",
    ),
    "a cache under checkpointing": (
        checkpointed,
        r"A cache is given under gradient checkpointing, which would fill it twice: leave it out, or call",
    ),
    "continuous batching": (
        lambda: decoder().set_attn_implementation("paged|sdpa"),
        r"attn_implementation='paged\|sdpa' is for continuous batching, whose cache holds keys that are already placed",
    ),
    "some logits with labels": (
        lambda: decoder()(IDS, labels=IDS, logits_to_keep=1),
        r"logits_to_keep is 1 and labels are given: a loss needs all logits; leave one of them out",
    ),
}


@pytest.mark.parametrize(("call", "sentence"), DECODING.values(), ids=DECODING)
def test_decoding(call, sentence):
    assert_one_sentence(refusal(call, ValueError, sentence))


LEGIT = {
    "rotary type": ("rotary", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}),
    "theta": ("rotary", {"rope_theta": 5e4}),
    "old scaling": ("rotary", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    "pairing": ("rotary", {"position_options": {"pairing": "halves"}}),
    "old name": ("learned", {"position_embedding_type": "absolute"}),
    "its own name": ("t5", {"position_embedding_type": "t5"}),
    "longer input": ("rotary", {"max_position_embeddings": 4096}),
}


@pytest.mark.parametrize(("scheme", "changes"), LEGIT.values(), ids=LEGIT)
def test_what_leaves_the_weights_alone_loads(scheme, changes, folders):
    model, info = AutoModelForMaskedLM.from_pretrained(folders[scheme], output_loading_info=True, **changes)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    saved = load_file(os.path.join(folders[scheme], "model.safetensors"))
    assert saved
    assert all(torch.equal(model.state_dict()[key], value) for key, value in saved.items())


@pytest.mark.parametrize("source", SCHEMES)
def test_weights_without_a_configuration_load_into_a_given_one(source, folders, tmp_path):
    os.link(os.path.join(folders[source], "model.safetensors"), tmp_path / "model.safetensors")
    model = HfRopeForMaskedLM.from_pretrained(tmp_path, config=tiny_config(source))
    assert torch.equal(model.eval()(IDS).logits, HfRopeForMaskedLM.from_pretrained(folders[source]).eval()(IDS).logits)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_truncated_weights(kept, folders, tmp_path):
    for name in ("config.json", "model.safetensors"):
        with open(os.path.join(folders["rotary"], name), "rb") as file:
            content = file.read()
        (tmp_path / name).write_bytes(content[: int(kept * len(content))] if name != "config.json" else content)
    refusal(lambda: AutoModel.from_pretrained(tmp_path), SafetensorError, r"header|incomplete")


MISSPELT = {
    "hiden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "position_embeding_type": "position_embedding_type",
    "position_option": "position_options",
    "rope_parameter": "rope_parameters",
    "clasifier_pooling": "classifier_pooling",
}


@pytest.mark.parametrize(("key", "nearest"), MISSPELT.items(), ids=MISSPELT)
def test_misspelt_key_is_named_with_the_nearest_real_one(key, nearest, caplog):
    with caplog.at_level(logging.WARNING):
        tiny_config("none", **{key: 1})
    assert [record.getMessage() for record in caplog.records] == [
        f"HfRopeConfig has no key {key!r}, and nothing reads it; the nearest real key is {nearest!r}."
    ]


@pytest.mark.parametrize("name", HEADS)
def test_an_argument_that_nothing_reads_is_named(name, caplog):
    model, unread = HEADS[name].build(), f"mask_of_{name}"
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            model(**HEADS[name].batch(), **{unread: True, f"no_{unread}": None})
    assert [record.getMessage() for record in caplog.records] == [
        f"The forward has no argument {unread!r}, and nothing reads it: correct its name, or leave it out."
    ]


BASE_KEYS = {
    **{"rope_theta": 7.0, "rope_scaling": {"type": "linear", "factor": 2.0}, "partial_rotary_factor": 0.5},
    **{"num_labels": 3, "torch_dtype": "float16", "output_attentions": True, "attn_implementation": "eager"},
    **{"name_or_path": "me/model", "finetuning_task": "sst2", "bos_token_id": 1, "eos_token_id": 2, "use_cache": False},
}


@pytest.mark.parametrize("key", BASE_KEYS)
def test_keys_that_transformers_takes_or_writes_give_no_warning(key, caplog):
    with caplog.at_level(logging.WARNING):
        tiny_config("rotary", **{key: BASE_KEYS[key]})
    assert not caplog.records


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_saved_configuration_loads_without_a_warning(scheme, folders, caplog):
    with caplog.at_level(logging.WARNING):
        AutoConfig.from_pretrained(folders[scheme], num_labels=3, attn_implementation="eager")
    assert not caplog.records


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A masked-LM checkpoint of every scheme."""
    root = tmp_path_factory.mktemp("checkpoints")
    for scheme in SCHEMES:
        HfRopeForMaskedLM(tiny_config(scheme)).save_pretrained(root / scheme)
    return {scheme: str(root / scheme) for scheme in SCHEMES}

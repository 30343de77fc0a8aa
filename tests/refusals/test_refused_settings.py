"""A configuration that cannot be is refused when it is made, loaded or built from: setting, limit and way out."""

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig, AutoModel

from helpers import refused, tiny_config
from hf_rope import (
    SCHEMES,
    HfRopeConfig,
    HfRopeForCausalLM,
    HfRopeForMaskedLM,
    HfRopeForMultipleChoice,
    HfRopeForTokenClassification,
    HfRopeModel,
)

ROPE_TYPES = "known: default, dynamic, linear, llama3, longrope, proportional, yarn."
COUNTS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
COUNTS += ("max_position_embeddings", "embedding_size")
RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
LONGROPE = {"rope_type": "longrope", "long_factor": [1.0] * 4}


def options(**values):
    return {"position_options": values}


def rope(**values):
    return {"rope_parameters": {"rope_type": "linear", "factor": 2.0, **values}}


# name: scheme, the settings that do not fit, and what the refusal mentions
CONFIGS = {
    "unknown scheme": ("rotery", {}, "'rotery' is unknown", "nearest is 'rotary'", f"all are: {', '.join(SCHEMES)}."),
    "unknown option": ("t5", options(num_bucket=32), "'num_bucket'", "'t5' does not know", "num_buckets, max_distance"),
    "option where there are none": ("none", options(size=1), "'size'", "'none' does not know", "it takes: none."),
    "option of another type": ("t5", options(num_buckets="32"), "'t5'", "'num_buckets' expected int", "'32'"),
    "option not among the choices": ("rotary", options(pairing="half"), "'pairing'", "'interleaved', 'halves'"),
    "t5 buckets": ("t5", options(num_buckets=6), "['num_buckets'] is 6", "a multiple of 4, 4 or more"),
    "t5 distance": ("t5", options(max_distance=8), "['max_distance'] is 8", "must exceed the 8 distances"),
    "tupe buckets": ("tupe", options(num_buckets=0), "['num_buckets'] is 0", "a multiple of 4, 4 or more"),
    "shaw distance": ("shaw", options(max_distance=0), "['max_distance'] is 0", "1 or more"),
    "deberta terms": ("deberta", options(pos_att_type=["p2p"]), "['pos_att_type'] is ['p2p']", "hold 'c2p', 'p2c'"),
    "deberta without terms": ("deberta", options(pos_att_type=[]), "['pos_att_type'] is []", "hold 'c2p', 'p2c'"),
    "deberta buckets": ("deberta", options(position_buckets=2), "['position_buckets'] is 2", "0, for none, or 4"),
    "deberta distance": (
        *("deberta", options(max_relative_positions=1)),
        *("['max_relative_positions'] is 1", "2 or more"),
    ),
    "alibi form": ("alibi", options(form="left"), "'form'", "'learned', 'symmetric', 'one_sided'"),
    "alibi heads": (
        *("alibi", {**options(form="one_sided"), "num_attention_heads": 1}),
        *("['form'] is 'one_sided'", "num_attention_heads is 1", "use an even number, or another form"),
    ),
    "kerple kernel": ("kerple", options(kernel="sqrt"), "'kernel'", "'log', 'power'"),
    "fire width": ("fire", options(width=0), "['width'] is 0", "1 or more"),
    "fire threshold": ("fire", options(threshold=0), "['threshold'] is 0", "1 or more"),
    "odd head size": ("rotary", {"hidden_size": 36}, "even rotary size", "got 9", "hidden_size 36 / num"),
    "odd embedding size": ("sinusoidal", {"embedding_size": 15}, "even embedding_size", "got 15"),
    "odd hidden size": ("transformer_xl", {"hidden_size": 33, "num_attention_heads": 3}, "even hidden_size", "got 33"),
    "heads do not divide": ("none", {"num_attention_heads": 5}, "hidden_size=32", "multiple of num_attention_heads=5"),
    "rotary parameters without rotation": ("learned", rope(), "rope_parameters=", "'learned' does not rotate", "leave"),
    "no rotary parameters without rotation": ("t5", {"rope_parameters": {}}, "rope_parameters={}", "no effect", "'t5'"),
    "theta without rotation": ("t5", {"rope_theta": 1e4}, "rope_theta=10000.0", "no effect", "'t5' does not rotate"),
    "old scaling without rotation": ("t5", {"rope_scaling": {"type": "linear"}}, "rope_", "no effect", "'t5'"),
    "unknown rope_type": ("rotary", rope(rope_type="linaer"), "['rope_type'] is 'linaer'", ROPE_TYPES),
    "rope_type of other models": ("rotary", rope(rope_type="axial"), "['rope_type'] is 'axial'", ROPE_TYPES),
    "no factor": ("rotary", {"rope_parameters": {"rope_type": "linear"}}, "'linear'", "{'factor'}", "add them"),
    "no factors": ("rotary", {"rope_parameters": {"rope_type": "longrope"}}, "'longrope'", "_factor'", "add them"),
    "factor below 1": ("rotary", rope(factor=0), "rope_parameters['factor'] is 0", "a number of 1 or more"),
    "factor of another type": ("rotary", rope(factor="2"), "rope_parameters['factor'] is '2'", "a number of 1 or more"),
    "theta below 0": ("rotary", rope(rope_theta=-1), "rope_parameters['rope_theta'] is -1", "a number above 0"),
    "partial above 1": ("rotary", rope(partial_rotary_factor=2.0), "_factor'] is 2.0", "above 0 and up to 1"),
    "endless factor": ("rotary", rope(factor=float("inf")), "['factor'] is inf", "of 1 or more"),
    "theta that float32 has not": ("rotary", rope(rope_theta=1e-300), "['rope_theta'] is 1e-300", "above 0"),
    "attention factor": ("rotary", rope(attention_factor=float("nan")), "['attention_factor'] is nan", "above 0"),
    "betas": ("rotary", rope(beta_fast=-1), "['beta_fast'] is -1", "above 0"),
    "frequency factor": ("rotary", rope(low_freq_factor=0), "['low_freq_factor'] is 0", "above 0"),
    "length before scaling": (
        *("rotary", rope(original_max_position_embeddings=0)),
        *("['original_max_position_embeddings'] is 0", "of 1 or more"),
    ),
    "factors of nothing": (
        "rotary",
        rope(**{**LONGROPE, "long_factor": [0.0] * 4}),
        "['long_factor'] holds 0.0",
        "above 0",
    ),
    "no heads with FAVOR+": (
        *("none", {"num_attention_heads": 0, "attention_type": "linear", "feature_map": "favor"}),
        *("num_attention_heads is 0", "1 or more"),
    ),
    "initial spread": ("none", {"initializer_range": float("inf")}, "initializer_range is inf", "0 or more"),
    "partial of nothing": ("rotary", rope(partial_rotary_factor=0.1), "even rotary size of 2 or more", "got 0"),
    "factors of another count": (
        *("rotary", rope(**LONGROPE, short_factor=[1.0] * 3)),
        *("rope_parameters['short_factor'] has 3 numbers", "one a rotated pair, 4"),
    ),
    "factors not a list": (
        *("rotary", rope(**LONGROPE, short_factor=1.0)),
        *("rope_parameters['short_factor'] is 1.0", "a list of numbers"),
    ),
    "padding id beyond the vocabulary": ("none", {"pad_token_id": 99}, "pad_token_id is 99", "from 0 to 98", "size=99"),
    "negative padding id": ("none", {"pad_token_id": -1}, "pad_token_id is -1", "None or from 0 to 98"),
    "activation of a gate": ("none", {"hidden_act": "gleu", "feed_forward_type": "gated"}, "hidden_act='gleu'", "silu"),
    "unknown activation": ("none", {"hidden_act": "gleu"}, "hidden_act='gleu'", "nearest is 'gelu'", "silu"),
    "pooler activation": ("none", {"pooler_activation": "tahn"}, "activation='tahn'", "nearest is 'tanh'", "silu"),
    **{
        f"{key}={value}": ("none", {key: value}, f"{key} is {value}", "1 or more")
        for key, values in {**dict.fromkeys(COUNTS, (0, -1)), "num_labels": (0,)}.items()
        for value in values
    },
    **{
        f"{key}=-1": ("none", {key: -1}, f"{key} is -1", "0 or more")
        for key in ("type_vocab_size", "chunk_size_feed_forward", "initializer_range", "layer_norm_eps")
    },
    **{
        f"{key}={value}": ("none", {key: value}, f"{key} is {value}", "a probability, from 0 to 1")
        for key in RATES
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
    "feed-forward": {"feed_forward_type": "glu"},
    "attention bias as a number": {"attention_bias": 1},
    "feed-forward bias as text": {"mlp_bias": "no"},
}


@pytest.mark.parametrize("row", CONFIGS.values(), ids=CONFIGS)
def test_configuration(row):
    scheme, settings, *mentions = row
    refused(lambda: tiny_config(scheme, **settings), *mentions)


@pytest.mark.parametrize("row", CONFIGS.values(), ids=CONFIGS)
def test_configuration_changed_at_load(row, folders):
    scheme, settings, *mentions = row
    start = folders.get(scheme, folders["none"])
    for load in (AutoConfig.from_pretrained, AutoModel.from_pretrained):
        refused(lambda load=load: load(start, position_embedding_type=scheme, **settings), *mentions)


@pytest.mark.parametrize("settings", WRONG_TYPES.values(), ids=WRONG_TYPES)
def test_configuration_value_of_another_type(settings):
    (key,) = settings
    with pytest.raises(StrictDataclassFieldValidationError, match=rf"(?s)'{key}'.* expected "):
        HfRopeConfig(**settings)


SETTERS = {
    "config": ("learned", "rotary", "needs rope_parameters", "they are None", "give the scheme when"),
    "options left behind": ("rotary", "learned", "'pairing'", "'learned' does not know"),
    "unknown": ("none", "rotery", "'rotery' is unknown", "nearest is 'rotary'"),
}


@pytest.mark.parametrize("row", SETTERS.values(), ids=SETTERS)
def test_scheme_changed_on_a_built_configuration(row):
    before, after, *mentions = row
    config = tiny_config(before)
    config.position_embedding_type = after
    refused(lambda: HfRopeModel(config), *mentions)


def test_sizes_changed_on_a_built_configuration():
    config = tiny_config("none")
    config.hidden_size = 33
    refused(lambda: HfRopeModel(config), "hidden_size=33", "num_attention_heads=4")


SEES_NOTHING_LATER = ("is_decoder=True", "no token after its own", "pass is_decoder=False")
SIDES = {
    "masked LM": (HfRopeForMaskedLM, True, "MaskedLM", *SEES_NOTHING_LATER),
    "tokens": (HfRopeForTokenClassification, True, *SEES_NOTHING_LATER),
    "choice": (HfRopeForMultipleChoice, True, *SEES_NOTHING_LATER),
    "causal LM": (HfRopeForCausalLM, False, "is_decoder=False", "it is to predict", "pass is_decoder=True"),
}


@pytest.mark.parametrize("row", SIDES.values(), ids=SIDES)
def test_heads_of_the_other_direction(row):
    model_class, is_decoder, *mentions = row
    refused(lambda: model_class(tiny_config("rotary", is_decoder=is_decoder)), *mentions)


def test_cross_attention_in_an_encoder():
    mentions = ("add_cross_attention=True", "is_decoder is False", "set is_decoder=True, or leave")
    refused(lambda: tiny_config("none", add_cross_attention=True), *mentions)

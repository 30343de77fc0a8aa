"""The configuration: defaults, round trips, overrides at load, and rotary parameters of every type."""

import copy
import json
import pickle
from dataclasses import asdict, fields

import pytest
from transformers import AutoConfig, AutoModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from helpers import CASES, VARIANTS, over, tiny_config, tiny_model, token_ids
from hf_rope import SCHEMES, HfRopeConfig, HfRopeModel

ROUND_TRIPS = {
    "to_dict": lambda config, path: HfRopeConfig(**config.to_dict()),
    "from_dict": lambda config, path: HfRopeConfig.from_dict(config.to_dict()),
    "from_diff": lambda config, path: HfRopeConfig.from_dict(config.to_diff_dict()),
    "json text": lambda config, path: HfRopeConfig(**json.loads(config.to_json_string())),
    "json file": lambda config, path: config.to_json_file(path / "c") or HfRopeConfig.from_json_file(path / "c"),
    "folder": lambda config, path: config.save_pretrained(path) or HfRopeConfig.from_pretrained(path),
    "auto": lambda config, path: config.save_pretrained(path) or AutoConfig.from_pretrained(path),
    "auto for_model": lambda config, path: AutoConfig.for_model(**config.to_dict()),
    "deepcopy": lambda config, path: copy.deepcopy(config),
    "pickle": lambda config, path: pickle.loads(pickle.dumps(config)),
}
OTHERS = {
    **{"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20},
    **{"hidden_act": "relu", "hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0, "classifier_dropout": 0.4},
    **{"max_position_embeddings": 33, "type_vocab_size": 0, "initializer_range": 1, "layer_norm_eps": 1e-5},
    **{"pad_token_id": None, "embedding_size": 8, "classifier_pooling": "mean", "tie_word_embeddings": False},
    **{"pooler_activation": "gelu", "attention_bias": False, "feed_forward_type": "gated", "mlp_bias": False},
    **{"scale_embedding": True},
}
BERT_BASE = {
    **{"vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    **{"intermediate_size": 3072, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "pad_token_id": 0},
    **{"attention_probs_dropout_prob": 0.1, "max_position_embeddings": 512, "type_vocab_size": 2},
    **{"initializer_range": 0.02, "layer_norm_eps": 1e-12, "embedding_size": 768, "tie_word_embeddings": True},
    **{"position_embedding_type": "rotary", "position_options": {"pairing": "interleaved", "rotary_value": False}},
    **{"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    **{"classifier_pooling": "cls", "classifier_dropout": None, "pooler_activation": "tanh"},
    **{"attention_bias": True, "feed_forward_type": "dense", "mlp_bias": True, "scale_embedding": False},
}


def test_defaults_are_bert_base_with_rotary_positions():
    config = HfRopeConfig()
    assert {key: getattr(config, key) for key in BERT_BASE} == BERT_BASE


@over(case=CASES, trip=ROUND_TRIPS)
def test_round_trip_changes_nothing(case, trip, tmp_path):
    config = tiny_config(case)
    back = ROUND_TRIPS[trip](config, tmp_path)
    assert type(back) is HfRopeConfig
    assert back.to_diff_dict() == config.to_diff_dict()  # all but the folder's name


@pytest.mark.parametrize("trip", ROUND_TRIPS)
def test_round_trip_keeps_values_other_than_the_defaults(trip, tmp_path):
    assert not [key for key, value in OTHERS.items() if getattr(HfRopeConfig(), key) == value]
    back = ROUND_TRIPS[trip](HfRopeConfig(**OTHERS), tmp_path)
    assert {key: getattr(back, key) for key in OTHERS} == OTHERS


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_file_holds_every_option_of_the_scheme(scheme, tmp_path):
    tiny_config(scheme).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["position_embedding_type"] == scheme
    assert saved["position_options"] == asdict(SCHEMES[scheme].Options())
    assert (saved["rope_parameters"] is not None) == SCHEMES[scheme].rotates


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if fields(SCHEMES[name].Options)])
def test_options_left_out_get_their_defaults(scheme):
    defaults = asdict(SCHEMES[scheme].Options())
    for key, value in defaults.items():
        assert tiny_config(scheme, position_options={key: value}).position_options == defaults


@pytest.mark.parametrize("case", CASES)
def test_the_callers_dictionaries_stay_as_they_were(case):
    config = tiny_config(case)
    given = {key: value for key, value in VARIANTS.get(case, {}).items() if isinstance(value, dict)}
    given.setdefault("position_options", config.position_options)
    if SCHEMES[config.position_embedding_type].rotates:
        given.setdefault("rope_parameters", {"rope_type": "linear", "factor": 2.0})
    saved, before = config.to_dict(), (copy.deepcopy(given), config.to_dict())
    built = tiny_config(case, **given)
    loaded = HfRopeConfig.from_dict(saved, num_labels=7, num_hidden_layers=1, **given)
    assert (given, saved) == before
    for options in (built.position_options, loaded.position_options):
        for value in options.values():
            if isinstance(value, list):
                value.append("mine")
        options["mine"] = 1
    assert (given, saved) == before


@pytest.mark.parametrize("build", [HfRopeConfig, HfRopeConfig.from_dict], ids=["keywords", "from_dict"])
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_the_callers_rotary_parameters_stay_as_they_were(key, build):
    given = {key: {"type": "linear", "factor": 2.0}}
    before = copy.deepcopy(given)
    config = build(**given) if build is HfRopeConfig else build(given)
    assert config.rope_parameters["rope_type"] == "linear"
    assert given == before


def test_embeddings_are_as_wide_as_the_encoder_unless_told():
    assert tiny_config("none").embedding_size == tiny_config("none").hidden_size
    assert tiny_config("none", embedding_size=8).embedding_size == 8


@pytest.mark.parametrize("case", CASES)
def test_a_valid_configuration_is_valid_again(case):
    config = tiny_config(case)
    config.validate()
    config.num_attention_heads = 5
    with pytest.raises(ValueError, match=r"is not a multiple of num_attention_heads=5"):
        config.validate()


@over(source=SCHEMES, target=SCHEMES)
def test_a_keyword_changes_the_scheme_for_training_from_scratch(source, target, tmp_path):
    tiny_config(source).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path, position_embedding_type=target)
    assert config.to_diff_dict() == tiny_config(target).to_diff_dict()
    if SCHEMES[source].rotates:
        model = AutoModel.from_config(config)
        assert model(token_ids(1, 5)).last_hidden_state.isfinite().all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_embeddings_are_scaled_as_the_scheme_says_unless_told(scheme, tmp_path):
    assert tiny_config(scheme).scale_embedding == SCHEMES[scheme].scale_embedding
    for told in (True, False):
        tiny_config(scheme, scale_embedding=told).save_pretrained(tmp_path)
        assert AutoConfig.from_pretrained(tmp_path).scale_embedding == told
        other = "learned" if scheme != "learned" else "rotary"
        assert not AutoConfig.from_pretrained(tmp_path, position_embedding_type=other).scale_embedding


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_model_saved_before_embeddings_were_scaled_is_not_scaled(scheme, tmp_path):
    """Its weights were trained so. A configuration that no model was saved with is a new model's."""
    tiny_model(scheme).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    del saved["scale_embedding"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert AutoConfig.from_pretrained(tmp_path).scale_embedding is False
    assert AutoModel.from_pretrained(tmp_path).config.scale_embedding is False
    del saved["architectures"]
    assert HfRopeConfig.from_dict(saved).scale_embedding == SCHEMES[scheme].scale_embedding


def test_the_old_name_absolute_is_learned(tmp_path):
    assert tiny_config("absolute").position_embedding_type == "learned"
    tiny_config("learned").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"learned"', '"absolute"'))
    for changes in ({}, {"position_embedding_type": "learned"}, {"position_embedding_type": "absolute"}):
        assert AutoConfig.from_pretrained(tmp_path, **changes).position_embedding_type == "learned"


YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 500.0, "partial_rotary_factor": 0.5, "beta_fast": 16}
OVERRIDES = {
    "theta": ({}, {"rope_theta": 7.0}, {"rope_theta": 7.0}),
    "theta keeps the type": (YARN, {"rope_theta": 7.0}, {**YARN, "rope_theta": 7.0}),
    "partial": (YARN, {"partial_rotary_factor": 1.0}, {**YARN, "partial_rotary_factor": 1.0}),
    "one value keeps the others": (YARN, {"rope_parameters": {"factor": 8.0}}, {**YARN, "factor": 8.0}),
    "another type keeps theta and size": (
        YARN,
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0}},
        {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0, "partial_rotary_factor": 0.5},
    ),
    "old name of the whole": (YARN, {"rope_scaling": {"type": "linear", "factor": 2.0}}, {"rope_type": "linear"}),
    "both": ({}, {"rope_parameters": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 7.0}, {"rope_theta": 7.0}),
    "None keeps all": (YARN, {"rope_parameters": None}, YARN),
}


@pytest.mark.parametrize(("saved", "changes", "expected"), OVERRIDES.values(), ids=OVERRIDES)
def test_rotary_parameters_can_be_changed_at_load(saved, changes, expected, tmp_path):
    HfRopeModel(tiny_config("rotary", rope_parameters=saved)).save_pretrained(tmp_path)
    for loaded in (
        AutoConfig.from_pretrained(tmp_path, **changes),
        AutoModel.from_pretrained(tmp_path, **changes).config,
    ):
        assert {key: loaded.rope_parameters[key] for key in expected} == expected
        assert loaded.rope_parameters.keys() >= {"rope_type", "rope_theta"}


def test_options_left_out_at_load_keep_their_saved_values(tmp_path):
    tiny_config("rotary", position_options={"pairing": "halves"}).save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path, position_options={"rotary_value": True})
    assert loaded.position_options == {"pairing": "halves", "rotary_value": True}


def test_other_keywords_at_load_are_taken_and_returned(tmp_path):
    tiny_config("rotary").save_pretrained(tmp_path)
    config, unused = AutoConfig.from_pretrained(
        tmp_path, hidden_dropout_prob=0.5, num_labels=7, foo=1, return_unused_kwargs=True
    )
    assert (config.hidden_dropout_prob, config.num_labels) == (0.5, 7)
    assert unused == {"foo": 1}


@pytest.mark.parametrize("rope_type", sorted({"default", *ROPE_INIT_FUNCTIONS} - {"proportional"}))
def test_rotary_parameters_of_every_type(rope_type, tmp_path):
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 8}
    needed = {
        "default": {},
        "longrope": {"factor": 2.0, **factors},
        "llama3": {"factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    }.get(rope_type, {"factor": 2.0})
    config = tiny_config("rotary", rope_parameters={"rope_type": rope_type, **needed})
    assert config.rope_parameters.items() >= {"rope_type": rope_type, "rope_theta": 10000.0, **needed}.items()
    config.save_pretrained(tmp_path)
    loaded = HfRopeModel(AutoConfig.from_pretrained(tmp_path))
    assert loaded.config.rope_parameters == config.rope_parameters
    assert loaded(token_ids(1, 12)).last_hidden_state.isfinite().all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_whole_numbers_are_taken_for_rates(scheme):
    config = tiny_config(scheme, hidden_dropout_prob=0, attention_probs_dropout_prob=1, classifier_dropout=0)
    assert HfRopeModel(config)


@over(old=["rotary", "deberta"], new=SCHEMES)
def test_an_update_from_a_string_is_the_configuration_built_with_it(old, new):
    config = HfRopeConfig(position_embedding_type=old)
    config.update_from_string(f"position_embedding_type={new},hidden_size=48,num_attention_heads=4,is_decoder=true")
    built = HfRopeConfig(position_embedding_type=new, hidden_size=48, num_attention_heads=4, is_decoder=True)
    assert config.to_dict() == built.to_dict()
    assert type(HfRopeModel(config).position) is SCHEMES[new]


@pytest.mark.parametrize("sizes", [{}, {"hidden_size": 32, "num_attention_heads": 4}, {"embedding_size": 32}])
def test_a_new_hidden_size_brings_no_projection_where_there_was_none(sizes, tmp_path):
    config = HfRopeConfig(**sizes)
    config.save_pretrained(tmp_path)
    expected = sizes.get("embedding_size", 96)
    assert AutoConfig.from_pretrained(tmp_path, hidden_size=96).embedding_size == expected
    assert AutoConfig.from_pretrained(tmp_path, hidden_size=96, embedding_size=8).embedding_size == 8
    config.update_from_string("hidden_size=96")
    assert config.embedding_size == expected
    config.update_from_string("hidden_size=48,embedding_size=24")
    assert config.embedding_size == 24


UPDATES = {
    "unknown scheme": ("position_embedding_type=rotery", ValueError, r"'rotery' is unknown; the nearest is 'rotary'"),
    "no pair": ("hidden_size", ValueError, r"'hidden_size' in 'vocab_size=7,hidden_size' is no pair: write key=value"),
    "unknown key": ("hiden_size=48", ValueError, r"'hiden_size=48' cannot be taken over: key hiden_size isn't"),
    "does not divide": ("hidden_size=50", ValueError, r"hidden_size=50 is not a multiple of num_attention_heads=12"),
    "no number": (
        "hidden_size=big",
        ValueError,
        r"^'hidden_size=big' cannot be taken over: invalid literal for int.*'big'\.$",
    ),
    "neither true nor false": (
        "is_decoder=maybe",
        ValueError,
        r"'is_decoder=maybe' cannot be taken over: can't derive",
    ),
    "a dictionary": ("position_options={}", TypeError, r"can only update int, float, bool or string values"),
}


@pytest.mark.parametrize(("text", "error", "sentence"), UPDATES.values(), ids=UPDATES)
def test_an_update_from_a_string_that_does_not_fit_changes_nothing(text, error, sentence):
    config = HfRopeConfig()
    with pytest.raises(error, match=sentence):
        config.update_from_string(f"vocab_size=7,{text}")
    assert config.to_dict() == HfRopeConfig().to_dict()

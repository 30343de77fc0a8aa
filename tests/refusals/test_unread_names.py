"""A name that nothing reads is not refused, since scripts pass what they like: one warning names it."""

import logging

import pytest
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, DataCollatorWithFlattening
from transformers.masking_utils import sdpa_mask

from heads import HEADS
from helpers import tiny_config
from hf_rope import SCHEMES

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


def test_what_a_collator_that_packs_gives_and_what_is_refused_elsewhere_are_known(caplog):
    batch = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)(
        [{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}]
    )
    batch.pop("labels")
    with caplog.at_level(logging.WARNING):
        HEADS["encoder"].build()(**batch, is_causal=False)
    assert "seq_idx" in batch
    assert not caplog.records


def test_an_argument_for_a_function_of_the_users_is_its_own_affair(caplog):
    AttentionInterface.register(
        "reads", lambda *args, read=None, **kwargs: AttentionInterface()["sdpa"](*args, **kwargs)
    )
    AttentionMaskInterface.register("reads", sdpa_mask)
    model = HEADS["encoder"].build(attn_implementation="reads")
    with caplog.at_level(logging.WARNING):
        model(**HEADS["encoder"].batch(), read=True)
    assert not caplog.records


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

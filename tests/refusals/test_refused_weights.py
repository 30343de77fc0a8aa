"""Weights that a configuration does not fit are refused when they are loaded; those that it fits load whole."""

import os

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM

from helpers import over, refused, tiny_config, tiny_model, token_ids
from hf_rope import SCHEMES, HfRopeForMaskedLM

IDS = token_ids(2, 7)


@over(source=SCHEMES, target=SCHEMES)
def test_weights_of_another_scheme(source, target, folders):
    folder = folders[source]
    ways = [
        lambda: AutoModelForMaskedLM.from_pretrained(folder, position_embedding_type=target),
        lambda: HfRopeForMaskedLM.from_pretrained(folder, config=tiny_config(target)),
        lambda: AutoModel.from_pretrained(folder, config=tiny_config(target)),
    ]
    for way in ways:
        if source == target:
            assert way().config.position_embedding_type == target
        else:
            names = (f"position_embedding_type='{source}'", f"cannot be used with '{target}'")
            refused(way, *names, "load them under their own scheme", "from_config")


OTHER_OPTIONS = {
    "tupe with a bias": ("tupe", {"relative_bias": True}, r"the checkpoint lacks position\.bias\.weight"),
    "shaw without values": (
        *("shaw", {"relative_values": False}),
        r"the checkpoint also has model\.layers\.0\.attention\.position\.relative_values",
    ),
    "deberta's own projections": (
        *("deberta", {"share_att_key": False}),
        r"lacks layers\.0\.attention\.position\.key_projection\.bias",
    ),
}


@pytest.mark.parametrize(("scheme", "changes", "sentence"), OTHER_OPTIONS.values(), ids=OTHER_OPTIONS)
def test_weights_of_other_options(scheme, changes, sentence, folders):
    with pytest.raises(ValueError, match=sentence):
        AutoModel.from_pretrained(folders[scheme], position_options=changes)


@pytest.mark.parametrize(("scheme", "length"), [("learned", 128), ("relative_key", 128), ("tupe", 32)])
def test_position_table_of_another_size(scheme, length, folders):
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModel.from_pretrained(folders[scheme], max_position_embeddings=length)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_truncated_weights(kept, folders, tmp_path):
    for name in ("config.json", "model.safetensors"):
        with open(os.path.join(folders["rotary"], name), "rb") as file:
            content = file.read()
        (tmp_path / name).write_bytes(content[: int(kept * len(content))] if name != "config.json" else content)
    with pytest.raises(SafetensorError, match=r"header|incomplete"):
        AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_file_without_any_weight_of_the_model_is_transformers_to_report(scheme, tmp_path):
    model = tiny_model(scheme)
    model.save_pretrained(tmp_path)
    save_file({"tensor": torch.ones(2)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    _, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert {*info["missing_keys"]} == {*model.state_dict()}


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

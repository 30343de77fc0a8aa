"""Checkpoints that came with code of their own convert as those of transformers' classes do, and none of it is run."""

import json

import pytest
import torch
import transformers

from hf_rope.convert import convert
from hf_rope.convert.checkpoint import read_tokenizer
from native_models import (
    MASKED,
    SOURCES,
    assert_equal,
    command,
    native,
    reconfigure,
    refused,
    rewrite,
    save_with_tokenizer,
)

if "gte" not in SOURCES:
    pytest.skip("transformers has GTE's class from 5.18 on", allow_module_level=True)

GONE = ("rope_parameters", "head_dim", "transformers_version")


def write(folder, settings) -> None:
    """A config.json that holds the sizes of a saved folder under other names."""
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in GONE} | settings(config)
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "gone/nowhere--code.Model"}}))


def beginning(folder, before: str, after: str) -> None:
    """Renames tensors by their beginning."""

    def change(tensors):
        for key in [key for key in tensors if key.startswith(before)]:
            tensors[after + key.removeprefix(before)] = tensors.pop(key)

    rewrite(folder, change)


def jina(config):
    first = {"architectures": [config["architectures"][0].replace("JinaEmbeddingsV3", "XLMRoberta")]}
    return {"model_type": "xlm-roberta", "position_embedding_type": "rotary", "rotary_emb_base": 20000.0, **first}


def gte(config):
    return {
        "model_type": "new",
        "architectures": [config["architectures"][0].replace("Gte", "New")],
        **{"position_embedding_type": "rope", "layer_norm_type": "layer_norm", "logn_attention_scale": False},
        **{"rope_theta": 500.0, "rope_scaling": {"type": "ntk", "factor": 8.0}, "pack_qkv": True},
    }


GPT2_NAMES = {
    **{"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"},
    **{
        "intermediate_size": "n_inner",
        "max_position_embeddings": "n_positions",
        "layer_norm_eps": "layer_norm_epsilon",
    },
    **{"hidden_dropout_prob": "resid_pdrop", "attention_probs_dropout_prob": "attn_pdrop"},
}
NOMIC = {
    **{"activation_function": "swiglu", "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0, "prenorm": False},
    **{"rotary_emb_interleaved": False, "rotary_emb_scale_base": None, "rotary_scaling_factor": None},
    **{"qkv_proj_bias": False, "mlp_fc1_bias": False, "mlp_fc2_bias": False, "use_flash_attn": True},
}


def write_nomic(folder, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    for ours, theirs in GPT2_NAMES.items():
        config[theirs] = config.pop(ours)
    config = {key: value for key, value in config.items() if key not in (*GONE, "hidden_act")} | NOMIC | changes
    (folder / "config.json").write_text(json.dumps(config))


def ntk(model, theta: float, factor: float) -> None:
    """Frequencies of NTK-aware scaling: (theta f)^(-2t/d) / f^(2/d)."""
    size = model.config.hidden_size // model.config.num_attention_heads
    model.base_model.rotary_emb.inv_freq = torch.tensor(
        [(theta * factor) ** (-2 * t / size) / factor ** (2 / size) for t in range(size // 2)]
    )


@pytest.mark.parametrize("head", ["Model", MASKED, "ForSequenceClassification", "ForTokenClassification"])
def test_gte_of_its_own_code(head, tmp_path):
    theirs = native("gte", head)
    theirs.save_pretrained(tmp_path)
    write(tmp_path, gte)
    beginning(tmp_path, "" if head == "Model" else "gte.", "new.")
    ntk(theirs, 500.0, 8.0)
    ours, report = convert(tmp_path, return_report=True)
    assert not report.dropped
    assert "Settings that nothing reads: pack_qkv." in report.notes
    assert_equal(theirs, ours, head=head)


def test_a_model_object_of_such_code_is_sent_to_its_folder():
    class NewConfig(transformers.PreTrainedConfig):
        model_type = "new"

    class NewModel(transformers.PreTrainedModel):
        pass

    with pytest.raises(ValueError, match="NewModel is a class of a checkpoint's own code: give its folder"):
        convert(NewModel(NewConfig()))


@pytest.mark.parametrize("head", ["Model", MASKED])
@pytest.mark.parametrize("activation", ["swiglu", "geglu"])
def test_nomic_of_its_own_code(activation, head, tmp_path):
    theirs = native("nomic", head, intermediate_size=256, hidden_act={"swiglu": "silu", "geglu": "gelu"}[activation])
    if head == MASKED:
        with torch.no_grad():
            theirs.cls.predictions.transform.dense.bias.zero_(), theirs.cls.predictions.decoder.bias.zero_()
    theirs.save_pretrained(tmp_path)
    inner = {"n_inner": 250, "vocab_size": 98, "pad_vocab_size_multiple": 3}  # as its code, both are rounded up
    architecture = {"Model": "NomicBertModel", MASKED: "NomicBertForPreTraining"}[head]
    write_nomic(tmp_path, **inner, activation_function=activation, architectures=[architecture])
    beginning(tmp_path, "nomic_bert.", "bert.")
    if head == MASKED:
        rewrite(tmp_path, lambda tensors: [tensors.pop(f"cls.predictions.{x}bias") for x in ("", "transform.dense.")])
    ours, report = convert(tmp_path, return_report=True)
    assert not report.dropped
    assert len(report.new) == (2 if head == MASKED else 0)
    assert_equal(theirs, ours, head=head)


@pytest.mark.parametrize("head", ["Model", MASKED, "ForSequenceClassification"])
def test_jina_of_its_own_code_with_adapters(head, tmp_path):
    theirs = native("jina-v3", head)
    theirs.save_pretrained(tmp_path)
    write(tmp_path, jina)

    def adapt(tensors):
        for key in [key for key in tensors if key.endswith(("Wqkv.weight", "fc1.weight", "embeddings.weight"))]:
            place = key.removesuffix(".weight") + ".parametrizations.weight"
            tensors[f"{place}.original"] = tensors.pop(key)
            tensors[f"{place}.0.lora_A"], tensors[f"{place}.0.lora_B"] = torch.randn(5, 4, 32), torch.randn(5, 32, 4)

    rewrite(tmp_path, adapt)
    ours, report = convert(tmp_path, return_report=True)
    assert len(report.dropped) == 2 * 6
    assert {*report.dropped.values()} == {"adapters of tasks: outputs are those without a task"}
    assert_equal(theirs, ours, head=head)


@pytest.mark.parametrize("name", ["jina-v3", "gte"])
def test_check_loads_transformers_class_with_the_settings_that_were_read(name, tmp_path):
    native(name, MASKED).save_pretrained(tmp_path / "source")
    write(tmp_path / "source", {"jina-v3": jina, "gte": gte}[name])
    result = command(tmp_path / "source", tmp_path / "target", "--check")
    assert result.exit_code == 0, result.output
    assert "greatest difference from the source's own class" in result.output


def test_check_refuses_where_transformers_class_does_not_find_the_tensors(tmp_path):
    native("nomic", MASKED, intermediate_size=256).save_pretrained(tmp_path / "source")
    write_nomic(tmp_path / "source")
    beginning(tmp_path / "source", "nomic_bert.", "bert.")
    result = command(tmp_path / "source", tmp_path / "target", "--check")
    refused(result, tmp_path, "NomicBertForMaskedLM of transformers")


def test_no_code_is_run_for_the_tokenizer(tmp_path, monkeypatch):
    save_with_tokenizer(native("gte"), tmp_path)
    write(tmp_path, gte)
    beginning(tmp_path, "", "new.")
    reconfigure(tmp_path, auto_map={"AutoConfig": "code.NewConfig"}, architectures=["NewModel"])
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda *args: "y")
    assert read_tokenizer(str(tmp_path)) is not None
    assert not (tmp_path / "ran").exists()


def test_gte_of_its_own_code_is_known_by_its_settings_too(tmp_path):
    """Published under the name of transformers' class, by people whose code is another."""
    theirs = native("gte")
    theirs.save_pretrained(tmp_path)
    write(tmp_path, lambda config: {**gte(config), "model_type": "gte"})
    ntk(theirs, 500.0, 8.0)
    assert_equal(theirs, convert(tmp_path))
    reconfigure(tmp_path, logn_attention_scale=True)
    with pytest.raises(ValueError, match="logn_attention_scale=True"):
        convert(tmp_path)


REFUSALS = {
    "prenorm": ("nomic", {"prenorm": True}, "prenorm=True.*transformers' NomicBERT, and hf_rope's, has False"),
    "part of a head": ("nomic", {"rotary_emb_fraction": 0.5}, "rotary_emb_fraction=0.5.*has 1.0"),
    "no rotation": ("nomic", {"rotary_emb_fraction": None}, "rotary_emb_fraction=None"),
    "interleaved": ("nomic", {"rotary_emb_interleaved": True}, "rotary_emb_interleaved=True"),
    "biases": ("nomic", {"qkv_proj_bias": True}, "qkv_proj_bias=True"),
    "no gate": ("nomic", {"activation_function": "gelu"}, "'gelu'.*only swiglu and geglu are known"),
    "follows the length": ("nomic", {"rotary_scaling_factor": 2.0}, "rotary_scaling_factor=2.0.*set it to null"),
    "another scaling": ("gte", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "only the type 'ntk'"),
    "mixed": ("gte", {"rope_scaling": {"type": "ntk", "factor": 2.0, "mixed_b": 1.0}}, "without mixed_b"),
    "absolute": ("gte", {"position_embedding_type": "absolute"}, "'absolute'.*transformers' GTE"),
    "rms norm": ("gte", {"layer_norm_type": "rms_norm"}, "layer_norm_type='rms_norm'"),
    "scaled by length": ("gte", {"logn_attention_scale": True}, "logn_attention_scale=True"),
    "longer jina": ("jina-v3", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "follow the longest"),
}


@pytest.mark.parametrize("row", REFUSALS)
def test_a_setting_that_the_class_does_not_compute_is_refused(row, tmp_path):
    name, changes, sentence = REFUSALS[row]
    native(name).save_pretrained(tmp_path)
    if name == "nomic":
        write_nomic(tmp_path, **changes)
    elif name == "gte":
        write(tmp_path, lambda config: {**gte(config), **changes})
    else:
        reconfigure(tmp_path, **changes)
    with pytest.raises(ValueError, match=sentence) as error:
        convert(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["jina-v3", "nomic", "gte"])
def test_an_unknown_tensor_of_such_code_is_refused_by_its_name(name, tmp_path):
    native(name).save_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.update({"encoder.layers.0.mlp.experts.w1": torch.zeros(3)}))
    with pytest.raises(
        ValueError, match=r"the tensor encoder\.layers\.0\.mlp\.experts\.w1, which hf_rope does not know"
    ):
        convert(tmp_path)

"""What cannot be converted exactly is refused in one sentence."""

import math

import pytest
import torch

from hf_rope.convert import convert
from native_models import MASKED, cut, native, reconfigure, rewrite


def without(*keys):
    return lambda folder: rewrite(folder, lambda tensors: [tensors.pop(key) for key in keys])


def extra(key):
    return lambda folder: rewrite(folder, lambda tensors: tensors.update({key: torch.zeros(3)}))


def missing(file):
    return lambda folder: (folder / file).unlink()


def as_saved(folder):
    pass


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def without_shard(folder):
    model = native("bert", MASKED)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    next(folder.glob("model-00002*")).unlink()


def index(text):
    """Shards whose index holds another text."""

    def change(folder):
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(text)

    return change


def number(key, value):
    return lambda folder: rewrite(folder, lambda tensors: tensors[key].view(-1)[3].fill_(value))


def setting(**changes):
    return lambda folder: reconfigure(folder, **changes)


BERT, ROBERTA, ALBERT = ((name, MASKED) for name in ("bert", "roberta", "albert"))
DEBERTA, DEBERTA_V2 = ((name, MASKED) for name in ("deberta", "deberta-v2"))
JINA, NOMIC = ("jina-v3", MASKED), "encoder.layers.1.mlp"
PARTIAL = {"rope_type": "default", "rope_theta": 20000.0, "partial_rotary_factor": 0.5}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 20000.0, "factor": 2.0}
QUERY = "encoder.layer.1.attention.self.query.weight"
BIAS = "encoder.layer.0.output.dense.bias"
REFUSALS = {
    "missing": (BERT, without(f"bert.{QUERY}"), rf"lacks the tensor {QUERY}: load"),
    "missing head": (BERT, without("cls.predictions.transform.dense.bias"), r"cls\.predictions\.transform\.dense\.b"),
    "unknown": (BERT, extra("bert.encoder.gate.weight"), r"tensor encoder\.gate\.weight, which hf_rope does not"),
    "more layers": (BERT, setting(num_hidden_layers=1), r"layer\.1\..*has no place for it: check the number of l"),
    "shape": (BERT, setting(vocab_size=98), r"word_embeddings\.weight has shape \(99, 32\).* it is \(98, 32\)"),
    "old positions": (BERT, setting(position_embedding_type="relative_key"), r"lacks the tensor .*distance_embedding"),
    "odd positions": (BERT, setting(position_embedding_type="rope"), r"position_embedding_type='rope'"),
    "decoder": (BERT, setting(is_decoder=True), r"HfRopeForMaskedLM with is_decoder=True sees no token after its own"),
    "another decoder": (
        ROBERTA,
        setting(is_decoder=True),
        r"is_decoder=True, which cannot be converted: only decoders of BERT and RoFormer are",
    ),
    "cross attention": (
        BERT,
        setting(add_cross_attention=True),
        r"add_cross_attention=True is for decoders, and is_decoder is False",
    ),
    "activation": (BERT, setting(hidden_act="swoosh"), r"hidden_act='swoosh' is unknown"),
    "cut file": (BERT, cut, r"model\.safetensors is not a complete safetensors file \(.*\): download it again"),
    "pickle": (BERT, pickled, r"has pytorch_model\.bin, a pickle, and no model\.safetensors: save it again"),
    "no weights": (BERT, missing("model.safetensors"), r"has no model\.safetensors: s"),
    "no shard": (BERT, without_shard, r"has no model-00002-of-.*safetensors, which model.safetensors.index.json"),
    "cut index": (BERT, index('{"weight_map"'), r"index\.json is no JSON \(.*\)"),
    "index of another form": (BERT, index("[]"), r"index\.json holds \[\]; it must hold a JSON object"),
    "index without a map": (BERT, index('{"weight_map": null}'), r"index\.json is not an index of shards: download"),
    "index with a list": (BERT, index('{"weight_map": []}'), r"index\.json is not an index of shards"),
    "index of lists": (BERT, index('{"weight_map": {"a": ["b"]}}'), r"index\.json is not an index of shards"),
    "a number that is none": (
        BERT,
        number(f"bert.{BIAS}", math.nan),
        rf"{BIAS} holds numbers that are NaN or infinite",
    ),
    "an infinite number": (
        BERT,
        number(f"bert.{QUERY}", -math.inf),
        rf"{QUERY} holds numbers that are NaN or infinite",
    ),
    "no config": (BERT, missing("config.json"), r"has no config\.json that can be read"),
    "wrong type": (
        BERT,
        setting(hidden_size="32"),
        r"config\.json has a setting .* wrong kind .*'hidden_size' expected int",
    ),
    "labels in a list": (
        BERT,
        setting(id2label=["a"]),
        r"config\.json has a setting .* wrong kind \(AttributeError: 'list'",
    ),
    "type in a list": (
        BERT,
        setting(model_type=["bert"]),
        r"config\.json has a setting .* wrong kind \(TypeError: unhash",
    ),
    "no dtype": (
        BERT,
        setting(dtype="float33"),
        r"config\.json has a setting .* wrong kind \(AttributeError: .*float33",
    ),
    "class that is none": (
        BERT,
        setting(architectures=[5]),
        r"config\.json has architectures=\[5\]; it must be a list",
    ),
    "class without a list": (
        BERT,
        setting(architectures="BertModel"),
        r"architectures='BertModel'; it must be a list of n",
    ),
    "setting that only DeBERTa reads": (
        DEBERTA_V2,
        setting(norm_rel_ebd=5),
        r"configuration of .* has a setting .* 'int'",
    ),
    "no heads": (
        DEBERTA,
        setting(num_attention_heads=0),
        r"num_attention_heads=0, .*: it must be from 1 to hidden_size",
    ),
    "heads that do not divide": (DEBERTA, setting(num_attention_heads=5), r"not a multiple of num_attention_heads=5"),
    "no groups": (
        ALBERT,
        setting(num_hidden_groups=0),
        r"num_hidden_groups=0, .*: it must be from 1 to num_hidden_lay",
    ),
    "Jina without heads": (JINA, setting(num_attention_heads=0), r"num_attention_heads=0.* from 1 to hidden_size"),
    "no type": (BERT, setting(model_type=None), r"has no model_type: add the one that is right of bert, roberta"),
    "other type": (BERT, setting(model_type="gpt2"), r"model_type='gpt2', which has no conversion; known: bert,"),
    "pre-norm": (
        BERT,
        setting(model_type="modernbert"),
        r"'modernbert', which cannot be converted: its norms",
    ),
    "no half of a gate": (
        ("nomic", "Model"),
        without(f"{NOMIC}.fc11.weight"),
        r"lacks the tensor layers\.1\.mlp\.up",
    ),
    "no gate": (("nomic", "Model"), without(f"{NOMIC}.fc11.weight", f"{NOMIC}.fc12.weight"), r"lacks .*gate_up_proj"),
    "odd head size": (("nomic", "Model"), setting(head_dim=16), r"head_dim=16.*hidden_size / num_attention_heads"),
    "part of each head": (JINA, setting(rope_parameters=PARTIAL), r"rope_parameters=.*turn whole heads"),
    "angles by the batch": (JINA, setting(rope_parameters=DYNAMIC), r"rope_parameters=.*longest sequence of the batch"),
    "fixed gelu of Jina": (JINA, setting(hidden_act="relu"), r"hidden_act='relu'.*head has gelu whatever"),
    "other head": (BERT, setting(architectures=["BertForX"]), r"BertForX cannot be converted; of this family: BertM"),
    "next sentence": (("bert", "ForNextSentencePrediction"), as_saved, r"no next-sentence head: convert BertModel"),
    "generation in both directions": (
        ("bert", "LMHeadModel"),
        as_saved,
        r"is_decoder=False sees the tokens that it is to pred",
    ),
    "generation": (
        ("roberta", "ForCausalLM"),
        as_saved,
        r"only decoders of BERT and RoFormer are: convert the encoder alone",
    ),
    "discriminator": (
        ("electra", "ForPreTraining"),
        as_saved,
        r"no discriminator head: convert ElectraModel\.from_pretrained",
    ),
    "summary": (
        ("electra", "ForMultipleChoice"),
        setting(summary_type="mean"),
        r"summary_type='mean'.*pools the first token",
    ),
    "no projection": (
        ("electra", "ForMultipleChoice"),
        setting(summary_use_proj=False),
        r"summary_use_proj=False.*hf_rope's pooler has a dense layer",
    ),
    "last token": (
        ("roformer-odd", "ForMultipleChoice"),
        as_saved,
        r"no summary_type.*pools the last token.*summary_type='first'",
    ),
    "fixed gelu": (ROBERTA, setting(hidden_act="relu"), r"hidden_act='relu'.*head has gelu whatever"),
    "no padding": (ROBERTA, setting(pad_token_id=-1), r"pad_token_id is -1; it must be"),
    "equal sizes": (
        ALBERT,
        setting(embedding_size=32),
        r"embedding_size=32.*equal to hidden_size, it is still",
    ),
    "buckets": (("mpnet", MASKED), setting(relative_attention_num_buckets=16), r"relative_attention_num_buckets=16"),
    "convolution": (DEBERTA_V2, setting(conv_kernel_size=3), r"conv_kernel_size=3.*no convolution layer"),
    "head size": (DEBERTA_V2, setting(attention_head_size=4), r"attention_head_size=4.*hidden_size / num_att"),
    "early projection": (DEBERTA_V2, setting(embedding_size=16), r"embedding_size=16.*before the norm"),
    "position to position": (DEBERTA_V2, setting(pos_att_type=["p2p"]), r"'pos_att_type'\] is \['p2p'\]"),
    "talking heads": (DEBERTA, setting(talking_head=True), r"talking_head=True.*does not mix"),
    "terms without": (DEBERTA, setting(relative_attention=False), r"relative_attention=False, which cannot"),
    "no biases": (("roformer", MASKED), without(f"roformer.{BIAS}"), r"lacks .*layer\.0\.output\.de"),
    "rms norm": (("roformer", MASKED), setting(norm_type="rms_norm"), r"norm_type='rms_norm'.*RoFormer-V2"),
}
"""The source's name and head, what is done to its folder, the sentence."""


@pytest.mark.parametrize("row", REFUSALS)
def test_what_cannot_be_exact_is_refused(row, tmp_path):
    source, change, sentence = REFUSALS[row]
    native(*source).save_pretrained(tmp_path)
    change(tmp_path)
    with pytest.raises(ValueError, match=sentence) as error:
        convert(tmp_path)
    assert "\n" not in str(error.value)


def test_an_architecture_that_this_transformers_does_not_have_is_named(tmp_path, monkeypatch):
    native("bert").save_pretrained(tmp_path)
    reconfigure(tmp_path, model_type="nomic_bert")
    monkeypatch.setattr("hf_rope.convert.checkpoint.CONFIG_MAPPING", {"bert": None})
    with pytest.raises(ValueError, match=r"'nomic_bert', which transformers 5\..* does not have: install a newer one"):
        convert(tmp_path)


@pytest.mark.parametrize("source", [3, None, torch.nn.Linear(2, 2)])
def test_sources_of_another_kind_are_refused(source):
    with pytest.raises(TypeError, match="it must be a model, a folder or a name on the Hub"):
        convert(source)


@pytest.mark.parametrize(
    ("given", "error", "sentence"),
    [
        (("rotery",), ValueError, "'rotery' is unknown; the nearest is 'rotary'"),
        (("",), ValueError, "'' is unknown; the nearest is"),
        ((5,), TypeError, "position_embedding_type is 5; it must be a str, or left out for the source's own."),
        (("rotary", "x"), TypeError, "position_options is 'x'; it must be a dict, or left out for the source's own."),
        ((None, [1]), TypeError, "position_options is [1]; it must be a dict, or left out for the source's own."),
    ],
)
def test_a_scheme_that_is_none_is_refused(given, error, sentence):
    with pytest.raises(error) as caught:
        convert(native("bert"), *given)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)

"""A folder converts as its model does, shards, old formats and the files of sentence-transformers included."""

import copy
import json
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer import modules

import hf_rope
from helpers import over, tiny_model
from hf_rope.convert import checkpoint, convert, to_native
from native_models import (
    FAMILIES,
    MASKED,
    SIZES,
    SOURCES,
    assert_equal,
    command,
    native,
    reconfigure,
    refused,
    rewrite,
    save_with_tokenizer,
    write_old_bert,
)


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


@pytest.mark.parametrize("shards", ["stale", "removed"])
def test_whole_weights_are_read_before_shards(shards, tmp_path):
    """As transformers does, which removes the shards of before, and not their index, where it saves in one file."""
    theirs = native("bert", MASKED)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    with torch.no_grad():
        theirs.get_input_embeddings().weight += 1
    theirs.save_pretrained(tmp_path / "one")
    shutil.move(tmp_path / "one" / "model.safetensors", tmp_path)
    if shards == "removed":
        for path in tmp_path.glob("model-*"):
            path.unlink()
    assert_equal(transformers.BertForMaskedLM.from_pretrained(tmp_path), convert(tmp_path))


@over(name=FAMILIES, quick=["bert"])
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
            model, report = convert(tmp_path, return_report=True)
            after = model.state_dict()
            changed = any(not torch.equal(after[key], before[key]) for key in before)
            assert changed or any(key.endswith(name) for name in report.dropped), key
        rewrite(tmp_path, lambda tensors, key=key: tensors[key].sub_(1.0))


def test_a_decoder_that_differs_from_the_words_stays_untied(tmp_path):
    theirs = native("bert", MASKED)
    theirs.save_pretrained(tmp_path)
    words = theirs.get_input_embeddings().weight.detach()
    rewrite(tmp_path, lambda tensors: tensors.update({"cls.predictions.decoder.weight": words + 1}))
    model, report = convert(tmp_path, return_report=True)
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


def test_two_dtypes_are_read_into_one_that_holds_both():
    tensors = {str(dtype): torch.ones(1, dtype=dtype) for dtype in (torch.bfloat16, torch.int64, torch.float16)}
    assert checkpoint.widest(tensors) == torch.float32


def test_an_encoder_that_calls_itself_a_masked_lm_is_an_encoder(tmp_path):
    theirs = native("mpnet")
    theirs.save_pretrained(tmp_path)
    reconfigure(tmp_path, architectures=["MPNetForMaskedLM"], gradient_checkpointing=False)
    model, report = convert(tmp_path, return_report=True)
    assert any("holds an encoder alone" in note for note in report.notes)
    assert "Settings that nothing reads: gradient_checkpointing." in report.notes
    assert_equal(theirs, model)


@pytest.mark.parametrize("kind", ["relative_key", "relative_key_query"])
def test_old_bert_with_relative_keys_lands_where_it_should(kind, tmp_path):
    expected = tiny_model(kind, hf_rope.HfRopeForMaskedLM)
    write_old_bert(tmp_path, expected, kind)
    model, report = convert(tmp_path, return_report=True)
    assert model.config.position_embedding_type == kind
    state = model.state_dict()
    for key, tensor in expected.state_dict().items():
        assert torch.equal(state[key], tensor), key
    assert_equal(expected, model, limit=0)
    assert set(report.dropped) == {
        *("embeddings.position_ids", "embeddings.position_embeddings.weight", "pooler.dense.weight"),
        *("pooler.dense.bias", "cls.seq_relationship.weight", "cls.seq_relationship.bias"),
    }


@pytest.fixture
def source(tmp_path):
    return save_with_tokenizer(native("bert", MASKED), tmp_path / "source")


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


def spoil(file, text):
    return lambda folder: (folder / file).write_text(text)


def cut_tokenizer(folder):
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text[: len(text) // 2])


def without_vocabulary(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").unlink()


def with_one_of_another_class(folder):
    without_vocabulary(folder)
    (folder / "spiece.model").touch()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (cut_tokenizer, "source/tokenizer.json is no JSON"),
        (spoil("tokenizer.json", "[]"), "source/tokenizer.json holds []; it must hold a JSON object"),
        (
            spoil("tokenizer.json", "{}"),
            "cannot be read from tokenizer.json, tokenizer_config.json, vocab.txt (KeyError",
        ),
        (
            spoil("tokenizer.json", '{"added_tokens": []}'),
            "cannot be read from tokenizer.json, tokenizer_config.json, ",
        ),
        (spoil("tokenizer_config.json", "{"), "source/tokenizer_config.json is no JSON"),
        (without_vocabulary, "has a tokenizer without a vocabulary, in tokenizer_config.json: add the file"),
        (with_one_of_another_class, "without a vocabulary, in tokenizer_config.json, spiece.model: add the file"),
    ],
)
def test_a_tokenizer_that_is_damaged_is_refused(change, sentence, source, tmp_path):
    change(source)
    refused(command(source, tmp_path / "target"), tmp_path, sentence)


@pytest.mark.parametrize("kind", ["ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer"])
def test_tokenizers_of_bytes_need_no_vocabulary(kind, tmp_path):
    tokenizer = getattr(transformers, kind)()
    native("bert", MASKED).save_pretrained(tmp_path / "source")
    tokenizer.save_pretrained(tmp_path / "source")
    assert {path.name for path in (tmp_path / "source").glob("*token*")} <= {
        *("tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"),
    }
    assert command(tmp_path / "source", tmp_path / "target").exit_code == 0
    found = transformers.AutoTokenizer.from_pretrained(tmp_path / "target")
    assert found("a short one").input_ids == tokenizer("a short one").input_ids


@pytest.mark.parametrize("to", ["same scheme", "another scheme", "native"])
@pytest.mark.parametrize("given", ["folder", "model"])
@pytest.mark.parametrize(("name", "head"), [("bert", "LMHeadModel"), ("roformer", "ForCausalLM")])
def test_a_decoder_generates_as_it_was_set_to(name, head, given, to, tmp_path):
    theirs = native(name, head, is_decoder=True)
    theirs.generation_config.update(max_new_tokens=7, repetition_penalty=1.3)
    theirs.save_pretrained(tmp_path)
    model = convert(tmp_path if given == "folder" else theirs, "alibi" if to == "another scheme" else None)
    model = to_native(model) if to == "native" else model
    assert model.generation_config is not theirs.generation_config
    model.save_pretrained(tmp_path / "again")
    for found in (model, transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again")):
        assert (found.generation_config.max_new_tokens, found.generation_config.repetition_penalty) == (7, 1.3)
    ids = torch.tensor([[5, 6, 7]])
    if to != "another scheme":
        assert torch.equal(model.generate(ids), theirs.generate(ids))


def test_a_decoder_that_does_not_say_how_it_generates_has_the_defaults(tmp_path):
    native("bert", "LMHeadModel", is_decoder=True).save_pretrained(tmp_path)
    expected = convert(tmp_path).generation_config
    (tmp_path / "generation_config.json").unlink()
    assert convert(tmp_path).generation_config == expected
    (tmp_path / "generation_config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"generation_config\.json has a setting .* of a wrong kind"):
        convert(tmp_path)


POOLERS = {"electra": "sequence_summary.summary", "mpnet": "mpnet.pooler.dense"}


@pytest.mark.parametrize("name", [name for name in FAMILIES if name in ("roberta", "electra", "mpnet", "jina-v3")])
def test_a_classifier_is_read_and_not_the_pooler_that_pretraining_left_beside_it(name, tmp_path):
    native(name, "ForSequenceClassification").save_pretrained(tmp_path)
    pooler = POOLERS.get(name, "roberta.pooler.dense")
    left = {f"{pooler}.weight": torch.randn(32, 32), f"{pooler}.bias": torch.randn(32)}
    rewrite(tmp_path, lambda tensors: tensors.update(left))
    theirs = getattr(transformers, f"{SOURCES[name][0]}ForSequenceClassification").from_pretrained(tmp_path)
    ours, report = convert(tmp_path, return_report=True)
    assert_equal(theirs, ours)
    assert [why for why in report.dropped.values() if "classifier.dense" in why] == [
        f"not read where there is a classifier.dense.{leaf}" for leaf in ("bias", "weight")
    ]


STRAY = {
    **{"unpad_inputs": "true", "scale_embedding": True, "attention_type": "original_full", "return_dict": False},
    **{"num_features": 8, "sparse_prediction": True, "feature_map": "favor"},
}
"""Keys of other people's code, which HfRopeConfig has too and the native classes do not read."""


@pytest.mark.parametrize("name", FAMILIES)
def test_keys_that_the_native_class_does_not_read_are_not_read_here(name, tmp_path):
    theirs = native(name)
    theirs.save_pretrained(tmp_path)
    stray = STRAY if name not in ("mpnet", "roformer-summary") else {**STRAY, "classifier_dropout": 0.7}
    reconfigure(tmp_path, **stray)
    ours = convert(tmp_path)
    assert ours.config.to_dict() == convert(theirs).config.to_dict()
    assert_equal(theirs, ours)


def test_check_and_export_take_a_source_that_returns_tuples(source, tmp_path):
    reconfigure(source, return_dict=False)
    for name, target in (("convert", "target"), ("export", "graph")):
        result = command(source, tmp_path / target, "--check", name=name)
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize("removed", [(), ("config.json", "model.safetensors")], ids=["beside weights", "alone"])
def test_an_adapter_is_refused(removed, source, tmp_path):
    (source / "adapter_config.json").write_text("{}")
    for name in removed:
        (source / name).unlink()
    refused(command(source, tmp_path / "target"), tmp_path, "holds an adapter of PEFT (adapter_config.json)")


@pytest.mark.parametrize("offline", [False, True])
def test_a_hub_that_cannot_be_reached_is_no_file_that_is_not_there(offline, monkeypatch):
    monkeypatch.setattr(checkpoint.constants, "HF_HUB_OFFLINE", offline)
    asked = {}

    def fail(name, file, **settings):
        asked.update(settings)
        raise OSError("503 for it\nand more")

    monkeypatch.setattr(checkpoint, "cached_file", fail)
    with pytest.raises(ValueError, match=r"^modules\.json of me/model cannot be read: 503 for it$"):
        checkpoint.find("me/model", "modules.json")
    assert asked["_raise_exceptions_for_connection_errors"] is not offline


# Folders of sentence-transformers.

IDENTITY = "torch.nn.modules.linear.Identity"


@pytest.mark.parametrize("to", ["converted", "back"])
@pytest.mark.parametrize(
    "said", [{"sbert_ce_default_activation_function": IDENTITY}, {"sentence_transformers": {"activation_fn": IDENTITY}}]
)
def test_a_cross_encoder_keeps_its_activation(said, to, source, tmp_path):
    theirs = native("bert", "ForSequenceClassification", num_labels=1)
    theirs.save_pretrained(source)
    reconfigure(source, **said)
    folder, pairs = tmp_path / "target", [("a short one", "rotary keys"), ("keys", "turn and keys")]
    expected = CrossEncoder(str(source), device="cpu").predict(pairs)
    result = command(source, folder)
    assert result.exit_code == 0, result.output
    assert "nothing reads" not in result.output
    if to == "back":
        folder = tmp_path / "again"
        assert command(tmp_path / "target", folder, name="to-native").exit_code == 0
    found = CrossEncoder(str(folder), device="cpu").predict(pairs)
    assert found == pytest.approx(expected, abs=1e-5)


TEXTS = ["a rotary one turn", "keys", "short and short and short keys . a one"]
EMBED = """
import sys
sys.modules["hf_rope"] = None  # makes it impossible to import
import json, torch
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(sys.argv[1], trust_remote_code=True, device="cpu")
torch.save(model.encode(json.loads(sys.argv[2]), convert_to_tensor=True, prompt_name="query"), sys.argv[3])
"""


MODERN = [name for name in ("jina-v3", "nomic", "gte") if name in SOURCES]


@pytest.fixture
def sentences(source, request):
    """A SentenceTransformer with every kind of file beside its encoder: a length, a prompt, modules with weights."""
    encoder = source.parent / "encoder"
    native(request.param).save_pretrained(encoder)
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


@pytest.mark.full
@pytest.mark.parametrize("sentences", ["bert", *MODERN], indirect=True)
def test_a_sentence_transformer_gives_the_same_embeddings(source, sentences, tmp_path):
    result = command(source, tmp_path / "target", "--check")
    assert result.exit_code == 0, result.output
    assert "2_Dense/model.safetensors" in result.output
    found = embed(tmp_path / "target")
    assert found.shape == (3, 8)
    torch.testing.assert_close(found, sentences, rtol=0, atol=1e-6)


@pytest.mark.full
@pytest.mark.parametrize("sentences", ["bert", *MODERN], indirect=True)
def test_a_sentence_transformer_goes_back_with_its_files(source, sentences, tmp_path):
    before = json.loads((source / "config.json").read_text())["model_type"]
    assert command(source, tmp_path / "ours").exit_code == 0
    result = command(tmp_path / "ours", tmp_path / "target", "--check", name="to-native")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "target" / "config.json").read_text())["model_type"] == before
    torch.testing.assert_close(embed(tmp_path / "target"), sentences, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[", "modules.json is no JSON"),
        ("{}", "is not a list of modules"),
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


@pytest.fixture
def custom(source, sentences):
    """The folder of `sentences`, whose encoder is loaded by code beside it; its list of modules as it was."""
    before = json.loads((source / "modules.json").read_text())
    modules = copy.deepcopy(before)
    modules[0] |= {"type": "custom_st.Reader", "kwargs": ["task"]}
    (source / "modules.json").write_text(json.dumps(modules))
    code = "from sentence_transformers.models import Normalize, Transformer\n\n\nclass Reader(Transformer):\n    pass\n"
    (source / "custom_st.py").write_text(code)
    return before


@pytest.mark.parametrize("sentences", ["bert"], indirect=True)
def test_an_encoder_with_code_beside_it_is_loaded_by_sentence_transformers(source, sentences, custom, tmp_path):
    result = command(source, tmp_path / "target")
    assert result.exit_code == 0, result.output
    assert "sentence_transformers.models.Transformer in the place of the source's own custom_st.Reader" in result.output
    custom[0]["type"] = "sentence_transformers.models.Transformer"
    assert json.loads((tmp_path / "target" / "modules.json").read_text()) == custom
    model = SentenceTransformer(str(tmp_path / "target"), device="cpu")
    found = model.encode(TEXTS, convert_to_tensor=True, prompt_name="query")
    torch.testing.assert_close(found, sentences, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sentences", ["bert"], indirect=True)
def test_another_module_with_code_beside_it_is_refused(source, custom, tmp_path):
    custom[3]["type"] = "custom_st.Normalize"
    (source / "modules.json").write_text(json.dumps(custom))
    refused(command(source, tmp_path / "target"), tmp_path, "has the module custom_st.Normalize, whose code in")
    custom[3]["type"] = "a_package.Normalize"
    (source / "modules.json").write_text(json.dumps(custom))
    assert command(source, tmp_path / "target").exit_code == 0
    assert json.loads((tmp_path / "target" / "modules.json").read_text()) == custom

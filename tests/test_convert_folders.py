"""A folder converts as its model does, shards, old formats and the files of sentence-transformers included."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules

import hf_rope
from helpers import over, tiny_model
from hf_rope.convert import convert
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

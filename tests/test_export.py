"""`hf-rope export`: a folder that ONNX Runtime computes as the model does, or nothing."""

import itertools
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules

import hf_rope
from heads import HEADS
from helpers import CASES, FEW, tiny_model, token_ids
from hf_rope.convert.check import difference, equal
from hf_rope.export import export, to_onnx
from hf_rope.export.folder import GRAPH, INT8, pools_first, save_config
from hf_rope.export.session import Session, least_cosine
from hf_rope.export.texts import BATCHES, TEXTS, make_batches
from native_models import MASKED, SIZES, command, native, refused, rewrite, save_with_tokenizer
from pages import ROOT, to_run

SENTENCES = ["a rotary one turn", "keys", "short and short and short keys . a one"]
EXPORTED = {
    name: head for name, head in HEADS.items() if name not in ("pre-training", "multi-label", "many-regressions")
}
"""One of the heads that have the same outputs."""
IN_TURN = dict(zip(CASES, itertools.cycle(EXPORTED), strict=False))
ROWS = [*IN_TURN.items(), *(("rotary", head) for head in EXPORTED if head != IN_TURN["rotary"])]
"""Every scheme and variant with some head, and one scheme with every head: a graph takes seconds to make."""
QUICK = [(FEW[0], IN_TURN[FEW[0]]), ("rotary", "multiple-choice")]
WITHOUT_TORCH = """
import json, sys
for name in ("torch", "transformers", "hf_rope", "sentence_transformers"):
    sys.modules[name] = None  # makes it impossible to import
code = open(sys.argv[1]).read()
exec(code.replace('["a ship", "a ship at sea ."]', sys.argv[2]))
json.dump(embeddings.tolist(), open(sys.argv[3], "w"))
"""


def run(*arguments):
    return command(*arguments, name="export")


def sentence_transformer(folder: Path) -> SentenceTransformer:
    """A BERT with a tokenizer, a length, a mean and a prompt, saved to a folder."""
    encoder = save_with_tokenizer(native("bert", hidden_size=64), folder.with_name("encoder"))
    parts = [modules.Transformer(str(encoder), max_seq_length=50), modules.Pooling(64, pooling_mode="mean")]
    model = SentenceTransformer(modules=parts, prompts={"query": "turn "}, device="cpu")
    shutil.rmtree(encoder)
    model.save_pretrained(str(folder))
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A source of sentence-transformers, its folder, the exported folder, and what the command said."""
    folder = tmp_path_factory.mktemp("export")
    model = sentence_transformer(folder / "source")
    result = run(folder / "source", folder / "new" / "target", "--int8", "--check")
    assert result.exit_code == 0, result.output
    return model, folder / "source", folder / "new" / "target", result


@pytest.fixture
def source(exported, tmp_path):
    return Path(shutil.copytree(exported[1], tmp_path / "source"))


def test_the_command_writes_graphs_tokenizer_config_and_pooling(exported):
    _, source, target, result = exported
    files = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert {GRAPH, INT8, "tokenizer.json", "tokenizer_config.json", "config.json", "modules.json"} <= files
    assert {"1_Pooling/config.json", "config_sentence_transformers.json", "configuration_hf_rope.py"} <= files
    assert not {"model.safetensors", "modeling_hf_rope.py"} & files
    config = json.loads((target / "config.json").read_text())
    assert config["architectures"] == ["HfRopeModel"]
    assert config["dtype"] == "float32"
    for name in ("1_Pooling/config.json", "config_sentence_transformers.json", "modules.json"):
        assert (target / name).read_bytes() == (source / name).read_bytes()
    assert json.loads((target / "tokenizer.json").read_text())["truncation"] is None
    assert [path.name for path in target.parent.iterdir()] == ["target"]
    for text in (GRAPH, INT8, "PyTorch", "texts/s", "MB", "greatest difference from the model", "least cosine"):
        assert text in result.output


def test_the_graph_has_the_names_that_servers_ask_for(exported):
    session = onnxruntime.InferenceSession(str(exported[2] / GRAPH))
    shapes = {x.name: x.shape for x in (*session.get_inputs(), *session.get_outputs())}
    ids = ["batch_size", "sequence_length"]
    assert shapes == {
        **dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), ids),
        "last_hidden_state": [*ids, 64],
    }


def test_the_pages_script_embeds_without_torch(exported, tmp_path):
    """In a process where torch, transformers and this package are not."""
    model, _, target, _ = exported
    (tmp_path / "my-onnx").symlink_to(target)
    (script,) = [block.code for block in to_run(ROOT / "docs/export.md") if "onnxruntime" in block.code]
    (tmp_path / "script.py").write_text(script)
    arguments = ["script.py", json.dumps(SENTENCES), "out.json"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    found = torch.tensor(json.loads((tmp_path / "out.json").read_text()))
    torch.testing.assert_close(found, model.encode(SENTENCES, convert_to_tensor=True), rtol=0, atol=1e-5)


def test_the_int8_graph_is_smaller_and_other_numbers(exported):
    """Or a check of it would say nothing. Of each layer's six products with weights one stays as it was."""
    target = exported[2]
    assert (target / INT8).stat().st_size < 0.8 * (target / GRAPH).stat().st_size
    graph = onnx.load(target / INT8).graph
    weights = {x.name for x in graph.initializer}
    kinds = Counter(node.op_type for node in graph.node if node.op_type != "MatMul" or node.input[1] in weights)
    assert (kinds["MatMulInteger"], kinds["MatMul"]) == (5 * SIZES["num_hidden_layers"], SIZES["num_hidden_layers"])
    one, other = (Session(target / file) for file in (GRAPH, INT8))
    ids = torch.randint(0, 14, (2, 9))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    greatest, _ = difference(one, other, batch)
    assert greatest > 1e-4


def test_texts_are_of_the_data_that_ships():
    lines = (ROOT / "examples/data/books/validation.txt").read_text(encoding="utf-8").splitlines()
    assert set(TEXTS) <= set(lines)
    assert all(texts for _, texts in BATCHES.values())


def test_batches_have_padding_several_lengths_and_pairs(exported):
    model = tiny_model("rotary")
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported[1], model_max_length=512)
    batches = make_batches(model, tokenizer, ["input_ids", "attention_mask", "token_type_ids"])
    shapes = {name: tuple(batch["input_ids"].shape) for name, batch in batches.items()}
    assert shapes == {"one": (1, 20), "short": (8, 32), "pairs": (4, 32), "middle": (8, 128), "long": (4, 512)}
    for name, batch in batches.items():
        assert bool(batch["attention_mask"].all()) == (name == "one")
        assert bool(batch["token_type_ids"].any()) == (name == "pairs")


def test_batches_are_no_longer_than_the_tokenizer_allows(exported):
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported[1], model_max_length=50)
    batches = make_batches(tiny_model("rotary"), tokenizer, ["input_ids"])
    assert max(batch["input_ids"].shape[1] for batch in batches.values()) == 50


def test_an_encoder_with_code_of_its_own_and_a_pooling_by_the_first_token_are_taken_for_what_they_are(
    source, tmp_path, monkeypatch
):
    listed = json.loads((source / "modules.json").read_text())
    listed[0]["type"] = "custom_st.Reader"
    (source / "modules.json").write_text(json.dumps(listed))
    (source / "custom_st.py").touch()
    (source / "1_Pooling/config.json").write_text('{"word_embedding_dimension": 64, "pooling_mode_cls_token": true}')
    seen = []
    monkeypatch.setattr("hf_rope.export.folder.least_cosine", lambda *args: seen.append(args[-1]) or 1.0)
    result = run(source, tmp_path / "target", "--int8", "--check")
    assert result.exit_code == 0, result.output
    assert seen == [True]
    written = json.loads((tmp_path / "target/modules.json").read_text())
    assert written[0]["type"] == "sentence_transformers.models.Transformer"


def test_padding_is_masked_also_where_the_tokenizer_is_not_set_to(exported):
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported[1], model_input_names=["input_ids"])
    assert list(tokenizer("a")) == ["input_ids"]
    for name, batch in make_batches(tiny_model("rotary"), tokenizer, ["input_ids", "attention_mask"]).items():
        assert bool(batch["attention_mask"].any(-1).all())
        assert bool(batch["attention_mask"].all()) == (name == "one")


def test_without_a_tokenizer_ids_are_drawn_within_the_table(exported):
    batches = make_batches(tiny_model("learned"), None, ["input_ids", "attention_mask"])
    assert {tuple(batch["input_ids"].shape) for batch in batches.values()} == {(1, 32), (8, 32), (8, 64), (4, 64)}
    assert all(not bool(batch["attention_mask"].all()) for batch in batches.values() if len(batch["input_ids"]) > 1)


@pytest.mark.parametrize(
    ("case", "head"), [pytest.param(*row, marks=() if row in QUICK else pytest.mark.full) for row in ROWS]
)
def test_a_graph_gives_what_the_model_gives(case, head, tmp_path):
    """In any batch of any length, padded on either side or not."""
    model = EXPORTED[head].build(case, num_hidden_layers=1)
    to_onnx(model, tmp_path / "model.onnx")
    session = Session(tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    shapes = [(2, 7), (1, 1), (5, 19), (3, 8)]
    for seed, (batch, length) in enumerate(shapes):
        choices = (3,) if head == "multiple-choice" else ()
        ids = token_ids(batch, *choices, length, seed=seed)
        mask = torch.ones_like(ids)
        if length > 7:
            mask[0, ..., -3:] = mask[1, ..., :4] = 0
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids % 2}
        greatest, size = difference(model, session, inputs)
        assert equal(greatest, size), (batch, length)
        assert size > 0.1


def test_large_weights_lie_beside_a_graph_which_asks_for_no_types_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_rope.export.graph.LARGE", 0)
    model = tiny_model("none", type_vocab_size=1, num_hidden_layers=1)
    to_onnx(model, str(tmp_path / "model.onnx"))
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.onnx_data"}
    session, ids = Session(tmp_path / "model.onnx"), token_ids(2, 9)
    assert session.inputs == ["input_ids", "attention_mask"]
    assert equal(*difference(model, session, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}))
    assert model.config._attn_implementation == "sdpa"  # as before


def test_config_is_what_was_exported_and_names_the_labels(tmp_path):
    """text-embeddings-inference asks a classifier for them, also where they are the default ones."""
    model = tiny_model("rotary", hf_rope.HfRopeForSequenceClassification)
    save_config(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["id2label"] == {"0": "LABEL_0", "1": "LABEL_1"}
    assert config["label2id"] == {"LABEL_0": 0, "LABEL_1": 1}
    assert config["architectures"] == ["HfRopeForSequenceClassification"]
    assert (config["max_position_embeddings"], config["pad_token_id"]) == (64, 0)
    loaded = transformers.AutoConfig.from_pretrained(tmp_path, trust_remote_code=True)
    assert loaded.to_dict() == {**model.config.to_dict(), "_name_or_path": str(tmp_path)}


@pytest.mark.parametrize(
    ("settings", "first"),
    [
        ({"pooling_mode": "cls"}, True),
        ({"pooling_mode": "mean"}, False),
        ({"pooling_mode_cls_token": True}, True),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, False),
    ],
)
def test_embeddings_are_compared_as_the_source_pools(settings, first, tmp_path):
    """By either form of sentence-transformers' file; what is right at first tokens alone is right by one."""
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert pools_first({"1_Pooling/config.json": tmp_path / "config.json", "modules.json": tmp_path}) == first
    model, ids = tiny_model("none"), token_ids(2, 5)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def broken(**batch):
        x = model(**batch).last_hidden_state
        return {"last_hidden_state": torch.cat([x[:, :1], -x[:, 1:]], dim=1)}

    assert (least_cosine(model, broken, [batch], first) > 0.999) == first


@pytest.mark.parametrize(
    ("text", "sentence"), [('{"pooling', "is no JSON"), ("[]", r"holds \[\]; it must hold a JSON")]
)
def test_pooling_that_cannot_be_read_is_named(text, sentence, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"{tmp_path}/config\.json {sentence}"):
        pools_first({"1_Pooling/config.json": tmp_path / "config.json"})


# Refusals: nothing is written.


def write_another(exported):
    """In the place of `to_onnx`: the graph of other weights."""

    def write(model, path):
        shutil.copyfile(exported[2] / GRAPH, path)

    return write


def test_a_graph_that_differs_is_refused(exported, source, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_rope.export.folder.to_onnx", write_another(exported))
    model = transformers.AutoModel.from_pretrained(source)
    with torch.no_grad():
        model.encoder.layer[1].output.dense.bias[0] += 1e-3
    model.save_pretrained(source)
    refused(run(source, tmp_path / "target", "--check"), tmp_path, "is allowed, so nothing is written")


def test_an_int8_graph_that_is_far_off_is_refused(exported, source, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_rope.export.folder.to_onnx", write_another(exported))
    monkeypatch.setattr("hf_rope.export.folder.LEAST_COSINE", 1.0)
    refused(run(source, tmp_path / "target", "--check", "--int8"), tmp_path, "export without int8")


def test_more_of_an_int8_graph_stays_in_float32_where_that_is_what_it_takes(exported, source, tmp_path, monkeypatch):
    cosines = iter([0.95, 0.995])
    monkeypatch.setattr("hf_rope.export.folder.least_cosine", lambda *args: next(cosines))
    result = run(source, tmp_path / "target", "--check", "--int8")
    assert result.exit_code == 0, result.output
    assert "is 0.9950 so, and 0.9500 with the first product" in " ".join(result.output.split())
    counts = [
        sum(node.op_type == "MatMulInteger" for node in onnx.load(folder / INT8).graph.node)
        for folder in (exported[2], tmp_path / "target")
    ]
    assert counts[0] - counts[1] == SIZES["num_hidden_layers"]


def test_numbers_that_are_none_are_far_off():
    """A comparison with them is false, which must not read as equal."""
    model = tiny_model("none")
    ids = token_ids(2, 5)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def broken(**batch):
        x = model(**batch).last_hidden_state
        return {"last_hidden_state": torch.cat([x[:1], x[1:] * float("nan")])}

    assert not equal(*difference(model, broken, batch))
    assert least_cosine(model, broken, [batch]) == -1
    assert least_cosine(model, model, [batch]) > 0.99999


@pytest.mark.parametrize(("noise", "fits"), [(0.001, True), (5.0, False)])
def test_one_number_a_text_is_compared_over_all_texts(noise, fits):
    """A reranker's logits far from 0, and a batch of one text, of which a cosine tells little."""
    model = tiny_model("none", hf_rope.HfRopeForSequenceClassification, num_labels=1)
    with torch.no_grad():
        model.classifier.bias.fill_(-11.0)
    batches = [{"input_ids": x, "attention_mask": torch.ones_like(x)} for x in (token_ids(12, 5), token_ids(1, 3))]

    def rounded(**batch):
        logits = model(**batch).logits
        return {"logits": logits + noise * torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))}

    assert (least_cosine(model, rounded, batches) > 0.99) == fits


def test_a_source_in_half_precision_is_exported_in_float32(source, tmp_path):
    transformers.AutoModel.from_pretrained(source).bfloat16().save_pretrained(source)
    result = run(source, tmp_path / "target", "--check")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "target/config.json").read_text())["dtype"] == "float32"


def test_a_target_that_is_taken_and_a_source_that_is_none_are_refused(exported, source, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    refused(run(source, tmp_path / "taken"), tmp_path, "exists and is not an empty folder")
    refused(run(tmp_path / "nowhere", tmp_path / "target"), tmp_path, "has no config.json that can be read")
    with pytest.raises(TypeError, match=r"is a BertForMaskedLM; .* save the model first, or .*to_onnx\.$"):
        export(native("bert", MASKED), tmp_path / "target")


def test_missing_packages_are_named(source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "hf_rope.export", None)
    monkeypatch.delattr(hf_rope, "export")
    refused(run(source, tmp_path / "target"), tmp_path, "pip install 'hf-rope[export]'")


def test_numbers_of_the_source_that_are_none_are_refused(source, tmp_path):
    key = "encoder.layer.1.output.dense.weight"
    rewrite(source, lambda tensors: tensors[key].view(-1)[3].fill_(float("nan")))
    refused(run(source, tmp_path / "target", "--int8"), tmp_path, f"{key} holds numbers that are NaN or infinite")


def test_models_that_have_no_graph_are_refused(tmp_path):
    decoder = tiny_model("rotary", hf_rope.HfRopeForCausalLM, is_decoder=True, add_cross_attention=True)
    with pytest.raises(ValueError, match=r"add_cross_attention=True .* export its encoder.*\.$"):
        to_onnx(decoder, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"in training mode.*model\.eval\(\) first\.$"):
        to_onnx(tiny_model("rotary").train(), tmp_path / "model.onnx")
    with pytest.raises(
        ValueError, match=r"one token at most \(max_position_embeddings=1\).*: give .* more positions\.$"
    ):
        to_onnx(tiny_model("learned", max_position_embeddings=1), tmp_path / "model.onnx")
    with pytest.raises(
        TypeError, match=r"takes an hf_rope model, and got a BertModel: make one .* hf_rope\.convert\.$"
    ):
        to_onnx(native("bert"), tmp_path / "model.onnx")
    assert not [*tmp_path.iterdir()]

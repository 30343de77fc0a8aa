"""Native models of every source, in memory and in folders; how they are changed, compared and given to the command."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from hf_rope.cli import app
from hf_rope.convert.check import difference
from hf_rope.convert.weights import HEADS

SIZES: dict[str, Any] = {
    **{"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48},
    **{"max_position_embeddings": 60, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}
ODD = {"vocab_size": 101, "hidden_size": 36, "num_attention_heads": 3, "num_hidden_layers": 3}
EVEN = {**ODD, "hidden_size": 48, "num_attention_heads": 6}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 500.0}
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 50}
V3 = {**RELATIVE, "position_buckets": 16, "share_att_key": True, "norm_rel_ebd": "layer_norm"}
SHORT = {"max_relative_positions": 12}
SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {}),
    "bert-odd": ("Bert", {**ODD, "hidden_act": "relu", "type_vocab_size": 3, "layer_norm_eps": 1e-3}),
    "bert-untied": ("Bert", {"tie_word_embeddings": False}),
    "roberta": ("Roberta", {"type_vocab_size": 1, "pad_token_id": 1}),
    "roberta-odd": ("Roberta", {**ODD, "type_vocab_size": 2, "pad_token_id": 3}),
    "xlm-roberta": ("XLMRoberta", {"type_vocab_size": 1, "pad_token_id": 1}),
    "camembert": ("Camembert", {"type_vocab_size": 1, "pad_token_id": 1}),
    "electra": ("Electra", {"embedding_size": 20}),
    "electra-equal-sizes": ("Electra", {"embedding_size": 32, "summary_activation": "tanh"}),
    "albert": ("Albert", {"embedding_size": 20}),
    "albert-groups": (
        "Albert",
        {"embedding_size": 20, "num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2},
    ),
    "mpnet": ("MPNet", {}),
    "mpnet-odd": ("MPNet", ODD),
    "deberta": ("Deberta", RELATIVE),
    "deberta-short": ("Deberta", {**RELATIVE, **SHORT, "type_vocab_size": 2, "pooler_hidden_act": "tanh"}),
    "deberta-unset": ("Deberta", {**RELATIVE, "max_relative_positions": -1}),
    "deberta-c2p": ("Deberta", {**RELATIVE, "pos_att_type": ["c2p"], "position_biased_input": False}),
    "deberta-p2c": ("Deberta", {**RELATIVE, "pos_att_type": "p2c", "legacy": False}),
    "deberta-no-relative": ("Deberta", {}),
    "deberta-v2": ("DebertaV2", RELATIVE),
    "deberta-v2-short": ("DebertaV2", {**RELATIVE, **SHORT, "legacy": False}),
    "deberta-v3-unset": ("DebertaV2", {**V3, "max_relative_positions": -1}),
    "deberta-v3": ("DebertaV2", {**V3, "position_biased_input": False}),
    "deberta-v3-absolute": ("DebertaV2", V3),
    "deberta-v2-no-relative": ("DebertaV2", {"position_biased_input": False, "norm_rel_ebd": "layer_norm"}),
    "roformer": ("RoFormer", {"summary_type": "first"}),
    "roformer-odd": ("RoFormer", {**ODD, "embedding_size": 20, "rotary_value": True, "hidden_act": "relu"}),
    "roformer-summary": (
        "RoFormer",
        {"summary_type": "first", "summary_use_proj": True, "summary_activation": "tanh", "embedding_size": 20},
    ),
    "jina-v3": ("JinaEmbeddingsV3", {}),
    "jina-v3-odd": ("JinaEmbeddingsV3", {**EVEN, "type_vocab_size": 2, "rope_parameters": YARN}),
    "nomic": ("NomicBert", {}),
    "nomic-odd": ("NomicBert", {**EVEN, "hidden_act": "gelu", "rope_parameters": YARN}),
    "gte": ("Gte", {}),
    "gte-odd": ("Gte", {**EVEN, "type_vocab_size": 0, "tie_word_embeddings": False}),
}
SOURCES = {name: row for name, row in SOURCES.items() if hasattr(transformers, f"{row[0]}Config")}  # GTE is the newest
ENCODERS = [head for head in HEADS if head != "ForCausalLM"]
NO_SUCH_HEAD = {
    (name, head) for name in SOURCES for head in ENCODERS if not hasattr(transformers, SOURCES[name][0] + head)
} | {("roformer-odd", "ForMultipleChoice")}
FAMILIES = [
    "bert",
    "roberta",
    "electra",
    "albert-groups",
    "mpnet",
    "deberta",
    "deberta-v3-absolute",
    "roformer-summary",
    "jina-v3",
    "nomic",
    *(["gte"] if "gte" in SOURCES else []),
]
"""One source of each, with as much in it as there is."""
MASKED = "ForMaskedLM"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "short", "one", ".", "rotary", "##s", "turn", "and", "keys"]


def native(name: str, head: str = "Model", **changes):
    """A native model in eval mode with weights, biases and norms that are all at random and large enough to matter."""
    family, settings = SOURCES[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **settings, **changes})
    model = getattr(transformers, family + head)(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "embed_positions" not in key:
                center = 1.0 if "norm" in key.lower() and key.endswith("weight") else 0.0
                parameter.copy_(center + 0.15 * torch.randn_like(parameter))
    return model


def batch(config, head: str = "Model") -> dict[str, torch.Tensor]:
    """40 tokens, 21 and 1 in rows padded on the right; token types that change where there are any."""
    ids, mask = torch.randint(0, config.vocab_size - 1, (4, 40)), torch.ones(4, 40, dtype=torch.long)
    pad = config.pad_token_id
    ids = ids + (ids >= pad)
    for row, length in enumerate((40, 21, 1, 33)):
        ids[row, length:], mask[row, length:] = pad, 0
    found = {"input_ids": ids, "attention_mask": mask}
    if getattr(config, "type_vocab_size", 0) > 1:
        found["token_type_ids"] = (torch.arange(40) % config.type_vocab_size).expand(4, 40).clone()
    return {key: x.unflatten(0, (2, 2)) for key, x in found.items()} if head == "ForMultipleChoice" else found


def assert_equal(one, other, inputs=None, head="Model", limit=1e-5) -> None:
    greatest, size = difference(one, other, inputs or batch(one.config, head))
    assert greatest <= limit
    assert size > 0.1


def rewrite(folder, change) -> None:
    """Changes the tensors of a saved folder in place."""
    tensors = {key: tensor.clone() for key, tensor in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "model.safetensors")


def reconfigure(folder, **changes) -> None:
    """Changes the config.json of a saved folder; None takes a key out."""
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


def cut(folder) -> None:
    """Cuts the weights of a saved folder off."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def write_old_bert(folder, ours, kind: str) -> None:
    """An hf_rope model with relative keys, written by hand as transformers 4 wrote BERT."""
    model, found = ours.model, {}

    def put(name, module, weight="weight", bias="bias"):
        found[f"{name}.{weight}"], found[f"{name}.{bias}"] = module.weight, module.bias

    found["bert.embeddings.position_ids"] = torch.arange(64)[None]
    found["bert.embeddings.position_embeddings.weight"] = torch.randn(64, 32)
    found["bert.embeddings.word_embeddings.weight"] = model.embeddings.word_embeddings.weight
    found["bert.embeddings.token_type_embeddings.weight"] = model.embeddings.token_type_embeddings.weight
    put("bert.embeddings.LayerNorm", model.embedding_norm, "gamma", "beta")
    for number, layer in enumerate(model.layers):
        here = f"bert.encoder.layer.{number}"
        for name in ("query", "key", "value"):
            put(f"{here}.attention.self.{name}", getattr(layer.attention, name))
        table = layer.attention.position.distance_embeddings.weight
        found[f"{here}.attention.self.distance_embedding.weight"] = table
        put(f"{here}.attention.output.dense", layer.attention.output)
        put(f"{here}.attention.output.LayerNorm", layer.attention_norm, "gamma", "beta")
        put(f"{here}.intermediate.dense", layer.intermediate)
        put(f"{here}.output.dense", layer.output)
        put(f"{here}.output.LayerNorm", layer.output_norm, "gamma", "beta")
    put("bert.pooler.dense", model.layers[0].attention.output)
    put("cls.predictions.transform.dense", ours.lm_head.dense)
    put("cls.predictions.transform.LayerNorm", ours.lm_head.norm, "gamma", "beta")
    found["cls.predictions.bias"] = ours.lm_head.decoder.bias
    put("cls.seq_relationship", torch.nn.Linear(32, 2))
    folder.mkdir(exist_ok=True)
    save_file(
        {key: tensor.detach().clone().contiguous() for key, tensor in found.items()}, folder / "model.safetensors"
    )
    config = {**SIZES, "model_type": "bert", "architectures": ["BertForMaskedLM"], "max_position_embeddings": 64}
    (folder / "config.json").write_text(json.dumps({**config, "position_embedding_type": kind}))


def command(*arguments, name="convert"):
    """`hf-rope convert`, or the command of another name, in this process."""
    return CliRunner().invoke(app, [name, *(str(argument) for argument in arguments)], env={"COLUMNS": "200"})


def refused(result, tmp_path, sentence) -> None:
    """The command ended with one sentence and wrote nothing beside the folders that were there."""
    assert result.exit_code == 1
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.output
    assert {path.name for path in tmp_path.iterdir()} <= {"source", "taken"}


def save_with_tokenizer(model, folder: Path) -> Path:
    """A folder with the model and a BERT tokenizer of WORDS."""
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder

"""to_native: hf_rope models back as native ones: `learned` as BERT, `rotary` as RoFormer, Jina v3, NomicBERT or GTE."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, overload

import torch
import transformers
from transformers import PreTrainedModel

from ..model.configuration_hf_rope import HfRopeConfig
from ..model.modeling_hf_rope import classifier_dropout
from .checkpoint import read_checkpoint
from .conversion import CROSS_ENCODER_KEYS, convert, note_training
from .from_roformer import ANGLES, note_decoder
from .from_rotary import check_rope, note_gate_dropout, split_gates
from .source import refuse, rename
from .sources import SOURCES
from .weights import Report, change_pairing, head_of_model, named_tensors

SHARED = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "type_vocab_size"),
    *("initializer_range", "layer_norm_eps", "pad_token_id", "id2label", "label2id", "problem_type"),
    *("chunk_size_feed_forward", "tie_word_embeddings", "bos_token_id", "eos_token_id"),
)
DECODING = ("is_decoder", "add_cross_attention", "use_cache")
BLOCKS = {
    **dict.fromkeys(("Bert", "RoFormer", "JinaEmbeddingsV3"), ("dense", True, True)),
    **{"NomicBert": ("gated", False, False), "Gte": ("gated", True, True)},
}
"""The layers of each family: feed_forward_type, attention_bias and mlp_bias."""
OTHER_NAMES = {"BertForCausalLM": "BertLMHeadModel"}
POOLED = ("ForSequenceClassification", "ForMultipleChoice")


@overload
def to_native(
    model_or_name: PreTrainedModel | str | Path, *, return_report: Literal[False] = False
) -> PreTrainedModel: ...


@overload
def to_native(
    model_or_name: PreTrainedModel | str | Path, *, return_report: Literal[True]
) -> tuple[PreTrainedModel, Report]: ...


def to_native(
    model_or_name: PreTrainedModel | str | Path, *, return_report: bool = False
) -> PreTrainedModel | tuple[PreTrainedModel, Report]:
    """The same head as a native model, in eval mode and of the same dtype and device.

    `learned` becomes BERT. `rotary` becomes NomicBERT with a gated feed-forward and no biases, GTE with one and biases;
    else RoFormer, or Jina embeddings v3 with another theta, scaling or classifier than RoFormer has.

    Args:
        model_or_name: an hf_rope model, a folder, or a name on the Hub.
        return_report: also what became of every tensor, as a second value.

    Raises:
        TypeError, ValueError: no native class computes this model; one sentence says why.
    """
    model: Any = model_or_name
    if isinstance(model_or_name, str | Path):
        read_checkpoint(model_or_name, [HfRopeConfig.model_type])  # refuses other architectures
        model = convert(model_or_name)
    if not isinstance(model, PreTrainedModel) or model.config.model_type != HfRopeConfig.model_type:
        raise TypeError(f"to_native takes an hf_rope model, and got a {type(model).__name__}.")
    config = model.config
    head = head_of_model(model)
    refuse(config, "attention_type", "native classes have softmax attention alone", unless=("softmax",))
    known = "only learned and rotary have a native class to go back to"
    refuse(config, "position_embedding_type", known, unless=("learned", "rotary"))
    family = family_of(config, head)
    name = "a model" if model is model_or_name else str(model_or_name)
    report = Report(f"{type(model).__name__}, {name}", OTHER_NAMES.get(family + head, family + head))
    if not hasattr(transformers, report.target):
        raise ValueError(
            f"A {type(model).__name__} with these settings would be a {report.target}, which transformers "
            f"{transformers.__version__} does not have: convert the encoder alone, or install a newer one."
        )
    native_config = getattr(transformers, f"{family}Config")(**native_settings(config, head, family, report))
    source = SOURCES[native_config.model_type]

    note_training(head, source.names, config, family, report)
    tensors = named_tensors(model)
    pairing = "interleaved" if family == "RoFormer" else "halves"
    if config.position_options.get("pairing", pairing) != pairing:
        change_pairing(tensors, config, pairing)
        report.notes.append(f"The projections are reordered to rotary pairing {pairing!r}, which is {family}'s.")
    if config.feed_forward_type == "gated":
        split_gates(tensors, config.num_hidden_layers)
    pooler = {"add_pooling_layer": "pooler.dense.weight" in tensors} if head == "Model" and family != "RoFormer" else {}
    native = getattr(transformers, report.target)._from_config(native_config, dtype=model.dtype, **pooler)
    used = set()
    with torch.no_grad():
        for key, target in native.state_dict().items():
            key = key.removeprefix(f"{source.prefix}.")
            if key == ANGLES:
                report.new[key] = "sines and cosines, computed"
            else:
                ours = rename(key, source.names) or key
                target.copy_(tensors[ours])
                used.add(ours)
    report.copied = len(used)
    report.dropped = {key: f"{report.target} has no such part" for key in tensors if key not in used}
    for key in CROSS_ENCODER_KEYS:
        if hasattr(config, key):
            setattr(native.config, key, getattr(config, key))
    if native.can_generate():
        native.generation_config = copy.deepcopy(model.generation_config)
    native.to(model.device).eval()
    return (native, report) if return_report else native


def family_of(config, head: str) -> str:
    """The family whose layers and positions a model has, or comes nearest to."""
    if config.position_embedding_type == "learned":
        return "Bert"
    if config.feed_forward_type == "gated":
        return "Gte" if config.attention_bias else "NomicBert"
    rope = config.rope_parameters
    own = rope["rope_type"] == "default" and rope["rope_theta"] == 10000 and rope.get("partial_rotary_factor", 1) == 1
    same = head != "ForSequenceClassification" or config.pooler_activation == config.hidden_act
    return "RoFormer" if own and same else "JinaEmbeddingsV3"


def native_settings(config, head: str, family: str, report: Report) -> dict[str, Any]:
    """The settings of a family's configuration; refuses what it cannot say."""
    for key, value in zip(("feed_forward_type", "attention_bias", "mlp_bias"), BLOCKS[family], strict=True):
        refuse(config, key, f"{family} is made with {value!r}", unless=(value,))
    if head in POOLED:
        refuse(config, "classifier_pooling", f"{family} pools the first token", unless=("cls",))
    refuse(config, "scale_embedding", f"{family} does not multiply its embeddings", unless=(False,))
    if config.type_vocab_size == 0 and family != "Gte":
        refuse(config, "type_vocab_size", f"{family} has one token type at least")
    settings = {key: getattr(config, key) for key in SHARED}
    if family == "Bert":
        return settings | {key: getattr(config, key) for key in DECODING} | bert_settings(config, head)
    if family == "RoFormer":
        return settings | {key: getattr(config, key) for key in DECODING} | roformer_settings(config, head, report)
    return settings | rotary_settings(config, head, family, report)


def rotary_settings(config, head: str, family: str, report: Report) -> dict[str, Any]:
    """Of the families that turn in halves, by any theta."""
    size, options = config.hidden_size, SimpleNamespace(**config.position_options)
    refuse(config, "embedding_size", f"{family}'s embeddings have hidden_size={size}", unless=(size,))
    refuse(config, "is_decoder", f"{family} is an encoder", unless=(False,))
    refuse(options, "rotary_value", f"{family} turns no values", unless=(False,))
    check_rope(config)
    if head in ("Model", *POOLED):
        refuse(config, "pooler_activation", f"{family}'s pooler has tanh", unless=("tanh",))
    if head == "ForMaskedLM" and family != "NomicBert":
        refuse(config, "hidden_act", f"{family}'s masked-LM head has gelu", unless=("gelu",))
    if family == "Gte":
        note_gate_dropout(config.hidden_dropout_prob, report)
    return {"rope_parameters": dict(config.rope_parameters), "classifier_dropout": config.classifier_dropout}


def bert_settings(config, head: str) -> dict[str, Any]:
    size = config.hidden_size
    refuse(config, "embedding_size", f"BERT's embeddings have hidden_size={size}", unless=(size,))
    if head in ("Model", *POOLED):
        refuse(config, "pooler_activation", "BERT's pooler has tanh", unless=("tanh",))
    return {"classifier_dropout": config.classifier_dropout}


def roformer_settings(config, head: str, report: Report) -> dict[str, Any]:
    note_decoder(config, report)
    found = {"embedding_size": config.embedding_size, "rotary_value": config.position_options["rotary_value"]}
    dropout = classifier_dropout(config).p
    if head == "ForMultipleChoice":
        return found | {
            "summary_type": "first",
            "summary_use_proj": True,
            "summary_activation": config.pooler_activation,
            "summary_last_dropout": dropout,
        }
    if dropout != config.hidden_dropout_prob:
        report.notes.append("Training differs: RoFormer's heads have hidden_dropout_prob for classifier_dropout.")
    return found

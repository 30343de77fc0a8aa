"""to_native: hf_rope models back as native ones: `rotary` as RoFormer, `learned` as BERT."""

from pathlib import Path
from typing import Any, Literal, overload

import torch
import transformers
from transformers import PreTrainedModel

from ..model.configuration_hf_rope import HfRopeConfig
from .checkpoint import read_checkpoint
from .conversion import convert
from .from_roformer import ANGLES, note_decoder
from .source import refuse, rename
from .sources import SOURCES
from .weights import HEADS, Report, change_pairing, named_tensors

SHARED = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "type_vocab_size"),
    *("initializer_range", "layer_norm_eps", "pad_token_id", "id2label", "label2id", "problem_type"),
    *("chunk_size_feed_forward", "tie_word_embeddings", "is_decoder", "add_cross_attention", "use_cache"),
)
FAMILIES = {"learned": "Bert", "rotary": "RoFormer"}
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
    """The same head as a native model: RoFormer for `rotary`, BERT for `learned`; eval mode, same dtype and device.

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
    head = next(head for head, ours in HEADS.items() if ours == type(model).__name__)
    refuse(config, "attention_type", "native classes have softmax attention alone", unless=("softmax",))
    known = f"only {' and '.join(FAMILIES)} have a native class to go back to"
    refuse(config, "position_embedding_type", known, unless=FAMILIES)
    family = FAMILIES[config.position_embedding_type]
    source = SOURCES[family.lower()]
    name = "a model" if model is model_or_name else str(model_or_name)
    report = Report(f"{type(model).__name__}, {name}", OTHER_NAMES.get(family + head, family + head))
    settings = {key: getattr(config, key) for key in SHARED}
    if head == "ForSequenceClassification":
        refuse(config, "classifier_pooling", f"{family} pools the first token", unless=("cls",))
    refuse(config, "scale_embedding", f"{family} does not multiply its embeddings", unless=(False,))
    if config.type_vocab_size == 0:
        refuse(config, "type_vocab_size", f"{family} has one token type at least")
    settings |= bert_settings(config, head) if family == "Bert" else roformer_settings(config, head, report)

    tensors = named_tensors(model)
    if config.position_options.get("pairing") == "halves":
        change_pairing(tensors, config, "interleaved")
        report.notes.append("Rotary pairing 'halves': the projections are reordered to RoFormer's interleaved pairs.")
    native_config = getattr(transformers, f"{family}Config")(**settings)
    pooler = {"add_pooling_layer": "pooler.dense.weight" in tensors} if report.target == "BertModel" else {}
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
    native.to(model.device).eval()
    return (native, report) if return_report else native


def bert_settings(config, head: str) -> dict[str, Any]:
    size = config.hidden_size
    refuse(config, "embedding_size", f"BERT's embeddings have hidden_size={size}", unless=(size,))
    if head in ("Model", *POOLED):
        refuse(config, "pooler_activation", "BERT's pooler has tanh", unless=("tanh",))
    return {"classifier_dropout": config.classifier_dropout}


def roformer_settings(config, head: str, report: Report) -> dict[str, Any]:
    note_decoder(config, report)
    rope = config.rope_parameters
    if rope["rope_type"] != "default" or rope["rope_theta"] != 10000 or rope.get("partial_rotary_factor", 1) != 1:
        refuse(config, "rope_parameters", "RoFormer turns whole heads by theta 10000, without scaling")
    found = {"embedding_size": config.embedding_size, "rotary_value": config.position_options["rotary_value"]}
    if head == "ForSequenceClassification":
        act = config.hidden_act
        refuse(config, "pooler_activation", f"RoFormer's classifier has hidden_act={act!r} there", unless=(act,))
    dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
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

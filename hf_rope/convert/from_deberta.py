"""DeBERTa: v2 and v3, and v1, which differs from them."""

import re
from typing import ClassVar

import torch

from .source import CLASSIFIERS, COMPUTED, EMBEDDINGS, LAYERS, POOLER, POSITIONS, PREDICTIONS, TABLE, Source, refuse

NEW_HEAD = {
    "lm_predictions.lm_head": "lm_head.decoder",
    "lm_predictions.lm_head.dense": "lm_head.dense",
    "lm_predictions.lm_head.LayerNorm": "lm_head.norm",
}


class DebertaV2Source(Source):
    """DeBERTa v2 and v3 (He et al. 2020, 2021), without the convolution of v2's large models."""

    prefix = "deberta"
    names = {
        **{**EMBEDDINGS, **LAYERS, **POOLER, **PREDICTIONS, **NEW_HEAD, **CLASSIFIERS},
        **{
            f"encoder.layer.{{}}.attention.self.{x}_proj": f"layers.{{}}.attention.{x}"
            for x in ("query", "key", "value")
        },
        "encoder.layer.{}.attention.self.pos_key_proj": "layers.{}.attention.position.key_projection",
        "encoder.layer.{}.attention.self.pos_query_proj": "layers.{}.attention.position.query_projection",
        "encoder.rel_embeddings": "position.embeddings",
        "encoder.LayerNorm": "position.norm",
        "embeddings.position_embeddings": "position.absolute",
    }
    dropped = {**COMPUTED, r"^mask_predictions\.": "hf_rope has no discriminator head"}
    reads: ClassVar[tuple[str, ...]] = (
        *("position_buckets", "share_att_key", "norm_rel_ebd", "cls_dropout", "conv_kernel_size", "embedding_size"),
        *("attention_head_size", "pooler_hidden_size", "talking_head"),
    )

    def check(self, config, head):
        super().check(config, head)
        heads, size = config.num_attention_heads, config.hidden_size
        refuse(config, "conv_kernel_size", "hf_rope has no convolution layer (encoder.conv)", unless=(0,))
        refuse(config, "talking_head", "hf_rope does not mix attention heads", unless=(False,))
        refuse(config, "embedding_size", "it projects before the norm of embeddings, hf_rope after it", unless=(size,))
        refuse(config, "attention_head_size", "hf_rope's is hidden_size / num_attention_heads", unless=(size // heads,))
        refuse(config, "pooler_hidden_size", "hf_rope's pooler has hidden_size", unless=(size,))
        if not config.relative_attention and config.pos_att_type:
            divided = f"with pos_att_type={config.pos_att_type} it divides scores by the root of terms it does not have"
            refuse(config, "relative_attention", divided)

    def names_of(self, config):
        return self.names if config.relative_attention else {**self.names, **POSITIONS}

    def settings(self, config, head):
        found = {
            "tie_word_embeddings": config.tie_word_embeddings or not config.legacy,
            "pooler_activation": config.pooler_hidden_act,
            "classifier_dropout": None if head == "ForTokenClassification" else getattr(config, "cls_dropout", None),
        }
        if not config.relative_attention:
            return {**found, "position_embedding_type": "learned" if config.position_biased_input else "none"}
        options = {**self.options(config), "absolute_embeddings": config.position_biased_input}
        return {**found, "position_embedding_type": "deberta", "position_options": options}

    def options(self, config) -> dict:
        """The options of `deberta` beside `absolute_embeddings`."""
        length = getattr(config, "max_relative_positions", -1)
        norms = [x.strip() for x in getattr(config, "norm_rel_ebd", "none").lower().split("|")]
        return {
            "pos_att_type": list(config.pos_att_type or []),
            "max_relative_positions": length if length > 0 else config.max_position_embeddings,
            "position_buckets": max(getattr(config, "position_buckets", -1), 0),
            "share_att_key": getattr(config, "share_att_key", False),
            "norm_rel_ebd": "layer_norm" in norms,
        }

    def adapt(self, tensors, config, head, report):
        if not config.position_biased_input and tensors.pop(TABLE, None) is not None:
            report.dropped[TABLE] = "not read with position_biased_input=False"
        for key in ("encoder.LayerNorm.weight", "encoder.LayerNorm.bias"):
            if not config.relative_attention and tensors.pop(key, None) is not None:
                report.dropped[key] = "not read with relative_attention=False"
        new = [key for key in tensors if key.startswith("lm_predictions.")]
        old = [key for key in tensors if key.startswith("cls.predictions.")]
        if new and old:
            for key in new if config.legacy else old:
                tensors.pop(key)
                report.dropped[key] = f"not read with legacy={config.legacy}"
        if head in ("ForSequenceClassification", "ForMultipleChoice") and config.pooler_dropout:
            report.notes.append(f"Training differs: no dropout ({config.pooler_dropout}) before the pooler here.")


class DebertaSource(DebertaV2Source):
    """DeBERTa v1 (He et al. 2020): a fused projection without a key bias, projections for positions alone."""

    names = {
        **{key: name for key, name in DebertaV2Source.names.items() if ".pos_" not in key},
        "encoder.layer.{}.attention.self.pos_proj": "layers.{}.attention.position.key_projection",
        "encoder.layer.{}.attention.self.pos_q_proj": "layers.{}.attention.position.query_projection",
    }
    reads = ("cls_dropout", "embedding_size", "pooler_hidden_size", "talking_head")
    fused = re.compile(r"^(encoder\.layer\.\d+\.attention\.self\.)in_proj\.weight$")

    def options(self, config):
        own = {"position_buckets": 0, "share_att_key": False, "norm_rel_ebd": False}
        return {**super().options(config), **own}

    def adapt(self, tensors, config, head, report):
        """Splits `in_proj`, whose rows are query, key and value of the first head, then of the second, and so on."""
        super().adapt(tensors, config, head, report)
        heads, size = config.num_attention_heads, config.hidden_size
        for key in [*tensors]:
            if not (match := self.fused.match(key)):
                continue
            fused, here = tensors.pop(key), match[1]
            if fused.shape != (3 * size, size):
                raise ValueError(f"{key} has shape {tuple(fused.shape)}; the configuration says {(3 * size, size)}.")
            query, key_, value = fused.view(heads, 3, size // heads, size).transpose(0, 1).reshape(3, size, size)
            tensors |= {f"{here}query_proj.weight": query, f"{here}key_proj.weight": key_}
            tensors[f"{here}value_proj.weight"] = value
            for theirs, ours in (("q_bias", "query_proj.bias"), ("v_bias", "value_proj.bias")):
                if here + theirs in tensors:
                    tensors[here + ours] = tensors.pop(here + theirs)
            zero = [f"{here}key_proj.bias"]
            if config.relative_attention and "c2p" in config.pos_att_type:
                zero.append(f"{here}pos_proj.bias")
            for name in zero:
                tensors[name] = torch.zeros(size, dtype=fused.dtype, device=fused.device)
                report.new[name] = "zero: the source has no such bias"
        report.notes.append(
            "Training differs: the key biases, zero here and absent in the source, are trained as well."
        )

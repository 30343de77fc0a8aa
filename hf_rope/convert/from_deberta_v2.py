"""DeBERTa v2 and v3 (He et al. 2020, 2021), without the convolution of v2's large models."""

from typing import ClassVar

from .source import CLASSIFIERS, COMPUTED, EMBEDDINGS, LAYERS, POOLER, POSITIONS, PREDICTIONS, TABLE, Source, refuse

NEW_HEAD = {
    "lm_predictions.lm_head": "lm_head.decoder",
    "lm_predictions.lm_head.dense": "lm_head.dense",
    "lm_predictions.lm_head.LayerNorm": "lm_head.norm",
}


class DebertaV2Source(Source):
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
        refuse(config, "conv_kernel_size", (0,), "hf_rope has no convolution layer (encoder.conv)")
        refuse(config, "talking_head", (False,), "hf_rope does not mix attention heads")
        refuse(config, "embedding_size", (size,), "it projects before the norm of the embeddings, hf_rope after it")
        refuse(config, "attention_head_size", (size // heads,), "hf_rope's is hidden_size / num_attention_heads")
        refuse(config, "pooler_hidden_size", (size,), "hf_rope's pooler has hidden_size")
        if not config.relative_attention and config.pos_att_type:
            raise ValueError(
                f"The source has pos_att_type={config.pos_att_type} and relative_attention=False, which cannot be "
                "converted: it divides scores by the root of terms that it does not have."
            )

    def names_of(self, config):
        return self.names if config.relative_attention else {**self.names, **POSITIONS}

    def settings(self, config, head):
        found = {
            "tie_word_embeddings": config.tie_word_embeddings or not config.legacy,
            "pooler_activation": config.pooler_hidden_act,
            "classifier_dropout": getattr(config, "cls_dropout", None),
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

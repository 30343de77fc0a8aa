"""MPNet (Song et al. 2020): T5's buckets and an absolute table."""

from .from_roberta import GELU, cut_rows
from .source import CLASSIFIERS, COMPUTED, DENSE_CLASSIFIER, EMBEDDINGS, LAYERS, LM_HEAD, POOLER, Source, refuse

OFFSET = 2
"""Its positions begin at 2, whatever `pad_token_id` is."""


class MPNetSource(Source):
    prefix = "mpnet"
    names = {
        **{**EMBEDDINGS, **LAYERS, **POOLER, **LM_HEAD, **CLASSIFIERS, **DENSE_CLASSIFIER},
        "embeddings.position_embeddings": "position.absolute",
        "encoder.relative_attention_bias": "position.bias",
        "encoder.layer.{}.attention.attn.q": "layers.{}.attention.query",
        "encoder.layer.{}.attention.attn.k": "layers.{}.attention.key",
        "encoder.layer.{}.attention.attn.v": "layers.{}.attention.value",
        "encoder.layer.{}.attention.attn.o": "layers.{}.attention.output",
        "encoder.layer.{}.attention.LayerNorm": "layers.{}.attention_norm",
    }
    dropped = COMPUTED

    def check(self, config, head):
        super().check(config, head)
        refuse(config, "relative_attention_num_buckets", (32,), "the native class sorts into 32 buckets")
        refuse(config, "pad_token_id", (1,), "the native class counts positions from token 1 as padding")
        if head == "ForMaskedLM":
            refuse(config, "hidden_act", ("gelu",), GELU)

    def settings(self, config, head):
        return {
            "position_embedding_type": "t5",
            "position_options": {"num_buckets": 32, "max_distance": 128, "absolute_embeddings": True},
            "max_position_embeddings": config.max_position_embeddings - OFFSET,
            "type_vocab_size": 0,
        }

    def adapt(self, tensors, config, head, report):
        cut_rows(tensors, OFFSET, report)

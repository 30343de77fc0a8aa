"""ALBERT (Lan et al. 2019): layers that share their weights, written out."""

import re

from .source import CLASSIFIERS, COMPUTED, EMBEDDINGS, POSITIONS, Source, absolute_or_relative, drop_unread_positions

LAYER = re.compile(r"^encoder\.albert_layer_groups\.(\d+)\.albert_layers\.(\d+)\.(.*)$")


class AlbertSource(Source):
    prefix = "albert"
    names = {
        **{**EMBEDDINGS, **CLASSIFIERS, "embeddings.position_embeddings": POSITIONS["embeddings.position_embeddings"]},
        "encoder.embedding_hidden_mapping_in": "embedding_projection",
        **{f"encoder.layer.{{}}.attention.{x}": f"layers.{{}}.attention.{x}" for x in ("query", "key", "value")},
        "encoder.layer.{}.attention.distance_embedding": "layers.{}.attention.position.distance_embeddings",
        "encoder.layer.{}.attention.dense": "layers.{}.attention.output",
        "encoder.layer.{}.attention.LayerNorm": "layers.{}.attention_norm",
        "encoder.layer.{}.ffn": "layers.{}.intermediate",
        "encoder.layer.{}.ffn_output": "layers.{}.output",
        "encoder.layer.{}.full_layer_layer_norm": "layers.{}.output_norm",
        "pooler": "pooler.dense",
        "predictions": "lm_head.decoder",
        "predictions.decoder": "lm_head.decoder",
        "predictions.dense": "lm_head.dense",
        "predictions.LayerNorm": "lm_head.norm",
    }
    heads = {"ForPreTraining": "ForMaskedLM"}
    dropped = {**COMPUTED, r"^sop_classifier\.": "hf_rope has no sentence-order head"}

    def check(self, config, head):
        super().check(config, head)
        if config.embedding_size == config.hidden_size:
            raise ValueError(
                f"The source has embedding_size={config.embedding_size}, equal to hidden_size, and still projects its "
                "embeddings (encoder.embedding_hidden_mapping_in): hf_rope has no projection between equal sizes."
            )

    def settings(self, config, head):
        return {
            "position_embedding_type": absolute_or_relative(config),
            "embedding_size": config.embedding_size,
            "num_hidden_layers": config.num_hidden_layers * config.inner_group_num,
            "classifier_dropout": config.classifier_dropout_prob,
        }

    def adapt(self, tensors, config, head, report):
        drop_unread_positions(tensors, config, report)
        shared = [(match, tensors.pop(key)) for key in [*tensors] if (match := LAYER.match(key))]
        inner = config.inner_group_num
        for match, tensor in shared:
            group, position, rest = int(match[1]), int(match[2]), match[3]
            for layer in range(config.num_hidden_layers):
                if int(layer / (config.num_hidden_layers / config.num_hidden_groups)) == group:
                    tensors[f"encoder.layer.{layer * inner + position}.{rest}"] = tensor
        report.notes.append(
            f"The weights of {config.num_hidden_groups * inner} shared layers are written out into "
            f"{config.num_hidden_layers * inner}: in training the copies go apart."
        )

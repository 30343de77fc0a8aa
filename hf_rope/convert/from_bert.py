"""BERT (Devlin et al. 2018), also with the relative keys of transformers 4."""

from .source import (
    CLASSIFIERS,
    COMPUTED,
    EMBEDDINGS,
    LAYERS,
    POOLER,
    POSITIONS,
    PREDICTIONS,
    PROJECTIONS,
    Source,
    drop_unread_positions,
)


class BertSource(Source):
    prefix = "bert"
    names = {**EMBEDDINGS, **POSITIONS, **PROJECTIONS, **LAYERS, **POOLER, **PREDICTIONS, **CLASSIFIERS}
    heads = {"ForPreTraining": "ForMaskedLM"}
    dropped = {**COMPUTED, r"^cls\.seq_relationship\.": "hf_rope has no next-sentence head"}
    refused_heads = {
        "ForNextSentencePrediction": "hf_rope has no next-sentence head: convert BertModel",
        "LMHeadModel": "hf_rope is an encoder and generates nothing: convert BertModel",
    }

    def adapt(self, tensors, config, head, report):
        drop_unread_positions(tensors, config, report)

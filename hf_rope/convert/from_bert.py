"""BERT (Devlin et al. 2018), also with the relative keys of transformers 4."""

from .source import (
    CLASSIFIERS,
    COMPUTED,
    CROSS_ATTENTION,
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
    names = {
        **{**EMBEDDINGS, **POSITIONS, **PROJECTIONS, **LAYERS, **CROSS_ATTENTION},
        **{**POOLER, **PREDICTIONS, **CLASSIFIERS},
    }
    heads = {"ForPreTraining": "ForMaskedLM", "LMHeadModel": "ForCausalLM"}
    decodes = True
    dropped = {**COMPUTED, r"^cls\.seq_relationship\.": "hf_rope has no next-sentence head"}
    refused_heads = {
        "ForNextSentencePrediction": "hf_rope has no next-sentence head: convert BertModel",
    }

    def adapt(self, tensors, config, head, report):
        drop_unread_positions(tensors, config, report)

"""hf_rope: a BERT-style encoder for Hugging Face Transformers in which the position scheme is a setting.

Importing it registers `model_type="hf_rope"` with the Auto classes, and nothing else.
"""

from typing import Any

import transformers
from transformers import AutoConfig, AutoTokenizer, BertTokenizer
from transformers.models.auto import modeling_auto

from .model import modeling_hf_rope
from .model.configuration_hf_rope import AUTO_MAP, HfRopeConfig
from .model.modeling_hf_rope import (
    HfRopeForCausalLM,
    HfRopeForMaskedLM,
    HfRopeForMultipleChoice,
    HfRopeForQuestionAnswering,
    HfRopeForSequenceClassification,
    HfRopeForTokenClassification,
    HfRopeModel,
    HfRopePreTrainedModel,
)
from .model.position_base import PositionScheme
from .model.positions import SCHEMES
from .optimization import param_groups

__version__ = "0.1.0"

__all__ = [
    "SCHEMES",
    "HfRopeConfig",
    "HfRopeForCausalLM",
    "HfRopeForMaskedLM",
    "HfRopeForMultipleChoice",
    "HfRopeForQuestionAnswering",
    "HfRopeForSequenceClassification",
    "HfRopeForTokenClassification",
    "HfRopeModel",
    "HfRopePreTrainedModel",
    "PositionScheme",
    "param_groups",
]

# Trainer's label smoothing and model cards look classes up in these tables, which Auto*.register leaves alone.
NAME_TABLES: dict[str, Any] = {
    "AutoModel": modeling_auto.MODEL_MAPPING_NAMES,
    "AutoModelForMaskedLM": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "AutoModelForCausalLM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForPreTraining": modeling_auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES,
    "AutoModelForSequenceClassification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForTokenClassification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForQuestionAnswering": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    "AutoModelForMultipleChoice": modeling_auto.MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
}

AutoConfig.register(HfRopeConfig.model_type, HfRopeConfig)
AutoTokenizer.register(HfRopeConfig, tokenizer_class=BertTokenizer)
HfRopeConfig.register_for_auto_class()
for auto_class, name_table in NAME_TABLES.items():
    class_name = AUTO_MAP[auto_class].split(".")[-1]
    model_class = getattr(modeling_hf_rope, class_name)
    getattr(transformers, auto_class).register(HfRopeConfig, model_class)
    name_table[HfRopeConfig.model_type] = class_name
    if auto_class != "AutoModelForPreTraining":  # the masked-LM class, which is saved under its own name
        model_class.register_for_auto_class(auto_class)

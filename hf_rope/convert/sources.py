"""SOURCES: every architecture that can be converted, by the `model_type` of its configuration."""

from .from_albert import AlbertSource
from .from_bert import BertSource
from .from_deberta import DebertaSource
from .from_deberta_v2 import DebertaV2Source
from .from_electra import ElectraSource
from .from_hf_rope import HfRopeSource
from .from_mpnet import MPNetSource
from .from_roberta import RobertaSource
from .from_roformer import RoFormerSource
from .source import Source

SOURCES: dict[str, Source] = {
    "bert": BertSource(),
    "roberta": RobertaSource(),
    "xlm-roberta": RobertaSource(),
    "camembert": RobertaSource(),
    "electra": ElectraSource(),
    "albert": AlbertSource(),
    "mpnet": MPNetSource(),
    "deberta": DebertaSource(),
    "deberta-v2": DebertaV2Source(),
    "roformer": RoFormerSource(),
    "hf_rope": HfRopeSource(),
}

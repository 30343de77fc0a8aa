"""SCHEMES: every position scheme by the name that `position_embedding_type` takes."""

from .position_alibi import AlibiPosition
from .position_base import PositionScheme
from .position_deberta import DebertaPosition
from .position_fire import FirePosition
from .position_kerple import KerplePosition
from .position_learned import LearnedPosition
from .position_none import NonePosition
from .position_relative_key import RelativeKeyPosition, RelativeKeyQueryPosition
from .position_rotary import RotaryPosition
from .position_shaw import ShawPosition
from .position_sinusoidal import SinusoidalPosition
from .position_t5 import T5Position
from .position_transformer_xl import TransformerXLPosition
from .position_tupe import TupePosition

SCHEMES: dict[str, type[PositionScheme]] = {
    "none": NonePosition,
    "sinusoidal": SinusoidalPosition,
    "learned": LearnedPosition,
    "shaw": ShawPosition,
    "relative_key": RelativeKeyPosition,
    "relative_key_query": RelativeKeyQueryPosition,
    "transformer_xl": TransformerXLPosition,
    "t5": T5Position,
    "tupe": TupePosition,
    "deberta": DebertaPosition,
    "alibi": AlibiPosition,
    "kerple": KerplePosition,
    "fire": FirePosition,
    "rotary": RotaryPosition,
}

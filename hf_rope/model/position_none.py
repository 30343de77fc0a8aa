"""No positions at all: the control of every comparison."""

from .position_base import PositionScheme


class NonePosition(PositionScheme):
    """The encoder sees a bag of tokens: outputs do not depend on `position_ids`."""

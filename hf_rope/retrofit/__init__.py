"""A trained encoder under other positions, without labels: it learns to give the states that it gave before.

Not shipped with checkpoints: what comes out is an ordinary hf_rope model.
"""

from .recipe import Recipe
from .retrofitting import Retrofitted, retrofit

__all__ = ["Recipe", "Retrofitted", "retrofit"]

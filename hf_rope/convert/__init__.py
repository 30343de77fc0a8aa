"""Weights in from other architectures, between position schemes, and back: `convert` and `to_native`.

Not shipped with checkpoints: what comes out is an ordinary hf_rope model, or a native one.
"""

from .conversion import convert
from .native import to_native
from .sources import SOURCES
from .weights import Report

__all__ = ["SOURCES", "Report", "convert", "to_native"]

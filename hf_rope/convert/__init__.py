"""Weights in from other architectures, between position schemes, and back: `convert` and `to_native`.

Not shipped with checkpoints: what comes out is an ordinary hf_rope model, or a native one.
"""

from .conversion import convert, convert_with_report
from .native import to_native, to_native_with_report
from .report import Report
from .sources import SOURCES

__all__ = ["SOURCES", "Report", "convert", "convert_with_report", "to_native", "to_native_with_report"]

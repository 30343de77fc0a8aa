"""Models out to where they are served: `export` writes a folder with an ONNX graph, `to_onnx` a graph alone."""

from .folder import Exported, export, stages
from .graph import to_onnx

__all__ = ["Exported", "export", "stages", "to_onnx"]

"""to_int8: a graph with its linear layers and embeddings in int8."""

import re
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from .quiet import quiet

SCOPES = "pkg.torch.onnx.name_scopes"
"""Where PyTorch writes of a node which modules it is from."""


def to_int8(graph: Path, path: Path) -> None:
    """Writes the graph that `to_onnx` wrote with weights in int8, a scale a column, and activations in uint8.

    Activations are scaled by each batch's own range. The feed-forward's second product stays in float32: what comes out
    of the activation has few large numbers, which leave few steps for all others. In all-MiniLM-L6-v2 the least cosine
    of a text's embedding is then 0.994, and 0.987 with it (0.911 with one scale a tensor).
    """
    nodes = onnx.load(graph, load_external_data=False).graph.node
    with quiet():
        quantize_dynamic(
            graph,
            path,
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[node.name for node in nodes if is_after_activation(node)],
        )


def is_after_activation(node: onnx.NodeProto) -> bool:
    """Whether a node is of a feed-forward's second linear layer, `layers.N.output`."""
    scopes = {x.key: x.value for x in node.metadata_props}.get(SCOPES, "")
    return re.search(r"\blayers\.\d+\.output'", scopes) is not None

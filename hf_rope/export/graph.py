"""to_onnx: a model's forward as an ONNX graph, which takes any batch and any length that the model takes."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from onnxscript import ir
from torch import nn
from transformers import PreTrainedModel

from ..model.configuration_hf_rope import HfRopeConfig
from ..model.modeling_hf_rope import HfRopeForMultipleChoice
from .quiet import quiet

SIZES = {"batch_size": 2, "num_choices": 3, "sequence_length": 7}
"""The dimensions of the inputs, any size of which the graph takes, and the sizes of the batch that it is made from."""
LARGE = 3 * 2**29
"""Bytes of weights above which they go to a file of their own, since an ONNX file holds 2 GiB at most."""


class Outputs(nn.Module):
    """A model as a function from named tensors to some of its outputs, which is what a graph can be made of."""

    def __init__(self, model: PreTrainedModel, names: list[str]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, input_ids, attention_mask, token_type_ids=None) -> tuple[torch.Tensor, ...]:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        output = self.model(**inputs, **without_cache(self.model))
        return tuple(output[name] for name in self.names)


def without_cache(model: PreTrainedModel) -> dict[str, bool]:
    """The keyword with which a decoder keeps nothing; an encoder has none."""
    return {"use_cache": False} if model.config.is_decoder else {}


def to_onnx(model: PreTrainedModel, path: str | Path) -> None:
    """Writes a model's graph: what comes out at real tokens is what the model gives.

    Inputs are `input_ids` and `attention_mask`, (B, L) int64, or (B, choices, L) for multiple choice, and
    `token_type_ids` where the model has two types or more. Outputs have the names that transformers gives them, without
    the encoder's `pooler_output`: `last_hidden_state`, `logits`, or `start_logits` and `end_logits`. Position ids are
    counted in the graph, from the first real token. A decoder's graph has no cache. Weights of more than 1.5 GiB go to
    `path` with "_data" at its end.

    Args:
        model: of hf_rope, in eval mode, on a CPU and in the dtype that the graph is to have.
        path: the file to write.

    Raises:
        TypeError: the model is of another architecture.
        ValueError: the model attends to an encoder's states, is in training mode, or reads one token alone.
    """
    if not isinstance(model, PreTrainedModel) or model.config.model_type != HfRopeConfig.model_type:
        raise TypeError(
            f"to_onnx takes an hf_rope model, and got a {type(model).__name__}: make one of it with hf_rope.convert."
        )
    path = Path(path)
    config: Any = model.config
    if config.add_cross_attention:
        raise ValueError(
            "The model has add_cross_attention=True and attends to an encoder's states, which are no input of the "
            "graph: export its encoder, or a decoder without cross-attention."
        )
    if model.training:
        raise ValueError("The model is in training mode, and dropout would be in the graph: call model.eval() first.")
    dimensions = [name for name in SIZES if name != "num_choices" or isinstance(model, HfRopeForMultipleChoice)]
    base: Any = model.base_model
    if base.position.max_length == 1:
        raise ValueError(
            f"The model reads one token at most (max_position_embeddings={config.max_position_embeddings}), and a "
            "graph is made for two or more: give the model more positions."
        )
    limits: dict[str, int | None] = {"sequence_length": base.position.max_length}
    dynamic = {place: torch.export.Dim(name, max=limits.get(name)) for place, name in enumerate(dimensions)}
    ids = torch.zeros([min(SIZES[name], limits.get(name) or SIZES[name]) for name in dimensions], dtype=torch.long)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if config.type_vocab_size > 1:
        inputs["token_type_ids"] = torch.zeros_like(ids)
    names = output_names(model, inputs)
    settings: dict[str, Any] = {"dynamic_shapes": dict.fromkeys(inputs, dynamic), "output_names": names}
    with quiet(), eager(model), torch.no_grad():
        program: Any = torch.onnx.export(Outputs(model, names), kwargs=inputs, dynamo=True, verbose=False, **settings)
    size = sum(parameter.nbytes for parameter in model.parameters())
    ir.save(program.model, path, external_data=f"{path.name}_data" if size > LARGE else None)


@contextlib.contextmanager
def eager(model: PreTrainedModel) -> Iterator[None]:
    """Inside it attention is written out, which ONNX Runtime computes faster than the parts that sdpa becomes.

    13% on 8 texts of up to 128 tokens and 21% on 4 of up to 512, all-MiniLM-L6-v2 on one thread.
    """
    kind = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(kind)


@torch.no_grad()
def output_names(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> list[str]:
    """The names of the tensors that the model gives, but for the pooler's."""
    output = model(**inputs, **without_cache(model))
    return [name for name, x in output.items() if isinstance(x, torch.Tensor) and name != "pooler_output"]

"""Refuses inputs that the encoder cannot read, each in one sentence. Values are not read while a graph is traced."""

import torch
from transformers.utils.import_utils import is_tracing


def check_inputs(config, input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds) -> tuple[int, int]:
    """Returns batch size and length; raises ValueError or TypeError."""
    if (input_ids is None) == (inputs_embeds is None):
        given = "neither" if input_ids is None else "both"
        raise ValueError(f"The model takes input_ids or inputs_embeds, one of them, and got {given}.")
    if input_ids is not None:
        check_ids("input_ids", input_ids, config.vocab_size, "vocab_size")
        batch, length = input_ids.shape
    else:
        if inputs_embeds.ndim != 3 or inputs_embeds.shape[-1] != config.embedding_size:
            raise ValueError(
                f"inputs_embeds has shape {tuple(inputs_embeds.shape)}; it must be (batch, length, embedding_size="
                f"{config.embedding_size})."
            )
        batch, length = inputs_embeds.shape[:2]
    if token_type_ids is not None:
        if token_type_ids.shape != (batch, length):
            raise ValueError(
                f"token_type_ids has shape {tuple(token_type_ids.shape)}; the input's is {(batch, length)}."
            )
        if config.type_vocab_size:
            check_ids("token_type_ids", token_type_ids, config.type_vocab_size, "type_vocab_size")
    if attention_mask is not None and attention_mask.ndim == 2 and attention_mask.shape != (batch, length):
        raise ValueError(f"attention_mask has shape {tuple(attention_mask.shape)}; the input's is {(batch, length)}.")
    if position_ids is not None:
        if is_float(position_ids):
            raise TypeError(f"position_ids has dtype {position_ids.dtype}; positions are whole numbers: pass .long().")
        if position_ids.ndim != 2 or position_ids.shape[0] not in (1, batch) or position_ids.shape[1] != length:
            raise ValueError(
                f"position_ids has shape {tuple(position_ids.shape)}; it must be {(batch, length)} or {(1, length)}."
            )
        if position_ids.numel() and not is_tracing(position_ids) and int(position_ids.min()) < 0:
            raise ValueError(f"position_ids holds {int(position_ids.min())}; positions start at 0.")
    return batch, length


def check_ids(name: str, ids: torch.Tensor, size: int, key: str) -> None:
    """Refuses anything but a (batch, length) tensor of whole numbers from 0 to size - 1."""
    if is_float(ids):
        raise TypeError(f"{name} has dtype {ids.dtype}; ids are whole numbers: pass .long().")
    if ids.ndim != 2:
        raise ValueError(f"{name} has shape {tuple(ids.shape)}; it must be (batch, length).")
    if ids.numel() and not is_tracing(ids):
        low, high = (int(x) for x in ids.aminmax())
        if low < 0 or high >= size:
            raise ValueError(
                f"{name} holds {low if low < 0 else high}, outside 0 to {size - 1} ({key}={size}): the tokenizer and the "
                "model do not belong together, or the embeddings need resize_token_embeddings."
            )


def is_float(x: torch.Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()

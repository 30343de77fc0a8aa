"""Refuses inputs that the encoder cannot read, each in one sentence. Values are read where that is free."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from transformers.cache_utils import Cache
from transformers.utils import logging
from transformers.utils.import_utils import is_tracing

from .device import reads_are_free

logger: Any = logging.get_logger(__name__)


def cached_length(cache: Cache | None) -> int:
    """P, the number of cached tokens; a tensor where a static cache has one that is not free to read."""
    length = 0 if cache is None else cache.get_seq_length()
    return int(length) if isinstance(length, torch.Tensor) and reads_are_free(length) else length


def check_inputs(
    config, *, input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, cache=None
) -> tuple[int, int]:
    """Returns batch size and length, without the cached tokens; raises ValueError or TypeError."""
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
        if not inputs_embeds.is_floating_point():
            raise TypeError(f"inputs_embeds has dtype {inputs_embeds.dtype}; it must be floats: ids go to input_ids.")
        batch, length = inputs_embeds.shape[:2]
    if 0 in (batch, length):
        raise ValueError(f"The input has shape {(batch, length)}; it must hold one token at least.")
    if token_type_ids is not None:
        if token_type_ids.shape != (batch, length):
            raise ValueError(
                f"token_type_ids has shape {tuple(token_type_ids.shape)}; the input's is {(batch, length)}."
            )
        if config.type_vocab_size:
            check_ids("token_type_ids", token_type_ids, config.type_vocab_size, "type_vocab_size")
    if attention_mask is not None:
        check_mask(attention_mask, batch, length, cache)
    if position_ids is not None:
        check_whole("position_ids", position_ids)
        if position_ids.ndim != 2 or position_ids.shape[0] not in (1, batch) or position_ids.shape[1] != length:
            raise ValueError(
                f"position_ids has shape {tuple(position_ids.shape)}; it must be {(batch, length)} or {(1, length)}."
            )
        if position_ids.numel() and reads_are_free(position_ids) and int(position_ids.min()) < 0:
            raise ValueError(f"position_ids holds {int(position_ids.min())}; positions start at 0.")
    return batch, length


def warn_unread(kwargs: Mapping[str, Any], known: Collection[str]) -> None:
    """Warns, once each, of arguments that are given and that no forward reads, which `**kwargs` takes in silence."""
    if is_tracing():
        return
    for key, value in kwargs.items():
        if value is not None and key not in known:
            logger.warning_once(
                f"The forward has no argument {key!r}, and nothing reads it: correct its name, or leave it out."
            )


def check_bounds(bounds: Mapping[str, Any], batch: int, length: int) -> None:
    """Refuses what are not the rising bounds 0 to length of the sequences in a batch of one row."""
    if "cu_seq_lens_q" not in bounds:
        raise ValueError(f"{', '.join(bounds)} are given without cu_seq_lens_q: pass that, or none of them.")
    ends, keys = bounds["cu_seq_lens_q"], bounds.get("cu_seq_lens_k")
    if batch != 1:
        raise ValueError(f"cu_seq_lens_q tells the sequences of one row, and the batch has {batch}: use position_ids.")
    if ends.ndim != 1:
        raise ValueError(
            f"cu_seq_lens_q has the shape {tuple(ends.shape)}; it is one row of numbers, which must rise from 0 to "
            f"the length of the batch's row, {length}."
        )
    if reads_are_free(ends) and (int(ends[0]) != 0 or int(ends[-1]) != length or bool((ends.diff() <= 0).any())):
        raise ValueError(f"cu_seq_lens_q is {ends.tolist()}; it must rise from 0 to the row's length, {length}.")
    if keys is not None and (keys.shape != ends.shape or (reads_are_free(keys) and not torch.equal(keys, ends))):
        raise ValueError("cu_seq_lens_k differs from cu_seq_lens_q, and tokens see their own sequence: leave it out.")


def check_no_cache(segments: torch.Tensor | None, cache: Cache | None) -> None:
    """Refuses to fill a cache with packed sequences, which nothing could go on from."""
    if segments is not None and cache is not None:
        raise ValueError(
            "position_ids are of packed sequences, which cannot be continued, and a cache is given: leave the cache "
            "out."
        )


def check_choices(input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> int:
    """Returns the number of choices; refuses ids that are not (batch, choices, length)."""
    for name, x, ndim in (("input_ids", input_ids, 3), ("inputs_embeds", inputs_embeds, 4)):
        if x is not None and x.ndim != ndim:
            raise ValueError(
                f"{name} has shape {tuple(x.shape)}; for multiple choice it is (batch, choices, length, ...)."
            )
    return next((x.shape[1] for x in (input_ids, inputs_embeds) if x is not None), 1)


def check_labels(labels: torch.Tensor | None, shape: torch.Size, classes: int) -> None:
    """Refuses anything but a label for each of a shape, from 0 to classes - 1, or -100 where no loss is taken."""
    if labels is None:
        return
    check_whole("labels", labels)
    if labels.shape != shape:
        raise ValueError(f"labels has shape {tuple(labels.shape)}; the input's is {tuple(shape)}.")
    if reads_are_free(labels):
        outside = labels[((labels < 0) & (labels != -100)) | (labels >= classes)]
        if len(outside):
            raise ValueError(
                f"labels holds {int(outside[0])}, outside 0 to {classes - 1}; where no loss is to be taken it is -100."
            )


def check_row_labels(labels: torch.Tensor, config, batch: int) -> None:
    """As `check_labels`, a label a row, of the one of three problems whose labels are classes."""
    if isinstance(labels, list | tuple):
        check_whole("labels", labels)
    classes = config.problem_type in (None, "single_label_classification") and config.num_labels > 1
    if classes and not labels.is_floating_point():
        check_labels(labels.view(-1), torch.Size([batch]), config.num_labels)


def check_places(name: str, places: torch.Tensor | None) -> None:
    """Refuses token indices below 0."""
    if places is not None:
        check_whole(name, places)
        if places.numel() and reads_are_free(places) and int(places.min()) < 0:
            raise ValueError(f"{name} holds {int(places.min())}; tokens are counted from 0.")


def check_kept(logits_to_keep) -> None:
    """Refuses part of the logits where there are labels."""
    if isinstance(logits_to_keep, torch.Tensor) or logits_to_keep:
        raise ValueError(
            f"logits_to_keep is {logits_to_keep} and labels are given: a loss needs all logits; leave one of them out."
        )


def check_mask(mask: torch.Tensor, batch: int, length: int, cache) -> None:
    """Refuses anything but (B, P + L), P tokens being cached, and what broadcasts to (B, H, L, K)."""
    past = cached_length(cache)
    if isinstance(past, torch.Tensor):
        return
    if mask.ndim == 2 and mask.is_floating_point() and reads_are_free(mask) and bool((mask < 0).any()):
        raise ValueError(
            f"attention_mask holds {float(mask.min()):g}, as one that is added to scores does; of two dimensions it is "
            "1 at real tokens and 0 at padding."
        )
    if mask.ndim == 4 and not mask.is_floating_point() and mask.dtype != torch.bool:
        raise TypeError(
            f"attention_mask has dtype {mask.dtype}; of four dimensions it must be bool, True where a query sees a key "
            "(pass .bool()), or floats that are added to scores."
        )
    keys = past + length if cache is None else cache.get_mask_sizes(length, 0)[0]
    fits = mask.ndim == 4 and all(x in (1, y) for x, y in zip(mask.shape[::2], (batch, length), strict=True))
    if mask.shape != (batch, past + length) and not (fits and mask.shape[3] == keys):
        shape, cached = tuple(mask.shape), f" ({past} cached and {length} new tokens)" if past else ""
        raise ValueError(
            f"attention_mask has shape {shape}; it must have the input's, {(batch, past + length)}{cached}, "
            f"or be (batch, heads, {length}, {keys}), where batch, heads and queries may be 1."
        )


def check_decoding(config, cache, encoder_hidden_states, bounds: Mapping[str, Any], is_causal: bool | None) -> None:
    """Refuses what only a decoder, or one with cross-attention, can read."""
    if is_causal is not None and is_causal != config.is_decoder:
        raise ValueError(
            f"is_causal is {is_causal} and is_decoder is {config.is_decoder}, which says who sees later tokens: leave "
            "is_causal out, or pass a 4-D attention_mask."
        )
    if cache is not None and not config.is_decoder:
        raise ValueError(
            "A cache is given and is_decoder is False: an encoder keeps none; leave it out, or set is_decoder=True."
        )
    if encoder_hidden_states is not None and not config.add_cross_attention:
        raise ValueError(
            "encoder_hidden_states are given and add_cross_attention is False: set it, and is_decoder, to True in the "
            "configuration."
        )
    if bounds and cache is not None:
        raise ValueError("cu_seq_lens_q tells packed sequences apart, which cannot be continued: leave the cache out.")


def check_attentions(config, kwargs) -> None:
    """Refuses to record probabilities where there are none."""
    if config.attention_type != "softmax" and kwargs.get("output_attentions", config.output_attentions):
        raise ValueError(
            f"output_attentions is True and attention_type={config.attention_type!r} has no probabilities: leave it "
            "out, or use attention_type='softmax'."
        )


def check_ids(name: str, ids: torch.Tensor, size: int, key: str) -> None:
    """Refuses anything but a (batch, length) tensor of whole numbers from 0 to size - 1."""
    check_whole(name, ids)
    if ids.ndim != 2:
        raise ValueError(f"{name} has shape {tuple(ids.shape)}; it must be (batch, length).")
    if ids.numel() and reads_are_free(ids):
        low, high = (int(x) for x in ids.aminmax())
        if low < 0 or high >= size:
            remedy = "the tokenizer and the model do not fit, or the embeddings need resize_token_embeddings"
            if key != "vocab_size":
                remedy = f"build the model with a larger {key}"
            raise ValueError(
                f"{name} holds {low if low < 0 else high}, outside 0 to {size - 1} ({key}={size}): {remedy}."
            )


def check_whole(name: str, x: torch.Tensor) -> None:
    """Refuses lists, floats and truth values."""
    if isinstance(x, list | tuple):
        raise TypeError(f"{name} is a {type(x).__name__}; pass a tensor (return_tensors='pt' in the tokenizer).")
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"{name} has dtype {x.dtype}; it must hold whole numbers: pass .long().")

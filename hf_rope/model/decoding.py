"""A decoder's cache: how much it holds, and at which positions its tokens lie.

It keeps keys and values as they were projected, before the scheme's `rotate`, so that every step computes what a
forward over all tokens would. Shapes: B batch, P cached tokens, L new ones, K keys: P + L, or all places of a static
cache.
"""

import torch
from torch.nn import functional as F
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.import_utils import is_tracing

CACHE = "cache" if "cache" in CausalLMOutputWithCrossAttentions.__dataclass_fields__ else "past_key_values"
"""The cache's name in outputs: `cache` from transformers 5.24 on, `past_key_values` before."""

takes_cache = deprecate_kwarg("past_key_values", "6.0.0" if CACHE == "cache" else "0", new_name="cache")
"""Makes a forward take `cache` by its older name too, with a warning where transformers no longer uses that."""


def new_cache(config) -> Cache:
    """An empty cache, with a part for the encoder's keys and values where there is cross-attention."""
    cache = DynamicCache(config=config)
    return EncoderDecoderCache(cache, DynamicCache(config=config)) if config.add_cross_attention else cache


def cached_length(cache: Cache | None) -> int:
    """P; under compile, a tensor where the cache is a static one."""
    length = 0 if cache is None else cache.get_seq_length()
    return int(length) if isinstance(length, torch.Tensor) and not is_tracing(length) else length


def key_positions(position_ids: torch.Tensor, keep: torch.Tensor | None, past: int, size: int) -> torch.Tensor:
    """(B or 1, K): the positions of all keys, counted from those of the new tokens, one a real token.

    Args:
        position_ids: (B or 1, L), of the new tokens.
        keep: (B, P + L) bool, True at real tokens; None where all are.
        past: P.
        size: K.

    Raises:
        ValueError: the new tokens' positions do not count up by one, so those of the cached tokens are not known.
    """
    length, device = position_ids.shape[-1], position_ids.device
    if keep is None:
        # Under a 4-D mask, padding on the left shows as zeros only.
        count, real = torch.arange(size, device=device)[None], position_ids > 0
        offset = position_ids - past - torch.arange(length, device=device)
        first = offset[:, -1:]
    else:
        count, real = F.pad(keep, (0, size - keep.shape[-1])).cumsum(-1), keep[:, past : past + length]
        offset = position_ids - count[:, past : past + length]
        first = offset.masked_fill(~real, -size).amax(-1, keepdim=True)
    if not is_tracing(position_ids):
        strays = (offset != first) & real
        if bool(strays.any()):
            raise ValueError(
                f"position_ids are {position_ids[strays.any(-1)][0].tolist()} where a cache is in use; with one, they "
                "must count up by one: leave them out and pad on the left only, or pass use_cache=False and all tokens."
            )
    return torch.minimum((first + count).clamp(min=0), position_ids.amax(-1, keepdim=True))

"""Where versions of transformers differ: the name of a decoder's cache. It can go with support for 5.23 and before."""

from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions
from transformers.utils.deprecation import deprecate_kwarg

CACHE = "cache" if "cache" in CausalLMOutputWithCrossAttentions.__dataclass_fields__ else "past_key_values"
"""The cache's name in outputs: `cache` from transformers 5.24 on, `past_key_values` before."""

takes_cache = deprecate_kwarg("past_key_values", "6.0.0" if CACHE == "cache" else "0", new_name="cache")
"""Makes a forward take `cache` by its older name too, with a warning where transformers no longer uses that."""

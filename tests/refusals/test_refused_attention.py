"""An attention that cannot compute the scheme is refused wherever it is named, with those that can."""

import pytest
from transformers import AttentionInterface, AutoModel

from helpers import refused, tiny_config, tiny_model
from hf_rope import SCHEMES, HfRopeModel

KINDS = {"sdpa": "sdpa", "flex_attention": "flex_attention", "another": None}
KINDS |= dict.fromkeys(("flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2"), "flash_attention")
ALLOWED = {
    "shaw": ("eager",),
    "t5": ("eager", "sdpa", "flex_attention"),
    "rotary": ("eager", "sdpa", "flex_attention", "flash_attention"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_attention_that_cannot_compute_the_scheme(scheme, kind, folders):
    AttentionInterface.register("another", AttentionInterface()["sdpa"])
    allowed = SCHEMES[scheme].attn_implementations(tiny_config(scheme))
    assert allowed == ALLOWED.get(scheme, allowed)
    ways = [
        lambda: HfRopeModel(tiny_config(scheme, attn_implementation=kind)),
        lambda: AutoModel.from_config(tiny_config(scheme), attn_implementation=kind),
        lambda: AutoModel.from_pretrained(folders[scheme], attn_implementation=kind),
        lambda: (model := tiny_model(scheme)).set_attn_implementation(kind) or model,
    ]
    for way in ways:
        if KINDS[kind] in allowed or (KINDS[kind] is None and "sdpa" in allowed):
            if KINDS[kind] != "flash_attention":  # not installed everywhere
                assert way().config._attn_implementation == kind
        else:
            names = (f"attn_implementation='{kind}' cannot compute", f"'{scheme}'")
            refused(way, *names, f"it works with: {', '.join(allowed)}.")


def test_attention_that_does_not_exist():
    model = tiny_model("rotary")
    with pytest.raises(ValueError, match=r'attn_implementation="spda". is not supported'):
        model.set_attn_implementation("spda")
    assert model.config._attn_implementation == "sdpa"

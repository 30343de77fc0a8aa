"""What a decoder and its cache cannot do is refused: the arguments that do not go together, and the way out."""

import pytest
import torch
from transformers import DynamicCache

from helpers import refused, tiny_model, token_ids
from hf_rope import HfRopeForCausalLM

IDS = token_ids(2, 7)
PACKED = torch.arange(7)[None] % 4


def decoder():
    return tiny_model("rotary", HfRopeForCausalLM, is_decoder=True)


def cached(**inputs):
    """A forward of the decoder after one of 7 tokens."""
    model = decoder()
    return model(**inputs, past_key_values=model(IDS).past_key_values)


def checkpointed():
    model = decoder().train()
    model.gradient_checkpointing_enable()
    return model(IDS, past_key_values=DynamicCache())


# name: the call, and what the refusal mentions
CALLS = {
    "a cache in an encoder": (
        lambda: tiny_model("none")(IDS, past_key_values=DynamicCache()),
        *("cache is given", "is_decoder is False", "leave it out, or set is_decoder=True"),
    ),
    "an encoder's states without cross-attention": (
        lambda: decoder()(IDS, encoder_hidden_states=torch.zeros(2, 3, 32)),
        *("encoder_hidden_states", "add_cross_attention is False", "set it, and is_decoder, to True"),
    ),
    "mask of the new tokens alone": (
        lambda: cached(input_ids=IDS, attention_mask=torch.ones_like(IDS)),
        *("attention_mask has shape (2, 7)", "the input's, (2, 14) (7 cached and 7 new tokens)"),
    ),
    "packed sequences after a cache": (
        lambda: cached(input_ids=IDS[:1], cu_seq_lens_q=torch.tensor([0, 3, 7])),
        *("cu_seq_lens_q", "cannot be continued", "leave the cache out"),
    ),
    "packed positions into an empty cache": (
        lambda: decoder()(IDS[:1], position_ids=PACKED, past_key_values=DynamicCache()),
        *("position_ids are of packed sequences", "cannot be continued", "leave the cache out"),
    ),
    "positions with gaps after a cache": (
        lambda: cached(input_ids=IDS[:, :2], position_ids=torch.tensor([[7, 9]])),
        *("position_ids are [7, 9]", "they must count up by one", "leave them out"),
    ),
    "a cache under checkpointing": (
        checkpointed,
        *("cache is given", "gradient checkpointing", "leave it out"),
    ),
    "continuous batching": (
        lambda: decoder().set_attn_implementation("paged|sdpa"),
        *("attn_implementation='paged|sdpa'", "continuous batching", "keys that are already placed"),
    ),
    "some logits with labels": (
        lambda: decoder()(IDS, labels=IDS, logits_to_keep=1),
        *("logits_to_keep is 1", "labels", "leave one of them out"),
    ),
}


@pytest.mark.parametrize("row", CALLS.values(), ids=CALLS)
def test_decoding(row):
    call, *mentions = row
    refused(call, *mentions)

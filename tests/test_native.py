"""With copied weights, each scheme equals the native class of transformers: hidden states and gradients."""

import pytest
import torch
from torch.nn import functional as F
from transformers import XLNetConfig
from transformers.models.roformer.modeling_roformer import RoFormerSinusoidalPositionalEmbedding
from transformers.models.xlnet.modeling_xlnet import XLNetLayer, XLNetModel

from benchmarks import native
from helpers import tiny_model, token_ids

SIZES = {
    "vocab_size": 99,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 300,
}
DEBERTA = {**SIZES, "pos_att_type": ["c2p", "p2c"], "norm_rel_ebd": "layer_norm"}
PAIRS = {
    "bert": lambda: native.pair("Bert", **SIZES),
    "bert-masked-lm": lambda: native.pair("Bert", "ForMaskedLM", **SIZES),
    "roformer": lambda: native.pair("RoFormer", **SIZES),
    "roformer-rotary-value": lambda: native.pair("RoFormer", **SIZES, rotary_value=True),
    "roformer-factorised": lambda: native.pair("RoFormer", **SIZES, embedding_size=24),
    "roformer-masked-lm": lambda: native.pair("RoFormer", "ForMaskedLM", **SIZES),
    "mpnet": lambda: native.pair("MPNet", **SIZES),
    "deberta-v3": lambda: native.deberta_v2(**DEBERTA, position_buckets=32, share_att_key=True),
    "deberta-buckets-beyond": lambda: native.deberta_v2(
        **DEBERTA, position_buckets=16, max_relative_positions=40, share_att_key=True
    ),
    "deberta-no-buckets": lambda: native.deberta_v2(**DEBERTA, max_relative_positions=50, share_att_key=True),
    "deberta-own-projections": lambda: native.deberta_v2(**DEBERTA, position_buckets=32, share_att_key=False),
    "deberta-absolute": lambda: native.deberta_v2(**DEBERTA, position_biased_input=True),
    "deberta-c2p": lambda: native.deberta_v2(**{**DEBERTA, "pos_att_type": ["c2p"]}, position_buckets=32),
    "deberta-p2c": lambda: native.deberta_v2(**{**DEBERTA, "pos_att_type": ["p2c"], "norm_rel_ebd": "none"}),
}


def batch() -> dict[str, torch.Tensor]:
    mask = torch.ones(3, 200, dtype=torch.long)
    mask[1, 150:], mask[2, 40:] = 0, 0
    ids = token_ids(3, 200).clamp(min=2)  # MPNet does not count a token 1, which it reads as padding
    return {"input_ids": ids * mask + (1 - mask), "attention_mask": mask}


@pytest.mark.parametrize("pair", PAIRS)
def test_equals_the_native_class(pair, record_property):
    torch.manual_seed(0)
    theirs, ours = PAIRS[pair]()
    inputs = batch()
    real = inputs["attention_mask"].bool()
    weights = torch.randn(*real.shape, 99)
    outputs, gradients = [], []
    for model in (theirs, ours):
        x = model(**inputs)[0][real]
        (x * weights[real][:, : x.shape[-1]]).sum().backward()
        outputs.append(x.detach())
        gradients.append(model.get_input_embeddings().weight.grad)
    record_property("greatest difference", float((outputs[0] - outputs[1]).abs().max()))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-4 * float(gradients[0].abs().max()))


def test_transformer_xl_equals_xlnet_in_both_directions():
    torch.manual_seed(0)
    config = XLNetConfig(vocab_size=99, d_model=32, n_layer=1, n_head=4, d_inner=48, attn_type="bi", dropout=0.0)
    config.layer_norm_eps = 1e-12
    theirs, model = XLNetLayer(config), tiny_model("transformer_xl", num_hidden_layers=1, type_vocab_size=0)
    model.embedding_norm = torch.nn.Identity()
    ours = model.layers[0]
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
        attention, size = theirs.rel_attn, 32
        mine = ours.attention
        for module, weight in ((mine.query, attention.q), (mine.key, attention.k), (mine.value, attention.v)):
            module.weight.copy_(weight.view(size, size).T), module.bias.zero_()
        mine.output.weight.copy_(attention.o.view(size, size)), mine.output.bias.zero_()
        mine.position.relative.copy_(attention.r.view(size, size).T)
        mine.position.content_bias.copy_(attention.r_w_bias), mine.position.position_bias.copy_(attention.r_r_bias)
        for module, other in (
            (ours.attention_norm, attention.layer_norm),
            (ours.intermediate, theirs.ff.layer_1),
            (ours.output, theirs.ff.layer_2),
            (ours.output_norm, theirs.ff.layer_norm),
        ):
            module.load_state_dict(other.state_dict())
    x = torch.randn(2, 30, size)
    r = XLNetModel(config).relative_positional_encoding(30, 30, bsz=2)
    expected = theirs(x.transpose(0, 1), None, None, None, r, None)[0].transpose(0, 1)
    apart = torch.arange(30) + torch.tensor([[0], [11]])
    for position_ids in (None, apart):  # the latter takes the way of positions whose differences are not known
        found = model(inputs_embeds=x, position_ids=position_ids).last_hidden_state
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_sinusoidal_equals_roformers_table_up_to_the_order_of_columns():
    table = RoFormerSinusoidalPositionalEmbedding(50, 32).create_weight()
    ours = tiny_model("sinusoidal").position.embed(torch.zeros(1, 50, 32), torch.arange(50)[None])[0]
    torch.testing.assert_close(torch.cat((ours[:, ::2], ours[:, 1::2]), dim=1), table, rtol=0, atol=1e-5)
    assert F.mse_loss(ours, table) > 0.1

"""to_native gives back the native model that computes the same, or says that there is none."""

import pytest
import torch

import hf_rope
from helpers import tiny_model
from hf_rope.convert import convert, to_native
from hf_rope.convert.weights import HEADS
from native_models import ENCODERS, assert_equal, native


@pytest.mark.parametrize("head", ENCODERS)
@pytest.mark.parametrize("name", ["bert", "bert-untied", "roformer-summary"])
def test_there_and_back_is_the_source(name, head):
    theirs = native(name, head)
    again, report = to_native(convert(theirs), return_report=True)
    assert type(again) is type(theirs)
    assert not report.dropped
    for key, tensor in theirs.state_dict().items():
        if not key.endswith("predictions.bias"):  # not read where there is a decoder.bias
            assert torch.equal(again.state_dict()[key], tensor), key
    assert_equal(theirs, again, head=head, limit=0)


@pytest.mark.parametrize("head", ENCODERS)
@pytest.mark.parametrize("case", ["learned", "rotary", "rotary-value", "rotary-halves-value"])
def test_native_class_computes_what_hf_rope_does(case, head):
    changes = {"pooler_activation": "gelu"} if case != "learned" else {}
    ours = tiny_model(case, getattr(hf_rope, HEADS[head]), **changes).double()  # large weights: float32 rounds by 1e-5
    theirs = to_native(ours)
    assert_equal(theirs, ours, head=head)


CLASSIFIER = ("learned", "ForSequenceClassification")
NATIVE_REFUSALS = {
    "scheme": ("alibi", "Model", {}, "'alibi', which cannot be converted: only learned and rotary"),
    "mean": (*CLASSIFIER, {"classifier_pooling": "mean"}, "classifier_pooling='mean'.*Bert pools the first token"),
    "factorised": ("learned-factorised", "Model", {}, "embedding_size=20.*BERT's embeddings have hidden_size=32"),
    "pooler": ("learned", "Model", {"pooler_activation": "gelu"}, "pooler_activation='gelu'.*BERT's pooler has tanh"),
    "scaled": ("learned", "Model", {"scale_embedding": True}, "scale_embedding=True.*does not multiply its embed"),
    "types": ("rotary", "Model", {"type_vocab_size": 0}, "type_vocab_size=0.*one token type at least"),
    "theta": ("rotary-partial", "Model", {}, "rope_parameters=.*theta 10000"),
    "scaling": ("rotary-yarn", "Model", {}, "rope_parameters=.*theta 10000"),
    "activation": ("rotary", "ForSequenceClassification", {}, "pooler_activation='tanh'.*has hidden_act='gelu' there"),
}


@pytest.mark.parametrize("row", NATIVE_REFUSALS)
def test_what_no_native_class_computes_is_refused(row):
    case, head, changes, sentence = NATIVE_REFUSALS[row]
    with pytest.raises(ValueError, match=sentence):
        to_native(tiny_model(case, getattr(hf_rope, HEADS[head]), **changes))


def test_only_hf_rope_models_go_back():
    with pytest.raises(TypeError, match="takes an hf_rope model, and got a BertModel"):
        to_native(native("bert"))

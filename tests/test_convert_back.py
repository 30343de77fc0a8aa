"""to_native gives back the native model that computes the same, or says that there is none."""

import pytest
import torch

import hf_rope
from helpers import over, tiny_model
from hf_rope.convert import convert, to_native
from hf_rope.convert.weights import HEADS
from native_models import ENCODERS, NO_SUCH_HEAD, SOURCES, assert_equal, native

BACK = ["bert", "bert-untied", "roformer-summary", *(name for name in SOURCES if name.startswith(("ji", "no", "gte")))]


@over(name=BACK, head=ENCODERS, where=lambda name, head: (name, head) not in NO_SUCH_HEAD)
def test_there_and_back_is_the_source(name, head):
    theirs = native(name, head)
    again, report = to_native(convert(theirs), return_report=True)
    assert type(again) is type(theirs)
    assert not report.dropped
    for key, tensor in theirs.state_dict().items():
        if not key.endswith(("predictions.bias", "lm_head.bias")):  # not read where there is a decoder.bias
            assert torch.equal(again.state_dict()[key], tensor), key
    assert_equal(theirs, again, head=head, limit=0)


@pytest.mark.parametrize("head", ENCODERS)
@pytest.mark.parametrize("case", ["learned", "rotary", "rotary-value", "rotary-halves-value"])
def test_native_class_computes_what_hf_rope_does(case, head):
    changes = {"pooler_activation": "gelu"} if case != "learned" else {}
    ours = tiny_model(case, getattr(hf_rope, HEADS[head]), **changes).double()  # large weights: float32 rounds by 1e-5
    theirs = to_native(ours)
    assert_equal(theirs, ours, head=head)


ROTARY = ["rotary-yarn", "rotary-linear", "rotary-llama3"]
BLOCKS = ["rotary-gated", *(["rotary-gated-biases"] if "gte" in SOURCES else [])]


@over(
    case=[*ROTARY, *BLOCKS],
    head=["Model", "ForMaskedLM", "ForTokenClassification"],
)
def test_native_classes_of_other_thetas_and_blocks_compute_what_hf_rope_does(case, head):
    ours = tiny_model(case, getattr(hf_rope, HEADS[head])).double()
    theirs, report = to_native(ours, return_report=True)
    family = {"rotary-gated": "NomicBert", "rotary-gated-biases": "Gte"}.get(case, "JinaEmbeddingsV3")
    assert type(theirs).__name__ == family + head
    assert not report.dropped
    assert_equal(theirs, ours, head=head)


TRAINING = {
    **{"hidden_dropout_prob": 0.11, "attention_probs_dropout_prob": 0.22, "classifier_dropout": 0.33},
    **{"initializer_range": 0.05, "problem_type": "multi_label_classification", "chunk_size_feed_forward": 2},
    **{"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}},
}
"""What decides how a model trains and what its labels are called, each with a value that no class has by default."""


@pytest.mark.parametrize("case", ["learned", "rotary", "rotary-yarn", *BLOCKS])
def test_what_decides_training_and_labels_goes_to_the_native_class_and_back(case):
    activation = {"pooler_activation": "gelu"} if case == "rotary" else {}  # else it goes to Jina v3
    ours = tiny_model(case, hf_rope.HfRopeForSequenceClassification, **TRAINING, **activation)
    theirs, report = to_native(ours, return_report=True)
    kept = dict(TRAINING)
    if type(theirs).__name__.startswith("RoFormer"):  # which has no dropout of the classifier, and says so
        kept.pop("classifier_dropout")
        assert "Training differs" in " ".join(report.notes)
    for found in (theirs.config, convert(theirs).config):
        assert {key: getattr(found, key) for key in kept} == kept
    assert theirs.num_labels == 3


def test_a_classifier_of_tanh_goes_to_the_class_that_has_it():
    ours = tiny_model("rotary", hf_rope.HfRopeForSequenceClassification).double()
    theirs = to_native(ours)
    assert type(theirs).__name__ == "JinaEmbeddingsV3ForSequenceClassification"
    assert_equal(theirs, ours)


CLASSIFIER = ("learned", "ForSequenceClassification")
THETA = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
NATIVE_REFUSALS = {
    "scheme": ("alibi", "Model", {}, "'alibi', which cannot be converted: only learned and rotary"),
    "mean of choices": ("learned", "ForMultipleChoice", {"classifier_pooling": "mean"}, "classifier_pooling='mean'"),
    "mean": (*CLASSIFIER, {"classifier_pooling": "mean"}, "classifier_pooling='mean'.*Bert pools the first token"),
    "factorised": ("learned-factorised", "Model", {}, "embedding_size=20.*BERT's embeddings have hidden_size=32"),
    "pooler": ("learned", "Model", {"pooler_activation": "gelu"}, "pooler_activation='gelu'.*BERT's pooler has tanh"),
    "scaled": ("learned", "Model", {"scale_embedding": True}, "scale_embedding=True.*does not multiply its embed"),
    "types": ("rotary", "Model", {"type_vocab_size": 0}, "type_vocab_size=0.*one token type at least"),
    "partial": ("rotary-partial", "Model", {}, "rope_parameters=.*turn whole heads"),
    "dynamic": ("rotary-dynamic", "Model", {}, "rope_parameters=.*follow the longest sequence of the batch"),
    "longrope": ("rotary-longrope", "Model", {}, "rope_parameters=.*follow the longest sequence of the batch"),
    "values": ("rotary-value", "Model", THETA, "rotary_value=True.*JinaEmbeddingsV3 turns no values"),
    "theta of a factorised one": ("rotary", "Model", {**THETA, "embedding_size": 20}, "embedding_size=20.*=32"),
    "theta of a decoder": ("rotary", "ForCausalLM", {**THETA, "is_decoder": True}, "JinaEmbeddingsV3ForCausalLM"),
    "decoder without a head": ("rotary", "Model", {**THETA, "is_decoder": True}, "is_decoder=True.*is an encoder"),
    "choices": (
        "rotary-gated",
        "ForMultipleChoice",
        {},
        "would be a NomicBertForMultipleChoice, which transf.* the enc",
    ),
    "activation": ("rotary", "ForSequenceClassification", {"pooler_activation": "relu"}, "'relu'.*pooler has tanh"),
    "gelu": ("rotary", "ForMaskedLM", {**THETA, "hidden_act": "relu"}, "hidden_act='relu'.*masked-LM head has gelu"),
    "biases": ("rotary", "Model", {"attention_bias": False}, "attention_bias=False.*RoFormer is made with True"),
    "feed-forward": ("learned", "Model", {"feed_forward_type": "gated"}, "_type='gated'.*Bert is made with 'dense'"),
    "half a Nomic": ("rotary-gated", "Model", {"mlp_bias": True}, "mlp_bias=True.*NomicBert is made with False"),
}


@pytest.mark.parametrize("row", NATIVE_REFUSALS)
def test_what_no_native_class_computes_is_refused(row):
    case, head, changes, sentence = NATIVE_REFUSALS[row]
    with pytest.raises(ValueError, match=sentence):
        to_native(tiny_model(case, getattr(hf_rope, HEADS[head]), **changes))


def test_what_training_changes_is_said_either_way():
    ours = tiny_model("rotary", hf_rope.HfRopeForSequenceClassification, classifier_dropout=0.5)
    theirs, report = to_native(ours, return_report=True)
    for notes in (report.notes, convert(theirs, return_report=True)[1].notes):
        assert any("drops out (0.5) before its dense layer" in note for note in notes)
    theirs, report = to_native(tiny_model("learned", hf_rope.HfRopeForQuestionAnswering), return_report=True)
    for notes in (report.notes, convert(theirs, return_report=True)[1].notes):
        assert any("padding takes no part in the softmax" in note for note in notes)


@pytest.mark.parametrize("case", ["learned", "rotary", "rotary-gated"])
def test_ids_of_tokens_go_both_ways(case):
    theirs = to_native(tiny_model(case, bos_token_id=5, eos_token_id=6))
    back = convert(theirs)
    for config in (theirs.config, back.config):
        assert (config.bos_token_id, config.eos_token_id) == (5, 6)


def test_a_subclass_of_a_head_goes_back_as_its_head_and_another_class_is_refused():
    class OfTheUsers(hf_rope.HfRopeForMaskedLM):
        pass

    class NoHead(hf_rope.HfRopePreTrainedModel):
        pass

    ours = tiny_model("learned", OfTheUsers).double()
    assert_equal(to_native(ours), ours)
    with pytest.raises(ValueError, match="NoHead is no head of hf_rope, which has: HfRopeModel, "):
        to_native(NoHead(ours.config))


def test_only_hf_rope_models_go_back():
    with pytest.raises(TypeError, match="takes an hf_rope model, and got a BertModel"):
        to_native(native("bert"))

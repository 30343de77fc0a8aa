"""transformers' common model, configuration and generation tests, over native BERT and over every scheme and head."""

import unittest

import pytest
import transformers
from tests.generation.test_utils import GenerationTesterMixin
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, ids_tensor, random_attention_mask
from tests.test_training_mixin import TrainingTesterMixin

import hf_rope

ENCODER_HEADS = (
    *(transformers.AutoModel, transformers.AutoModelForMaskedLM, transformers.AutoModelForSequenceClassification),
    *(transformers.AutoModelForTokenClassification, transformers.AutoModelForQuestionAnswering),
    transformers.AutoModelForMultipleChoice,
)
DECODER_HEADS = (transformers.AutoModel, transformers.AutoModelForCausalLM)


class Tester:
    """What the common tests ask of a model's tester: its sizes, its configuration and a batch."""

    batch_size, seq_length, num_choices, is_training = 13, 7, 4, True
    hidden_size, num_hidden_layers, num_attention_heads, vocab_size, type_vocab_size = 64, 2, 4, 99, 16

    def __init__(self, config_class, settings, trained_class):
        self.config_class, self.settings = config_class, settings
        self.causal_lm_class = trained_class  # what the training test trains, of an encoder too

    def get_config(self):
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "type_vocab_size")
        sizes = {name: getattr(self, name) for name in names}
        return self.config_class(**sizes, intermediate_size=37, **self.settings)

    def prepare_config_and_inputs_for_common(self):
        shape = [self.batch_size, self.seq_length]
        inputs = {"input_ids": ids_tensor(shape, self.vocab_size), "attention_mask": random_attention_mask(shape)}
        return self.get_config(), {**inputs, "token_type_ids": ids_tensor(shape, self.type_vocab_size)}


class CommonTests(ModelTesterMixin, TrainingTesterMixin):
    """The tests of one model under all its heads; a subclass says which."""

    config_class: type
    settings: dict

    def setUp(self):
        self.model_tester = Tester(self.config_class, self.settings, self.all_model_classes[1])
        self.config_tester = ConfigTester(self, config_class=self.config_class, hidden_size=48, **self.settings)

    def test_config(self):
        self.config_tester.run_common_tests()


class Initialised:
    """Asks for what the common tests let old models off: that `_init_weights` alone sets every weight."""

    test_can_init_all_missing_weights_before_2023 = True


class NoRotation:
    """For a scheme without rotation, whose configuration has the field `rope_parameters` and refuses values for it."""

    def skip(self):
        self.skipTest("The scheme does not rotate.")

    for name in dir(ModelTesterMixin):
        if name.startswith("test_model_rope_") and callable(getattr(ModelTesterMixin, name)):
            vars()[name] = skip


class EagerOnly:
    """For a scheme that sdpa cannot compute: where the common tests switch to sdpa, it has to be refused."""

    def check_refusal(self):
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            assert model.config._attn_implementation == "eager"
            with pytest.raises(ValueError, match="cannot compute position_embedding_type"):
                model.set_attn_implementation("sdpa")

    test_sdpa_can_dispatch_non_composite_models = test_can_set_attention_dynamically = check_refusal
    for name in ("test_sdpa_padding_matches_padding_free_with_position_ids", "test_eager_matches_sdpa_generate"):
        if hasattr(GenerationTesterMixin, name):
            vars()[name] = check_refusal


class NoPacking:
    """For native BERT, which takes packed sequences for one."""

    def skip(self):
        self.skipTest("BERT takes packed sequences for one.")

    for name in dir(GenerationTesterMixin):
        if name.endswith("_padding_matches_padding_free_with_position_ids"):
            vars()[name] = skip


def add_tests(name: str, config_class: type, **settings) -> None:
    """Adds a model's TestCase to this module."""
    heads = DECODER_HEADS if settings.get("is_decoder") else ENCODER_HEADS
    bases: tuple[type, ...] = (CommonTests, unittest.TestCase)
    if settings.get("is_decoder"):
        bases = (GenerationTesterMixin, *bases)
    if config_class is hf_rope.HfRopeConfig:
        bases = (Initialised, *bases)
        scheme = hf_rope.SCHEMES[settings["position_embedding_type"]]
        if not scheme.rotates:
            bases = (NoRotation, *bases)
        if scheme.attn_implementations(config_class(**settings)) == ("eager",):
            bases = (EagerOnly, *bases)
    else:
        bases = (NoPacking, *bases)
    classes = tuple(head._model_mapping[config_class] for head in heads)
    contents = {"config_class": config_class, "settings": settings, "all_model_classes": classes, "model_tester": None}
    globals()[name] = type(name, bases, contents)


for part, of_part in (("Encoder", {}), ("Decoder", {"is_decoder": True})):
    add_tests(f"NativeBert{part}", transformers.BertConfig, **of_part)
    for scheme in hf_rope.SCHEMES:
        title = "".join(word.capitalize() for word in scheme.split("_"))
        add_tests(f"{title}{part}", hf_rope.HfRopeConfig, position_embedding_type=scheme, **of_part)

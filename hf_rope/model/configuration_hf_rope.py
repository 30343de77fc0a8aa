"""HfRopeConfig: everything that fixes an hf_rope model, its position scheme included."""

import copy
import difflib
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassError
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.utils import logging
from transformers.utils.versions import require_version

from .position_base import PositionScheme
from .positions import SCHEMES

require_version("transformers>=5.16", "Older ones leave a position_bias out, or fail in assisted generation.")

logger = logging.get_logger(__name__)

AUTO_MAP = {
    "AutoConfig": "configuration_hf_rope.HfRopeConfig",
    "AutoModel": "modeling_hf_rope.HfRopeModel",
    "AutoModelForMaskedLM": "modeling_hf_rope.HfRopeForMaskedLM",
    "AutoModelForCausalLM": "modeling_hf_rope.HfRopeForCausalLM",
    "AutoModelForPreTraining": "modeling_hf_rope.HfRopeForMaskedLM",
    "AutoModelForSequenceClassification": "modeling_hf_rope.HfRopeForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_hf_rope.HfRopeForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_hf_rope.HfRopeForQuestionAnswering",
    "AutoModelForMultipleChoice": "modeling_hf_rope.HfRopeForMultipleChoice",
}
"""Where a folder without this package's import finds each class: written into every config, for every head."""

OLD_NAMES = {"absolute": "learned"}
"""Values of `position_embedding_type` in older checkpoints, and what they are called here."""

ROPE_KEYS = ("rope_scaling", "rope_theta", "partial_rotary_factor")
"""What older configurations hold beside or instead of `rope_parameters`."""

BASE_KEYS = (
    "attn_implementation",
    "auto_map",
    "experts_implementation",
    "finetuning_task",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "per_layer_config",
    "quantization_config",
    "sbert_ce_default_activation_function",
    "sentence_transformers",
    "tie_last_hidden_states",
    "torch_dtype",
    "transformers_weights",
    *ROPE_KEYS,
)
"""Keys that the base class or Trainer takes or writes without their being fields."""

LEAST_SIZES = {
    **dict.fromkeys(("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"), 1),
    **dict.fromkeys(("max_position_embeddings", "embedding_size", "num_labels"), 1),
    **dict.fromkeys(("type_vocab_size", "chunk_size_feed_forward", "initializer_range", "layer_norm_eps"), 0),
}
OPTIONAL_ROPE_KEYS = ("attention_factor", "beta_fast", "beta_slow", "low_freq_factor", "high_freq_factor")
"""Keys of `rope_parameters` that may be None."""
LARGEST = 1e30
"""Larger numbers, or smaller parts of 1, are infinite or 0 in float32 after a product or two."""
ROPE_LIMITS: dict[str, tuple[Callable[[float], bool], str]] = {
    "rope_theta": (lambda x: 1 / LARGEST < x < LARGEST, "above 0"),
    "factor": (lambda x: 1 <= x < LARGEST, "of 1 or more"),
    "partial_rotary_factor": (lambda x: 0 < x <= 1, "above 0 and up to 1"),
    "original_max_position_embeddings": (lambda x: 1 <= x < LARGEST, "of 1 or more"),
    **dict.fromkeys(OPTIONAL_ROPE_KEYS, (lambda x: 0 < x < LARGEST, "above 0")),
}
FEATURE_KEYS: dict[str, tuple[str, ...]] = {"elu": (), "favor": ("num_features", "feature_seed", "redraw_interval")}
"""The feature maps of linear attention, and the settings that each reads."""

LINEAR_KEYS = ("feature_map", *FEATURE_KEYS["favor"])
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")


def plain_errors(cls):
    """The class with a `validate` that raises its checks' own errors, one sentence each, not `@strict`'s wrapping."""
    run_checks = cls.validate

    def validate(self) -> None:
        try:
            run_checks(self)
        except StrictDataclassClassValidationError as error:
            raise error.__cause__ or error from None

    # A subclass could not be @strict without the mark.
    validate.__is_defined_by_strict_decorator__ = True  # type: ignore[attr-defined]
    cls.validate = validate
    return cls


@plain_errors
@strict
class HfRopeConfig(PreTrainedConfig):
    """Configuration of the encoder, or with `is_decoder` of the decoder. Sizes default to BERT base.

    Args:
        vocab_size, hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, hidden_act: as in BERT.
        hidden_dropout_prob, attention_probs_dropout_prob, initializer_range, layer_norm_eps, pad_token_id: as in BERT.
        type_vocab_size: as in BERT; 0 leaves token types out.
        max_position_embeddings: rows of the position table of the schemes that have one; no limit for the others.
        embedding_size: width of the embeddings where it differs from `hidden_size` (ALBERT, ELECTRA), with a projection
            between them; None for `hidden_size`.
        scale_embedding: whether word embeddings are multiplied by sqrt(embedding_size), as in BART; None for what the
            scheme's source does. `inputs_embeds` are taken as they are: `get_input_embeddings()(ids)` is scaled.
        position_embedding_type: the position scheme, a key of `hf_rope.SCHEMES`.
        position_options: the scheme's own settings, see its `Options`; those left out get their defaults.
        rope_parameters: theta, scaling and `partial_rotary_factor` of a scheme that rotates, in transformers' form,
            such as `{"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0}`.
        attention_type: "softmax", or "linear" for RoFormer's eq. 19, under a scheme that adds nothing to scores or to
            values; `attention_probs_dropout_prob` is then without effect.
        attention_bias: whether query, key, value and output projections have biases.
        feed_forward_type: "dense", or "gated" for two projections to `intermediate_size`, the activation of one times
            the other (GEGLU and SwiGLU, with `hidden_act` "gelu" and "silu").
        mlp_bias: whether the feed-forward's layers have biases; the two projections of a gate have none either way.
        feature_map: of linear attention: "elu", phi(x) = elu(x) + 1, or "favor", FAVOR+, which estimates softmax.
        num_features: of "favor", an even number with rotary positions; None for four times the head size.
        feature_seed: of "favor": the random features of a new model follow from it, saved ones are loaded; None for 0.
        redraw_interval: of "favor": after how many training forwards features are drawn anew; None for never.
        classifier_pooling: "cls" pools the first real token through a dense layer, "mean" averages the real tokens.
        classifier_dropout: dropout before the classifiers; None for `hidden_dropout_prob`.
        pooler_activation: what follows the pooler's dense layer, named as `hidden_act`; "linear" for nothing.
        unpad_inputs: whether a CPU, and attention functions that take bounds, compute the real tokens of a padded batch
            only; False keeps every batch (B, L, D), which per-sample gradients and attribution need.
        sparse_prediction: whether an LM head in training computes logits at labelled tokens only; None for where their
            number is free to read, on a CPU and with `unpad_inputs`; True reads one number of an accelerator.
        tie_word_embeddings: whether the LM heads share the word embeddings.
        is_decoder: whether attention is causal, each token seeing itself and those before it.
        add_cross_attention: whether a decoder's layers also attend to `encoder_hidden_states`, without positions.
        use_cache: whether a decoder keeps keys and values in a cache where the caller does not say.
        bos_token_id, eos_token_id: where generation begins and ends; None for nowhere.

    Raises:
        ValueError: a value that does not fit, in one sentence that names it, the limit and the way out.
    """

    model_type = "hf_rope"
    ignore_keys_at_rope_validation = {"partial_rotary_factor"}

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float | int = 0.02
    layer_norm_eps: float | int = 1e-12
    pad_token_id: int | None = 0
    embedding_size: int | None = None
    scale_embedding: bool | None = None
    position_embedding_type: str = "rotary"
    position_options: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    attention_type: Literal["softmax", "linear"] = "softmax"
    attention_bias: bool = True
    feed_forward_type: Literal["dense", "gated"] = "dense"
    mlp_bias: bool = True
    feature_map: Literal["elu", "favor"] | None = None
    num_features: int | None = None
    feature_seed: int | None = None
    redraw_interval: int | None = None
    classifier_pooling: Literal["cls", "mean"] = "cls"
    classifier_dropout: float | int | None = None
    pooler_activation: str = "tanh"
    unpad_inputs: bool = True
    sparse_prediction: bool | None = None
    tie_word_embeddings: bool = True
    is_decoder: bool = False
    add_cross_attention: bool = False
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs):
        self.warn_unknown(kwargs)
        if self.embedding_size is None:
            self.embedding_size = self.hidden_size
        self.position_embedding_type = OLD_NAMES.get(self.position_embedding_type, self.position_embedding_type)
        self.position_options = self.full_options()
        if self.scale_embedding is None:
            self.scale_embedding = SCHEMES[self.position_embedding_type].scale_embedding
        self.fill_features()
        # The base class fills these dictionaries in place, and they are the caller's.
        self.rope_parameters = copy.deepcopy(self.rope_parameters)
        super().__post_init__(**copy.deepcopy(kwargs))
        self.auto_map = {**(getattr(self, "auto_map", None) or {}), **AUTO_MAP}

    @property
    def head_dim(self) -> int:
        """Components of each head's queries and keys as a scheme turns them: those of the features, where these differ.

        The name is the one that transformers' rotary functions read.
        """
        return self.num_features or self.hidden_size // self.num_attention_heads

    def fill_features(self) -> None:
        """The settings of linear attention that were left out."""
        if self.attention_type == "linear" and self.feature_map is None:
            self.feature_map = "elu"
        if self.feature_map == "favor":
            if self.num_features is None:
                self.num_features = 4 * (self.hidden_size // max(1, self.num_attention_heads))  # 0 is refused later
            if self.feature_seed is None:
                self.feature_seed = 0

    def warn_unknown(self, kwargs: dict[str, Any]) -> None:
        """Warns of keys that nothing reads, which the base class accepts in silence; refuses one that others give."""
        if "head_dim" in kwargs:
            raise ValueError(
                f"head_dim={kwargs['head_dim']} cannot be set, since it is hidden_size / num_attention_heads or, with "
                "FAVOR+, num_features: leave it out."
            )
        known = [field.name for field in fields(self)]
        for key in kwargs:
            if key.startswith("_") or key in BASE_KEYS:
                continue
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            logger.warning(
                f"HfRopeConfig has no key {key!r}, and nothing reads it; the nearest real key is {nearest!r}."
            )

    def full_options(self) -> dict[str, Any]:
        """The scheme's options, all of them; refuses an unknown scheme, an unknown option or a wrong type."""
        name = self.position_embedding_type
        if name not in SCHEMES:
            raise ValueError(f"position_embedding_type={name!r} is unknown; {nearest(name, SCHEMES)}.")
        scheme, options = SCHEMES[name], self.position_options or {}
        known = [field.name for field in fields(scheme.Options)]
        for key in options:
            if key not in known:
                raise ValueError(
                    f"position_options has {key!r}, which position_embedding_type={name!r} does not know; it takes: "
                    f"{', '.join(known) or 'none'}."
                )
        try:
            return scheme.fill_options(options)
        except StrictDataclassError as error:
            raise ValueError(f"position_options of position_embedding_type={name!r}: {error.__cause__}.") from None

    def convert_rope_params_to_dict(self, **kwargs):
        """Fills `rope_parameters` for a scheme that rotates and refuses it for one that does not."""
        if SCHEMES[self.position_embedding_type].rotates:
            return super().convert_rope_params_to_dict(**kwargs)
        given = {"rope_parameters": self.rope_parameters}
        given |= {key: kwargs.pop(key, None) for key in ROPE_KEYS}
        for key, value in given.items():
            if value is not None:
                raise ValueError(
                    f"{key}={value} has no effect: position_embedding_type={self.position_embedding_type!r} does not "
                    f"rotate; leave it out, or use {' or '.join(n for n, s in SCHEMES.items() if s.rotates)}."
                )
        return kwargs

    def validate_architecture(self) -> None:
        """Refuses sizes, rates and names that no encoder can have."""
        for key, least in LEAST_SIZES.items():
            if not least <= getattr(self, key) < float("inf"):
                raise ValueError(f"{key} is {getattr(self, key)}; it must be {least} or more.")
        for key in DROPOUTS:
            if getattr(self, key) is not None and not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{key} is {getattr(self, key)}; it is a probability, from 0 to 1.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of num_attention_heads={self.num_attention_heads}; "
                "change one of them."
            )
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"pad_token_id is {self.pad_token_id}; it must be None or from 0 to {self.vocab_size - 1} (vocab_size="
                f"{self.vocab_size})."
            )
        for key in ("hidden_act", "pooler_activation"):
            if (name := getattr(self, key)) not in ACT2FN:
                raise ValueError(f"{key}={name!r} is unknown; {nearest(name, ACT2FN)}.")
        super().validate_architecture()

    def validate_attention(self) -> None:
        """Refuses settings of linear attention that nothing reads, and schemes that it cannot compute."""
        reads: tuple[str, ...] = ()
        if self.attention_type == "linear":
            reads = ("feature_map", *FEATURE_KEYS[self.feature_map or "elu"])
        for key in LINEAR_KEYS:
            value = getattr(self, key)
            if value is not None and key not in reads:
                owner, remedy = f"attention_type={self.attention_type!r}", "attention_type='linear'"
                if reads:
                    owner, remedy = f"feature_map={self.feature_map!r}", "feature_map='favor'"
                raise ValueError(f"{key}={value!r} has no effect with {owner}: leave it out, or set {remedy}.")
            least = 0 if key == "feature_seed" else 1
            if isinstance(value, int) and value < least:
                raise ValueError(f"{key} is {value}; it must be {least} or more.")
        if reads and adds_terms(SCHEMES[self.position_embedding_type]):
            fitting = ", ".join(name for name, scheme in SCHEMES.items() if not adds_terms(scheme))
            raise ValueError(
                "attention_type='linear' computes no scores or probabilities for position_embedding_type="
                f"{self.position_embedding_type!r} to add to or to read; it works with: {fitting}."
            )

    def validate_decoder(self) -> None:
        """Refuses cross-attention in an encoder."""
        if self.add_cross_attention and not self.is_decoder:
            raise ValueError(
                "add_cross_attention=True is for decoders, and is_decoder is False: set is_decoder=True, or leave "
                "add_cross_attention out."
            )

    def validate_position(self) -> None:
        """Refuses options that the scheme cannot use with these sizes."""
        options, scheme = self.full_options(), SCHEMES[self.position_embedding_type]
        if scheme.rotates:
            self.check_rope_values()
        scheme.check(self, scheme.Options(**options))

    def validate_rope(self) -> None:
        """As the base class, which raises a KeyError where a key is missing."""
        try:
            super().validate_rope()
        except KeyError as error:
            raise ValueError(f"{error.args[0]}; add them to rope_parameters={self.rope_parameters}.") from None

    def check_rope_values(self) -> None:
        """Refuses numbers that the base class only warns of, or computes with."""
        if self.rope_parameters is None:
            raise ValueError(
                f"position_embedding_type={self.position_embedding_type!r} needs rope_parameters, and they are None: "
                "give the scheme when the configuration is built, and they are filled in."
            )
        for key, (fits, limit) in ROPE_LIMITS.items():
            value = self.rope_parameters.get(key, 1.0)
            if value is None and key in OPTIONAL_ROPE_KEYS:
                continue
            if not isinstance(value, int | float) or not fits(value):
                raise ValueError(f"rope_parameters[{key!r}] is {value!r}; it must be a number {limit}.")
        for key in ("short_factor", "long_factor"):
            if not isinstance(factors := self.rope_parameters.get(key, []), list):
                raise ValueError(f"rope_parameters[{key!r}] is {factors!r}; it must be a list of numbers.")
            if wrong := [x for x in factors if not isinstance(x, int | float) or not 0 < x < LARGEST]:
                raise ValueError(f"rope_parameters[{key!r}] holds {wrong[0]!r}; they must be numbers above 0.")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """Builds from a saved dictionary, changed by the keywords and only then checked.

        A keyword that changes the scheme, the attention or the feature map drops the old one's settings, and an
        `embedding_size` equal to `hidden_size` stays so where the latter changes. Under the same scheme, options left
        out keep their saved values; a new `rope_type` keeps the saved theta and `partial_rotary_factor`. A model that
        was saved without `scale_embedding` was trained before there was one, and has False.
        """
        own = {field.name for field in fields(cls)} - {field.name for field in fields(PreTrainedConfig)}
        own |= {*ROPE_KEYS, "chunk_size_feed_forward"}
        changes = {key: kwargs.pop(key) for key in [*kwargs] if key in own}
        old, new = (
            OLD_NAMES.get(name or "", name)
            for name in (d.get("position_embedding_type") for d in (config_dict, changes))
        )
        if new not in (None, old):
            settings = ("position_options", "rope_parameters", "scale_embedding", *ROPE_KEYS)
            config_dict = {key: value for key, value in config_dict.items() if key not in settings}
        elif config_dict.get("architectures"):
            config_dict = {"scale_embedding": False, **config_dict}
        size = config_dict.get("hidden_size", cls.hidden_size)
        if "hidden_size" in changes and config_dict.get("embedding_size") == size:
            changes.setdefault("embedding_size", None)
        drop: tuple[str, ...] = ()
        if changes.get("attention_type") not in (None, config_dict.get("attention_type", "softmax")):
            drop = LINEAR_KEYS
        elif changes.get("feature_map") not in (None, config_dict.get("feature_map")):
            drop = LINEAR_KEYS[1:]
        config_dict = {key: value for key, value in config_dict.items() if key not in drop}
        if changes.get("position_options"):
            changes["position_options"] = {**(config_dict.get("position_options") or {}), **changes["position_options"]}
        saved, scaling = config_dict.get("rope_parameters") or {}, changes.pop("rope_scaling", None)
        if isinstance(given := changes.get("rope_parameters") or scaling or {}, dict) and (given or saved):
            kept = {key: saved[key] for key in ROPE_KEYS if key in saved} if {"rope_type", "type"} & {*given} else saved
            moved = {key: changes.pop(key) for key in ROPE_KEYS if key in changes}
            changes["rope_parameters"] = {**kept, **given, **moved}
        return super().from_dict({**config_dict, **changes}, **kwargs)

    def update_from_string(self, update_str: str) -> None:
        """As transformers' own ("position_embedding_type=shaw,hidden_size=64"), checked as a whole, then taken over.

        Settings that hang on others change with them, as in `from_dict`.

        Raises:
            ValueError, TypeError: a part that is no pair, an unknown key, or a value that does not fit.
        """
        changed, changes = copy.deepcopy(self), {}
        for part in update_str.split(","):
            if part.count("=") != 1:
                raise ValueError(f"{part!r} in {update_str!r} is no pair: write key=value, with commas between.")
            try:
                super(HfRopeConfig, changed).update_from_string(part)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{part!r} cannot be taken over: {error}.") from None
            key = part.split("=")[0]
            changes[key] = getattr(changed, key)
        vars(self).update(vars(type(self).from_dict(self.to_dict(), **changes)))


def adds_terms(scheme: type[PositionScheme]) -> bool:
    """Whether a scheme adds to scores or to values, which linear attention never forms one a pair."""
    return scheme.score != "none" or scheme.changes_values


def nearest(name: str, known) -> str:
    """The known name that is most like another, and all of them."""
    return f"the nearest is {difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]!r}, all are: {', '.join(known)}"

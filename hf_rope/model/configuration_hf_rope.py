"""HfRopeConfig: everything that fixes an hf_rope model, its position scheme included."""

import difflib
from dataclasses import fields
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.utils import logging

from .positions import SCHEMES

logger = logging.get_logger(__name__)

AUTO_MAP = {
    "AutoConfig": "configuration_hf_rope.HfRopeConfig",
    "AutoModel": "modeling_hf_rope.HfRopeModel",
    "AutoModelForMaskedLM": "modeling_hf_rope.HfRopeForMaskedLM",
    "AutoModelForPreTraining": "modeling_hf_rope.HfRopeForMaskedLM",
    "AutoModelForSequenceClassification": "modeling_hf_rope.HfRopeForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_hf_rope.HfRopeForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_hf_rope.HfRopeForQuestionAnswering",
    "AutoModelForMultipleChoice": "modeling_hf_rope.HfRopeForMultipleChoice",
}
"""Where a folder without this package's import finds each class: written into every config, for every head."""

OLD_NAMES = {"absolute": "learned"}
"""Values of `position_embedding_type` in older checkpoints, and what they are called here."""

BASE_KEYS = (
    *("attn_implementation", "auto_map", "experts_implementation", "finetuning_task", "model_type", "name_or_path"),
    *("num_labels", "output_attentions", "partial_rotary_factor", "per_layer_config", "quantization_config"),
    *("rope_scaling", "rope_theta", "tie_last_hidden_states", "torch_dtype", "transformers_weights"),
)
"""Keys that the base class takes without being fields."""


@strict
class HfRopeConfig(PreTrainedConfig):
    """Configuration of the encoder. Sizes default to BERT base.

    Args:
        vocab_size, hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, hidden_act,
        hidden_dropout_prob, attention_probs_dropout_prob, type_vocab_size, initializer_range, layer_norm_eps,
        pad_token_id: as in BERT; `type_vocab_size=0` leaves token types out.
        max_position_embeddings: rows of the position table of the schemes that have one; no limit for the others.
        embedding_size: width of the embeddings where it differs from `hidden_size` (ALBERT, ELECTRA), with a projection
            between them; None for `hidden_size`.
        position_embedding_type: the position scheme, a key of `hf_rope.SCHEMES`.
        position_options: the scheme's own settings, see its `Options`; those left out get their defaults.
        rope_parameters: theta, scaling and `partial_rotary_factor` of a scheme that rotates, in transformers' form,
            such as `{"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0}`.
        classifier_pooling: "cls" pools the first real token through a dense layer, "mean" averages the real tokens.
        classifier_dropout: dropout before the classifiers; None for `hidden_dropout_prob`.
        tie_word_embeddings: whether the masked-LM head shares the word embeddings.

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
    position_embedding_type: str = "rotary"
    position_options: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    classifier_pooling: Literal["cls", "mean"] = "cls"
    classifier_dropout: float | int | None = None
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        self.warn_unknown(kwargs)
        if self.embedding_size is None:
            self.embedding_size = self.hidden_size
        self.position_embedding_type = OLD_NAMES.get(self.position_embedding_type, self.position_embedding_type)
        self.fill_position_options()
        super().__post_init__(**kwargs)
        self.auto_map = {**(getattr(self, "auto_map", None) or {}), **AUTO_MAP}

    def warn_unknown(self, kwargs: dict[str, Any]) -> None:
        """Warns of keys that nothing reads: the base class accepts them in silence."""
        known = [field.name for field in fields(self)]
        for key in kwargs:
            if key.startswith("_") or key in BASE_KEYS:
                continue
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            logger.warning(
                f"HfRopeConfig has no key {key!r}, and nothing reads it; the nearest real key is {nearest!r}."
            )

    def fill_position_options(self) -> None:
        """Writes the scheme's options out in full; refuses an unknown scheme, an unknown option or a wrong type."""
        name = self.position_embedding_type
        if name not in SCHEMES:
            nearest = difflib.get_close_matches(name, SCHEMES, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"position_embedding_type={name!r} is unknown; the nearest is {nearest!r}, all are: {', '.join(SCHEMES)}."
            )
        scheme, options = SCHEMES[name], dict(self.position_options or {})
        known = [field.name for field in fields(scheme.Options)]
        for key in options:
            if key not in known:
                raise ValueError(
                    f"position_options has {key!r}, which position_embedding_type={name!r} does not know; it takes: "
                    f"{', '.join(known) or 'none'}."
                )
        self.position_options = scheme.fill_options(options)

    def convert_rope_params_to_dict(self, **kwargs):
        """Fills `rope_parameters` for a scheme that rotates and refuses it for one that does not."""
        if SCHEMES[self.position_embedding_type].rotates:
            return super().convert_rope_params_to_dict(**kwargs)
        given = {"rope_parameters": self.rope_parameters}
        given |= {key: kwargs.pop(key, None) for key in ("rope_scaling", "rope_theta", "partial_rotary_factor")}
        for key, value in given.items():
            if value is not None:
                raise ValueError(
                    f"{key}={value} has no effect: position_embedding_type={self.position_embedding_type!r} does not "
                    f"rotate; leave it out, or use {' or '.join(n for n, s in SCHEMES.items() if s.rotates)}."
                )
        return kwargs

    def validate_sizes(self) -> None:
        """Refuses sizes that no encoder can have."""
        for key in ("vocab_size", "hidden_size", "num_attention_heads", "max_position_embeddings", "embedding_size"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}; it must be 1 or more.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of num_attention_heads={self.num_attention_heads}; "
                "change one of them."
            )

    def validate_position(self) -> None:
        """Refuses options that the scheme cannot use with these sizes."""
        scheme = SCHEMES[self.position_embedding_type]
        scheme.check(self, scheme.Options(**self.position_options))

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """Builds from a saved dictionary; a keyword that changes the scheme drops the old scheme's settings."""
        keys = ("position_embedding_type", "position_options", "rope_parameters")
        changes = {key: kwargs.pop(key) for key in keys if key in kwargs}
        old, new = (OLD_NAMES.get(d.get(keys[0]), d.get(keys[0])) for d in (config_dict, changes))
        if new not in (None, old):
            config_dict = {key: value for key, value in config_dict.items() if key not in keys}
        return super().from_dict({**config_dict, **changes}, **kwargs)

"""The encoder, or decoder, and its heads. It names no position scheme: `model.position` holds all that one computes.

Shapes: B batch, L length, D hidden size, V vocabulary, C labels, T real tokens of a batch with padding or packing.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, TypedDict

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.activations import ACT2FN, GELUActivation
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils.generic import can_return_tuple, is_flash_attention_requested, merge_with_config_defaults
from transformers.utils.import_utils import is_tracing
from transformers.utils.output_capturing import capture_outputs

from .attention import HfRopeAttention, HfRopeCrossAttention, encoder_mask
from .checks import (
    check_attentions,
    check_choices,
    check_decoding,
    check_inputs,
    check_kept,
    check_labels,
    check_places,
    check_row_labels,
    warn_unread,
)
from .configuration_hf_rope import OLD_NAMES, HfRopeConfig
from .device import reads_are_free
from .layout import BOUNDS, Group, first_real, is_observed, lay_out, own_function
from .linear_attention import FeatureMap, HfRopeLinearAttention
from .position_base import LayerPosition, PositionScheme
from .positions import SCHEMES
from .versions import CACHE, takes_cache

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


class ForwardKwargs(TypedDict, total=False):
    """What every forward takes beside its own arguments."""

    output_attentions: bool
    output_hidden_states: bool
    return_dict: bool
    is_causal: bool
    num_items_in_batch: torch.Tensor | int | None
    cu_seq_lens_q: torch.Tensor
    cu_seq_lens_k: torch.Tensor
    max_length_q: int
    max_length_k: int
    seq_idx: torch.Tensor  # of collators that pack; position_ids and cu_seq_lens_q tell the same, and are read


class CausalKwargs(ForwardKwargs, total=False):
    """The same for the causal head; not by name in `forward`, since Trainer awaits every argument called labels."""

    shift_labels: torch.Tensor


ATTENTIONS: dict[str, type[HfRopeAttention]] = {"softmax": HfRopeAttention, "linear": HfRopeLinearAttention}


class HfRopeScaledEmbedding(nn.Embedding):
    """Rows times sqrt(their width); not the weight itself, which LM heads may share. Vaswani 2017, section 3.4."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.embed_scale = self.embedding_dim**0.5  # as BART's, the name by which PEFT scales an adapter's rows too

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return super().forward(input_ids) * self.embed_scale


class HfRopeEmbeddings(nn.Module):
    """The sum of word and token-type embeddings: (B, L) ids, or (B, L, embedding_size) -> (B, L, embedding_size)."""

    def __init__(self, config):
        super().__init__()
        size = config.embedding_size
        kind = HfRopeScaledEmbedding if config.scale_embedding else nn.Embedding
        self.word_embeddings = kind(config.vocab_size, size, padding_idx=config.pad_token_id)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, size) if config.type_vocab_size else None

    def forward(self, input_ids, token_type_ids, inputs_embeds) -> torch.Tensor:
        x = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if self.token_type_embeddings is None:
            return x
        if token_type_ids is None:  # looked up like any others, so that an adapter of the table counts
            token_type_ids = torch.zeros(x.shape[:2], dtype=torch.long, device=x.device)
        return x + self.token_type_embeddings(token_type_ids).to(x.device)


class HfRopeGate(nn.Module):
    """The activation of a gated feed-forward: the first half's activation times the second, (..., 2 * I) -> (..., I).

    Shazeer 2020 (arXiv 2002.05202), eq. 6, FFN_GLU(x, W, V, W2) = (act(x W) * x V) W2, without biases of W and V. Both
    are one linear layer, `intermediate`.
    """

    def __init__(self, config):
        super().__init__()
        self.activation: Callable = ACT2FN[config.hidden_act]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, dim=-1)
        return self.activation(gate) * up


class HfRopeLayer(GradientCheckpointingLayer):
    """Attention, cross-attention if any, and feed-forward, each with dropout, residual and norm after it (as BERT)."""

    def __init__(self, config, layer_idx: int):
        super().__init__()
        self.chunk_size_feed_forward = config.chunk_size_feed_forward
        self.attention = ATTENTIONS[config.attention_type](config, layer_idx)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        if config.add_cross_attention:
            self.cross_attention = HfRopeCrossAttention(config, layer_idx)
            self.cross_attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        size, gated = config.intermediate_size, config.feed_forward_type == "gated"
        bias = config.mlp_bias and not gated
        self.intermediate = nn.Linear(config.hidden_size, 2 * size if gated else size, bias=bias)
        self.activation = HfRopeGate(config) if gated else ACT2FN[config.hidden_act]
        self.output = nn.Linear(size, config.hidden_size, bias=config.mlp_bias)
        self.output_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        x: torch.Tensor,
        mask: Any,
        states: torch.Tensor | None,
        states_mask: Any,
        *plan: torch.Tensor,
        groups: tuple[Group, ...],
        inside: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """(B, L, D) or (1, T, D) -> the same.

        Args:
            states: the encoder's, (B, S, D), or None; `states_mask` is over these.
            mask, plan, groups, inside, cache, kwargs: as for `HfRopeAttention`.
        """
        attended, _ = self.attention(x, mask, *plan, groups=groups, inside=inside, cache=cache, **kwargs)
        x = self.attention_norm(x + self.dropout(attended))
        if states is not None:
            own = {key: value for key, value in kwargs.items() if key not in BOUNDS}  # which are of x alone
            attended, _ = self.cross_attention(x, states, states_mask, cache=cache, **own)
            x = self.cross_attention_norm(x + self.dropout(attended))
        if not self.chunk_size_feed_forward:
            return self.feed_forward(x)
        # transformers' own function refuses lengths that are no multiple, and here they are those of the real tokens.
        return torch.cat([self.feed_forward(part) for part in x.split(self.chunk_size_feed_forward, dim=1)], dim=1)

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output_norm(x + self.dropout(self.output(self.activate(self.intermediate(x)))))

    def activate(self, x: torch.Tensor) -> torch.Tensor:
        """The activation. GELU writes over its input where nobody has kept that: no gradient, no hook on the layer.

        On a CPU this makes a forward of 8 x 128 tokens 8% faster (base width, float32): the layer's largest tensor is
        not allocated twice.
        """
        plain = torch.is_grad_enabled() or type(self.activation) is not GELUActivation
        if plain or not reads_are_free(x) or is_observed(self):
            return self.activation(x)
        return torch.ops.aten.gelu_(x)


class HfRopePooler(nn.Module):
    """The first real token through a dense layer and tanh, or `pooler_activation`, as BERT: (B, L, D) -> (B, D)."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation: Callable = ACT2FN[config.pooler_activation]

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        if attention_mask is None or attention_mask.ndim != 2:
            first = x[:, 0]
        else:
            real = attention_mask[:, -x.shape[1] :].bool()  # with a cache, the mask is over cached tokens too
            first = x[torch.arange(x.shape[0], device=x.device), first_real(real)]
        return self.activation(self.dense(first))


class HfRopePreTrainedModel(PreTrainedModel):
    """What all hf_rope models share: initialisation, loading, and which attention the scheme allows."""

    config_class = HfRopeConfig
    config: HfRopeConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    # Not the embeddings: FSDP2 would shard them alone, and they share their weight with the LM heads.
    _no_split_modules = ["HfRopeLayer"]
    _supports_attention_backend = True
    _can_record_outputs = {
        **{"hidden_states": HfRopeLayer, "attentions": HfRopeAttention},
        "cross_attentions": HfRopeCrossAttention,
    }
    needs_decoder: ClassVar[bool | None] = False
    """Whether the class works with is_decoder=True only, or with False only; None where it works with both."""

    def __init__(self, config, *args, **kwargs):
        config.validate_architecture()  # once more: the configuration may have been changed since it was built
        config.validate_position()
        config.validate_decoder()
        config.validate_attention()
        if self.needs_decoder is not None and config.is_decoder != self.needs_decoder:
            reads = "sees the tokens that it is to predict" if self.needs_decoder else "sees no token after its own"
            raise ValueError(
                f"{type(self).__name__} with is_decoder={config.is_decoder} {reads}: pass is_decoder="
                f"{self.needs_decoder} to the configuration or to from_pretrained."
            )
        super().__init__(config, *args, **kwargs)

    @property
    def attn_implementations(self) -> tuple[str, ...]:
        """The values of `attn_implementation` that can compute the attention and its position scheme."""
        return ATTENTIONS[self.config.attention_type].attn_implementations(self.config)

    @property
    def _supports_sdpa(self) -> bool:  # type: ignore[override]
        return "sdpa" in self.attn_implementations

    @property
    def _supports_flex_attn(self) -> bool:  # type: ignore[override]
        return "flex_attention" in self.attn_implementations

    @property
    def _supports_flash_attn(self) -> bool:  # type: ignore[override]
        return "flash_attention" in self.attn_implementations

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # transformers would look for the interface's name in this file; attention.py has it

    # Without this private hook a scheme would be computed by attention that leaves its terms out, in silence.
    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *args, **kwargs) -> str:
        if (attn_implementation or "").startswith("paged|"):
            raise ValueError(
                f"attn_implementation={attn_implementation!r} is for continuous batching, whose cache holds keys "
                "that are already placed, and here they are placed in each step: use generate, without it."
            )
        kind, allowed = (attn_implementation or "eager").split("|")[-1], self.attn_implementations
        if is_flash_attention_requested(requested_attention_implementation=kind):
            kind = "flash_attention"
        # A function of a user's own gets the score term, but no value term, as flex attention.
        known = kind in ("eager", "sdpa", "flex_attention", "flash_attention")
        if (kind if known else "flex_attention") not in allowed:
            config, what = self.config, f"attention_type={self.config.attention_type!r}"
            if config.attention_type == "softmax":
                what = f"position_embedding_type={config.position_embedding_type!r} with these options"
            raise ValueError(
                f"attn_implementation={attn_implementation!r} cannot compute {what}; it works with: "
                f"{', '.join(allowed)}."
            )
        return super()._check_and_adjust_attn_implementation(attn_implementation, *args, **kwargs)

    def save_pretrained(self, *args, **kwargs):
        """As transformers' own; a model sharded by FSDP2 is saved under its own class, not the one that FSDP2 made.

        transformers copies the code of the file that the class is from, and that would be a file of torch's.
        """
        made = type(self)
        self.__class__ = next(kind for kind in made.__mro__ if not kind.__module__.startswith("torch."))
        try:
            return super().save_pretrained(*args, **kwargs)
        finally:
            self.__class__ = made

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, PositionScheme | LayerPosition | FeatureMap):
            module.init_weights(self.config.initializer_range)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """As transformers' own; refuses weights that were trained under another position scheme.

        Raises:
            ValueError: the checkpoint's scheme, or its positional weights, are not those of the configuration.
        """
        source = pretrained_model_name_or_path
        remedy = "load them under their own scheme, or build a new model with from_config"
        if source is not None:
            hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
            trained = cls.config_class.get_config_dict(source, **hub)[0].get("position_embedding_type")
            asked = getattr(kwargs.get("config"), "position_embedding_type", kwargs.get("position_embedding_type"))
            trained, asked = (OLD_NAMES.get(name or "", name) for name in (trained, asked))
            if trained not in (None, asked) and asked in SCHEMES:
                raise ValueError(
                    f"The weights in {source} were trained with position_embedding_type={trained!r} and cannot be used "
                    f"with {asked!r}: {remedy}."
                )
        loaded: Any = super().from_pretrained(source, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        complaints = [
            f"{verb} {', '.join(keys)}"
            for verb, name in (("lacks", "missing_keys"), ("also has", "unexpected_keys"))
            if (keys := positional(info[name], model.config.num_hidden_layers, info["missing_keys"]))
        ]
        nothing_fits = {*info["missing_keys"]} >= {*model.state_dict()}  # which transformers reports
        if complaints and not nothing_fits:
            config = model.config
            raise ValueError(
                f"The weights in {source} do not fit position_embedding_type={config.position_embedding_type!r} with "
                f"position_options={config.position_options}, the checkpoint {' and '.join(complaints)}: {remedy}."
            )
        return (model, info) if output_loading_info else model


def positional(keys: Collection[str], layers: int, missing: Collection[str]) -> list[str]:
    """Those of some names of weights that are a scheme's, but for layers that only one of model and checkpoint has."""
    found = []
    for key in sorted(key for key in keys if ".position." in f".{key}"):
        layer = re.match(r"(.*\blayers\.(\d+)\.)", key)
        if layer and (int(layer[2]) >= layers or f"{layer[1]}attention.query.weight" in missing):
            continue
        found.append(key)
    return found


class HfRopeModel(HfRopePreTrainedModel):
    """The encoder, or with `config.is_decoder` the decoder: (B, L) ids -> (B, L, D) hidden states, and pooled (B, D).

    On a CPU a batch with padding, or with sequences packed into one row, is computed on its real tokens only, and
    hidden states at padding are then zero; layout.py says where else, and how `unpad_inputs=False` prevents it.

    Args:
        config: the configuration.
        add_pooling_layer: whether to build the pooler.

    Forward takes:
        input_ids: (B, L) int64; or `inputs_embeds`, (B, L, embedding_size).
        attention_mask: (B, L), or with a cache (B, P + L), 1 at real tokens; or an additive or boolean
            (B, 1, L, K), which then alone decides who sees whom.
        token_type_ids: (B, L) int64, zeros if left out.
        position_ids: (B or 1, L) int64 from 0; counted from the first real token if left out. Runs 0, 1, 2, ... one
            after the other in a row are packed sequences, and each sees itself only. With a cache they must count
            up by one, and the cached tokens' positions are counted from them.
        encoder_hidden_states: (B, S, D), for a decoder with cross-attention, which is left out without them.
        encoder_attention_mask: (B, S), 1 at the real ones of these states.
        cache: what an earlier forward returned, holding P tokens; or an empty one to fill. `past_key_values` is
            another name of it.
        use_cache: whether to return the keys and values of all tokens, as projected; None for the configuration's.
        cu_seq_lens_q: (sequences + 1,) int, the bounds of the sequences packed in a batch of one row; with it, if they
            are known, `cu_seq_lens_k`, `max_length_q` and `max_length_k`, for attention functions that take them.
        kwargs: further keywords, which reach the attention function.
    """

    needs_decoder = None

    def __init__(self, config, add_pooling_layer: bool = True):
        super().__init__(config)
        size = config.embedding_size
        self.embeddings = HfRopeEmbeddings(config)
        self.position = SCHEMES[config.position_embedding_type](config)
        self.embedding_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.embedding_projection = nn.Linear(size, config.hidden_size) if size != config.hidden_size else nn.Identity()
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(HfRopeLayer(config, index) for index in range(config.num_hidden_layers))
        self.pooler = HfRopePooler(config) if add_pooling_layer else None
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value):
        self.embeddings.word_embeddings = value

    @takes_cache
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[ForwardKwargs],
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """Encodes a batch, or the next tokens of one; the class says what each argument is."""
        bounds = {key: value for key, value in kwargs.items() if key in BOUNDS and value is not None}
        inputs: dict[str, Any] = {
            "input_ids": input_ids,
            "token_type_ids": token_type_ids,
            "inputs_embeds": inputs_embeds,
        }
        inputs |= {"attention_mask": attention_mask, "position_ids": position_ids, "cache": cache}
        batch, length = self.check(inputs, kwargs, bounds, encoder_hidden_states)
        x = self.embeddings(input_ids, token_type_ids, inputs_embeds)
        layout = lay_out(
            self.config,
            self.position,
            ATTENTIONS[self.config.attention_type],
            x=x,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            use_cache=bool(use_cache and self.config.is_decoder),
            bounds=bounds,
            alone=encoder_hidden_states is None,
            keep_dense=lambda: self.is_recorded(kwargs) or not self.config.unpad_inputs or is_observed(self.layers),
        )
        states_mask = encoder_mask(self.config, x, encoder_hidden_states, encoder_attention_mask)
        x, shared, pairs = self.position(x, layout.position_ids, layout.everywhere, layout.places)
        groups, plan = layout.flatten(shared, pairs)
        x = layout.unpad(self.embedding_projection(self.dropout(self.embedding_norm(x))))
        self.renew()
        common: Any = {"groups": groups, "inside": layout.inside, "cache": layout.cache, **kwargs, **layout.bounds}
        for layer in self.layers:
            x = layer(x, layout.mask, encoder_hidden_states, states_mask, *plan, **common)
        x = layout.pad(x, batch, length)
        kept: dict[str, Any] = {CACHE: layout.cache}
        pooled = self.pooler(x, attention_mask) if self.pooler is not None else None
        return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=x, pooler_output=pooled, **kept)

    def check(
        self, inputs: dict[str, Any], kwargs: Mapping[str, Any], bounds: Mapping[str, Any], encoder_hidden_states
    ) -> tuple[int, int]:
        """Batch size and length; refuses what does not fit or go together, and warns of what nothing reads."""
        if own_function(self.config) is None:
            warn_unread(kwargs, ForwardKwargs.__annotations__)
        check_decoding(self.config, inputs["cache"], encoder_hidden_states, bounds, kwargs.get("is_causal"))
        check_attentions(self.config, kwargs)
        if inputs["cache"] is not None and self.gradient_checkpointing and self.training:
            raise ValueError(
                "A cache is given under gradient checkpointing, which would fill it twice: leave it out, or call "
                "gradient_checkpointing_disable()."
            )
        return check_inputs(self.config, **inputs)

    def renew(self) -> None:
        """What changes before a forward in training; not in the layers, which checkpointing runs twice."""
        if self.training:
            for layer in self.layers:
                attn: Any = layer.attention
                attn.renew()

    def is_recorded(self, kwargs: Mapping[str, Any]) -> bool:
        """Whether the caller or the configuration asks for every layer's hidden states or attentions."""
        keys = ("output_hidden_states", "output_attentions")
        return any(kwargs.get(key, getattr(self.config, key, False)) not in (None, False) for key in keys)


class HfRopeLMHead(nn.Module):
    """Dense, activation, norm and the projection to the vocabulary: (..., D) -> (..., V), as BERT's."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.embedding_size)
        self.activation: Callable = ACT2FN[config.hidden_act]
        self.norm = nn.LayerNorm(config.embedding_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.embedding_size, config.vocab_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.norm(self.activation(self.dense(x))))


class HfRopeLM(HfRopePreTrainedModel):
    """What the two heads that predict tokens share: the projection to the vocabulary, tied to the word embeddings."""

    _tied_weights_keys = {"lm_head.decoder.weight": "model.embeddings.word_embeddings.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = HfRopeModel(config, add_pooling_layer=False)
        self.lm_head = HfRopeLMHead(config)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head.decoder

    def set_output_embeddings(self, new_embeddings):
        self.lm_head.decoder = new_embeddings

    def predict(self, x: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, L, D) and (B, L) labels -> logits (B, L, V), and the labels; or both at the labelled tokens alone.

        The latter, (labelled, V) and (labelled,), in training where `config.sparse_prediction` says so, or where it
        is None and their number is free to read.
        """
        if not self.training or is_tracing(labels) or not self.predicts_sparsely(labels):
            return self.lm_head(x), labels
        labelled = labels != -100
        return self.lm_head(x[labelled.to(x.device)]), labels[labelled]

    def predicts_sparsely(self, labels: torch.Tensor) -> bool:
        if self.config.sparse_prediction is not None:
            return self.config.sparse_prediction
        return self.config.unpad_inputs and reads_are_free(labels) and not is_observed(self.lm_head)


class HfRopeForMaskedLM(HfRopeLM):
    """The encoder with a masked-LM head.

    In training with labels, on a CPU or with `sparse_prediction=True`, only labelled tokens go through the head, and
    `logits` is None; else `logits` is the full (B, L, V). The loss is the same either way.
    """

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[ForwardKwargs],
    ) -> MaskedLMOutput:
        """`labels`: (B, L) int64, -100 where no loss is taken; the other arguments as `HfRopeModel`."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **kwargs,
        )
        check_labels(labels, outputs.last_hidden_state.shape[:2], self.config.vocab_size)
        if labels is None:
            loss, logits = None, self.lm_head(outputs.last_hidden_state)
        else:
            logits, labels = self.predict(outputs.last_hidden_state, at_real_tokens(labels, attention_mask))
            loss = self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        return MaskedLMOutput(
            loss=loss,
            logits=logits if logits.ndim == 3 else None,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class HfRopeForCausalLM(HfRopeLM, GenerationMixin):
    """The decoder with a head that predicts the next token, and `generate`.

    In training with labels, on a CPU or with `sparse_prediction=True`, only tokens with a label to predict go through
    the head, and `logits` is None; else `logits` is the full (B, L, V). The loss is the same either way. It needs no
    cache, and none is made.
    """

    needs_decoder = True

    @takes_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[CausalKwargs],
    ) -> CausalLMOutputWithCrossAttentions:
        """The other arguments are as for `HfRopeModel`.

        Args:
            labels: (B, L) int64, as a rule the ids themselves: token i predicts label i + 1. -100 where no loss is
                taken; padding predicts nothing.
            logits_to_keep: how many of the last tokens get logits, or their numbers; 0 for all. Not with labels.
            shift_labels: (B, L) int64, in the place of `labels`: what token i predicts, or -100.
        """
        shift_labels = kwargs.pop("shift_labels", None)
        given = labels if shift_labels is None else shift_labels
        if given is not None:
            check_kept(logits_to_keep)
        if use_cache is None and (given is not None or self.training):
            use_cache = False
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            cache=cache,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        x = outputs.last_hidden_state
        check_labels(given, x.shape[:2], self.config.vocab_size)
        if given is None:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            loss, logits = None, self.lm_head(x[:, kept])
        else:
            wanted = at_real_tokens(given, attention_mask)
            if shift_labels is None:
                wanted = at_real_tokens(next_labels(wanted), attention_mask)  # neither predicted nor predicting
            logits, wanted = self.predict(x, wanted)
            loss = self.loss_function(logits, None, self.config.vocab_size, shift_labels=wanted, **kwargs)
        return CausalLMOutputWithCrossAttentions(
            loss=loss,
            logits=logits if logits.ndim == 3 else None,
            **{CACHE: getattr(outputs, CACHE)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )

    # Private, and the one place that knows all lengths before the first forward: a generation would fail half way.
    def _prepare_cache_for_generation(self, generation_config, model_kwargs, mode, batch_size, max_cache_length):
        """As transformers' own; `generate` calls it before the first forward, with all lengths known.

        Raises:
            ValueError: the prompt and what is to be generated need more positions than the scheme has.
        """
        position_ids, new = model_kwargs["position_ids"], generation_config.max_new_tokens
        if new is None:
            new = max_cache_length + 1 - position_ids.shape[-1]
        self.model.position.require_room(int(position_ids.max()) + 1, new)
        prepare: Any = super()._prepare_cache_for_generation  # type: ignore[misc]
        return prepare(generation_config, model_kwargs, mode, batch_size, max_cache_length)


def next_labels(labels: torch.Tensor) -> torch.Tensor:
    """(B, L) -> (B, L): the label that each token is to predict, the next one; -100 at the end."""
    return F.pad(labels[:, 1:], (0, 1), value=-100)


def at_real_tokens(labels: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """(B, L) labels, -100 at padding, which is in no loss."""
    if attention_mask is None or attention_mask.ndim != 2:
        return labels
    return labels.masked_fill(attention_mask[:, -labels.shape[1] :].to(labels.device) == 0, -100)


def classifier_dropout(config) -> nn.Dropout:
    return nn.Dropout(config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout)


def pooled(outputs: Any, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """(B, D): what the pooler made of an encoder's sequences; where it has none, the mean of their real tokens."""
    if outputs.pooler_output is not None:
        return outputs.pooler_output
    return mean_of_tokens(outputs.last_hidden_state, attention_mask)


def mean_of_tokens(x: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """(B, L, D) -> (B, D): the mean of the real tokens."""
    if attention_mask is None or attention_mask.ndim != 2:
        return x.mean(1)
    precision = torch.promote_types(x.dtype, torch.float32)  # in float16 a sum of thousands is infinite
    weights = attention_mask.bool()[..., None].to(x.device, precision)
    return ((x * weights).sum(1) / weights.sum(1).clamp(min=1)).to(x.dtype)


class HfRopeForSequenceClassification(HfRopePreTrainedModel):
    """The encoder with a classifier on the pooled sequence: single label, multi label or regression."""

    accepts_loss_kwargs = False  # two of its three losses are means, so Trainer has to divide by the accumulated steps

    def __init__(self, config):
        super().__init__(config)
        self.model = HfRopeModel(config, add_pooling_layer=config.classifier_pooling == "cls")
        self.dropout = classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[ForwardKwargs],
    ) -> SequenceClassifierOutput:
        """`labels`: (B,) int64 classes, (B,) or (B, C) numbers for regression, (B, C) 0 and 1 for multi label."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **kwargs,
        )
        logits = self.classifier(self.dropout(pooled(outputs, attention_mask)))
        loss = None
        if labels is not None:
            check_row_labels(labels, self.config, len(logits))
            scored = logits
            if labels.is_floating_point():  # torch before 2.12 has no gradient of a squared error between two dtypes
                dtype = torch.promote_types(logits.dtype, labels.dtype)
                scored, labels = logits.to(dtype), labels.to(dtype)
            loss = self.loss_function(labels=labels, pooled_logits=scored, config=self.config, **kwargs)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class HfRopeForTokenClassification(HfRopePreTrainedModel):
    """The encoder with a classifier on every token."""

    def __init__(self, config):
        super().__init__(config)
        self.model = HfRopeModel(config, add_pooling_layer=False)
        self.dropout = classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[ForwardKwargs],
    ) -> TokenClassifierOutput:
        """`labels`: (B, L) int64 classes, -100 where no loss is taken."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **kwargs,
        )
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        check_labels(labels, logits.shape[:2], logits.shape[-1])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, at_real_tokens(labels, attention_mask), self.config, **kwargs)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class HfRopeForQuestionAnswering(HfRopePreTrainedModel):
    """The encoder with the start and end logits of an extracted answer."""

    def __init__(self, config):
        super().__init__(config)
        self.model = HfRopeModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        **kwargs: Unpack[ForwardKwargs],
    ) -> QuestionAnsweringModelOutput:
        """`start_positions` and `end_positions`: (B,) int64 token indices; one beyond the input takes no loss.

        Padding counts as beyond the input, and its logits are the smallest number.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **kwargs,
        )
        logits = self.qa_outputs(outputs.last_hidden_state)
        for name, given in (("start_positions", start_positions), ("end_positions", end_positions)):
            check_places(name, given)
        if attention_mask is not None and attention_mask.ndim == 2:
            real = attention_mask.to(logits.device).bool()
            logits = logits.masked_fill(~real[..., None], torch.finfo(logits.dtype).min)
            start_positions, end_positions = (beyond_padding(x, real) for x in (start_positions, end_positions))
        start_logits, end_logits = logits.unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            places = (start_positions.to(logits.device), end_positions.to(logits.device))
            loss = self.loss_function(start_logits, end_logits, *places, **kwargs)
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def beyond_padding(places: torch.Tensor | None, real: torch.Tensor) -> torch.Tensor | None:
    """(B,) token indices, L where one points at padding, and (B, L) bool, True at real tokens -> (B,)."""
    if places is None:
        return None
    places = places.reshape(-1).to(real.device)  # (B, 1) from some collators, as transformers' own losses take
    inside = real.gather(-1, places.clamp(0, real.shape[-1] - 1)[:, None])[:, 0]
    return torch.where(inside, places, real.shape[-1])


class HfRopeForMultipleChoice(HfRopePreTrainedModel):
    """The encoder with one score a choice, from inputs of shape (B, choices, L)."""

    accepts_loss_kwargs = False  # its loss is a mean, so Trainer has to divide by the accumulated steps

    def __init__(self, config):
        super().__init__(config)
        self.model = HfRopeModel(config, add_pooling_layer=config.classifier_pooling == "cls")
        self.dropout = classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[ForwardKwargs],
    ) -> MultipleChoiceModelOutput:
        """`labels`: (B,) int64, the right choice."""
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        choices = check_choices(input_ids, inputs_embeds)
        flat = {key: None if x is None else x.flatten(0, 1) for key, x in inputs.items()}
        outputs = self.model(**flat, return_dict=True, **kwargs)
        logits = self.classifier(self.dropout(pooled(outputs, flat["attention_mask"]))).view(-1, choices)
        check_labels(labels, logits.shape[:1], choices)
        return MultipleChoiceModelOutput(
            loss=None if labels is None else F.cross_entropy(logits, labels.to(logits.device)),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

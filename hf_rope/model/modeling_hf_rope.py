"""The encoder, or decoder, and its heads. It names no position scheme: `model.position` holds all that one computes.

Shapes: B batch, L length, D hidden size, V vocabulary, C labels, T real tokens of a batch with padding or packing.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
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
from transformers.pytorch_utils import apply_chunking_to_forward
from transformers.utils.generic import can_return_tuple, is_flash_attention_requested, merge_with_config_defaults
from transformers.utils.import_utils import is_tracing
from transformers.utils.output_capturing import capture_outputs

from .attention import Layout, attend, compact_layout, dense_layout, encoder_mask, interface
from .bare import is_bare
from .configuration_hf_rope import OLD_NAMES, HfRopeConfig
from .decoding import CACHE, cached_length, key_positions, new_cache, takes_cache
from .inputs import (
    check_attentions,
    check_bounds,
    check_choices,
    check_decoding,
    check_inputs,
    check_kept,
    check_labels,
    warn_unread,
)
from .linear_attention import FEATURE_MAPS, FeatureMap, linear_attend, linear_layout
from .position_base import PositionScheme, find_packed_sequences
from .positions import SCHEMES
from .tied_weight import tied_weight

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


class ForwardKwargs(TypedDict, total=False):
    """What every forward takes beside its own arguments."""

    output_attentions: bool
    output_hidden_states: bool
    return_dict: bool
    num_items_in_batch: torch.Tensor | int | None
    cu_seq_lens_q: torch.Tensor
    cu_seq_lens_k: torch.Tensor
    max_length_q: int
    max_length_k: int


class CausalKwargs(ForwardKwargs, total=False):
    """The same for the causal head; not by name in `forward`, since Trainer awaits every argument called labels."""

    shift_labels: torch.Tensor


class HfRopeEmbeddings(nn.Module):
    """Word, token-type and absolute position embeddings, their norm, and the projection where sizes differ."""

    def __init__(self, config):
        super().__init__()
        size = config.embedding_size
        self.word_embeddings = nn.Embedding(config.vocab_size, size, padding_idx=config.pad_token_id)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, size) if config.type_vocab_size else None
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.projection = nn.Linear(size, config.hidden_size) if size != config.hidden_size else nn.Identity()

    def forward(self, input_ids, token_type_ids, position_ids, inputs_embeds, position: PositionScheme) -> torch.Tensor:
        x = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if self.token_type_embeddings is not None:
            types = self.token_type_embeddings.weight[0] if token_type_ids is None else None
            x = x + (self.token_type_embeddings(token_type_ids) if types is None else types)
        return self.projection(self.dropout(self.norm(position.embed(x, position_ids))))


class HfRopeAttention(nn.Module):
    """Multi-head self-attention: one product for query, key and value, then the scheme's and the softmax's work."""

    dense_layout = staticmethod(dense_layout)

    def __init__(self, config, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx, self.is_causal = config, layer_idx, config.is_decoder
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    @staticmethod
    def attn_implementations(config) -> tuple[str, ...]:
        """The values of `attn_implementation` that can compute the position scheme."""
        return SCHEMES[config.position_embedding_type].attn_implementations(config)

    def project_query(self, x: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., D): this layer's query projection alone."""
        return self.project(x, 0)

    def project_key(self, x: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., D): this layer's key projection alone."""
        return self.project(x, 1)

    def project(self, x: torch.Tensor, part: int) -> torch.Tensor:
        if not is_bare(self.qkv, nn.Linear):
            return self.qkv(x).chunk(3, dim=-1)[part]
        return F.linear(x, self.qkv.weight.chunk(3)[part], self.qkv.bias.chunk(3)[part])

    def forward(self, x: torch.Tensor, layout: Layout, *plan: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, L, D) or (1, T, D) -> the same, and the probabilities (B, H, L, K) where eager attention has them."""
        qkv, outputs, probabilities = self.qkv(x), [], None
        for group, part, group_plan in layout.split(qkv, plan):
            query, key, value = part.unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind()
            out, probabilities = self.attend(query, key, value, group, layout, group_plan)
            outputs.append(out)
        context = outputs[0] if layout.tokens is None else torch.cat([out.flatten(0, 1) for out in outputs])[None]
        return self.output(context), probabilities

    def renew(self) -> None:
        """What changes before a forward in training: nothing here."""

    def attend(self, query, key, value, group, layout: Layout, plan) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Three of (B,H,L,E) -> (B, L, D), and the probabilities or None."""
        key, value = layout.with_cached(key, value, self.layer_idx)
        return attend(self, query, key, value, group, layout.position, plan)


class HfRopeLinearAttention(HfRopeAttention):
    """The same with a feature map in the softmax's place; it has no probabilities, and so no dropout of them."""

    dense_layout = staticmethod(linear_layout)

    def __init__(self, config, layer_idx: int):
        super().__init__(config, layer_idx)
        self.features = FEATURE_MAPS[config.feature_map](config, layer_idx)

    @staticmethod
    def attn_implementations(config):
        """For cross-attention: linear attention itself is computed in one way."""
        return ("eager", "sdpa")

    def renew(self):
        self.features.renew()

    def attend(self, query, key, value, group, layout, plan):
        return linear_attend(self, query, key, value, group, layout, plan), None


ATTENTIONS: dict[str, type[HfRopeAttention]] = {"softmax": HfRopeAttention, "linear": HfRopeLinearAttention}


class HfRopeCrossAttention(nn.Module):
    """Multi-head attention to an encoder's states, without positions: the two sequences share no axis (as RoFormer)."""

    def __init__(self, config, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx, self.is_causal = config, layer_idx, False
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key_value = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, x: torch.Tensor, states: torch.Tensor, layout: Layout
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, L, D), (B, S, D) -> (B, L, D), and the probabilities (B, H, L, S) where eager attention has them."""
        query = self.query(x).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
        key, value = layout.of_encoder(lambda: self.project(states), self.layer_idx)
        out, probabilities = interface(self, query, key, value, layout.encoder_mask, self.head_dim**-0.5, False)
        return self.output(out), probabilities

    def project(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, S, D) -> keys and values, (B, H, S, E)."""
        return self.key_value(states).unflatten(-1, (2, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind()


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
        self.intermediate = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.output = nn.Linear(config.intermediate_size, config.hidden_size)
        self.output_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, x: torch.Tensor, layout: Layout, states: torch.Tensor | None, *plan: torch.Tensor
    ) -> torch.Tensor:
        """(B, L, D) or (1, T, D) -> the same; `states` are the encoder's, (B, S, D), or None."""
        attended, _ = self.attention(x, layout, *plan)
        x = self.attention_norm(x + self.dropout(attended))
        if states is not None:
            attended, _ = self.cross_attention(x, states, layout)
            x = self.cross_attention_norm(x + self.dropout(attended))
        return apply_chunking_to_forward(self.feed_forward, self.chunk_size_feed_forward, 1, x)

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output_norm(x + self.dropout(self.output(self.activate(self.intermediate(x)))))

    def activate(self, x: torch.Tensor) -> torch.Tensor:
        """The activation; without gradients GELU writes over its input, which saves the largest tensor of the layer."""
        if isinstance(self.activation, GELUActivation) and not (torch.is_grad_enabled() or is_tracing(x)):
            return torch.ops.aten.gelu_(x)
        return self.activation(x)


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
            first = x[torch.arange(x.shape[0], device=x.device), attention_mask.to(torch.int8).argmax(-1)]
        return self.activation(self.dense(first))


class HfRopePreTrainedModel(PreTrainedModel):
    """What all hf_rope models share: initialisation, loading, and which attention the scheme allows."""

    config_class = HfRopeConfig
    config: HfRopeConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["HfRopeEmbeddings", "HfRopeLayer"]
    _supports_attention_backend = True
    _can_record_outputs = {
        **{"hidden_states": HfRopeLayer, "attentions": HfRopeAttention},
        "cross_attentions": HfRopeCrossAttention,
    }
    needs_decoder: ClassVar[bool | None] = False
    """Whether the class works with is_decoder=True only, or with False only; None where it works with both."""

    def __init__(self, config, *args, **kwargs):
        config.validate_position()  # once more: the configuration may have been changed since it was built
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

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, PositionScheme | FeatureMap):
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
            if (keys := sorted(key for key in info[name] if ".position." in f".{key}"))
        ]
        nothing_fits = {*info["missing_keys"]} >= {*model.state_dict()}  # which transformers reports
        if complaints and not nothing_fits:
            config = model.config
            raise ValueError(
                f"The weights in {source} do not fit position_embedding_type={config.position_embedding_type!r} with "
                f"position_options={config.position_options}, the checkpoint {' and '.join(complaints)}: {remedy}."
            )
        return (model, info) if output_loading_info else model


class HfRopeModel(HfRopePreTrainedModel):
    """The encoder, or with `config.is_decoder` the decoder: (B, L) ids -> (B, L, D) hidden states, and pooled (B, D).

    A batch with padding, or with sequences packed into one row, is computed on its real tokens only, and each sequence
    attends to itself; hidden states at padding are then zero. Under compile, export and tracing, with flex attention, a
    4-D mask, a cache or an encoder's states, and where hidden states or attentions are recorded, padding is computed
    and masked instead.

    Args:
        config: the configuration.
        add_pooling_layer: whether to build the pooler.
    """

    needs_decoder = None

    def __init__(self, config, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = HfRopeEmbeddings(config)
        self.position = SCHEMES[config.position_embedding_type](config)
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
        """Encodes a batch, or the next tokens of one.

        Args:
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
            cu_seq_lens_q: (sequences + 1,) int, the bounds of the sequences packed in a batch of one row.
        """
        bounds = kwargs.get("cu_seq_lens_q")
        warn_unread(kwargs, ForwardKwargs.__annotations__)
        check_decoding(self.config, cache, encoder_hidden_states, bounds)
        check_attentions(self.config, kwargs)
        if cache is not None and self.gradient_checkpointing and self.training:
            raise ValueError(
                "A cache is given under gradient checkpointing, which would fill it twice: leave it out, or call "
                "gradient_checkpointing_disable()."
            )
        batch, length = check_inputs(
            self.config, input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, cache
        )
        source: Any = inputs_embeds if input_ids is None else input_ids
        keep = attention_mask.bool() if attention_mask is not None and attention_mask.ndim == 2 else None
        segments = None
        if bounds is not None:
            check_bounds(bounds, batch, length)
            places = torch.arange(length, device=source.device)
            segments = torch.bucketize(places, bounds[1:].to(places), right=True)[None]
            if position_ids is None:
                position_ids = places - bounds.to(places)[segments]
        elif position_ids is not None and cache is None:
            segments = find_packed_sequences(position_ids, keep)
        if use_cache and self.config.is_decoder and cache is None and segments is None:
            cache = new_cache(self.config)
        position_ids, of_keys = self.place(position_ids, keep, cache, length, source.device)

        recorded = self.is_recorded(kwargs)
        alone = cache is None and encoder_hidden_states is None
        if alone and self.is_compact(attention_mask, keep, segments, source, recorded):
            keep = keep if keep is not None else torch.ones(batch, length, dtype=torch.bool, device=source.device)
            layout = compact_layout(self.position, self.config, keep, position_ids, segments)
            input_ids, token_type_ids, inputs_embeds = (
                None if x is None else layout.unpad(x) for x in (input_ids, token_type_ids, inputs_embeds)
            )
            real_positions = layout.unpad(position_ids.expand(batch, length))
            x = self.embeddings(input_ids, token_type_ids, real_positions, inputs_embeds, self.position)
        else:
            if self.position.max_length is not None and segments is None and is_tracing(source):
                self.position.require_length(length, self.position.max_length)
            x = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds, self.position)
            layout = ATTENTIONS[self.config.attention_type].dense_layout(
                *(self.position, self.config, x, attention_mask, position_ids, segments, recorded),
                *(cache, of_keys),
            )
            if encoder_hidden_states is not None:
                layout.encoder_mask = encoder_mask(self.config, x, encoder_hidden_states, encoder_attention_mask)

        plan = layout.plan(x.dtype)
        if self.training:
            for layer in self.layers:
                attn: Any = layer.attention
                attn.renew()  # not in the layer, which checkpointing runs twice
        for layer in self.layers:
            x = layer(x, layout, encoder_hidden_states, *plan)
        x = layout.pad(x, batch, length)
        kept: dict[str, Any] = {CACHE: cache}
        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=x,
            pooler_output=self.pooler(x, attention_mask) if self.pooler is not None else None,
            **kept,
        )

    def place(self, position_ids, keep, cache, length: int, device) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The positions of the new tokens, (1 or B, L), and of all keys, (1 or B, K); None where these are the same."""
        past = cached_length(cache)
        size = past + length if cache is None else cache.get_mask_sizes(length, 0)[0]
        grown = cache is not None and (isinstance(past, torch.Tensor) or past > 0 or size > length)
        if position_ids is None:
            positions = self.default_positions(past + length, keep, device)
            if not grown or size == past + length:
                return positions[:, past:], positions if grown else None
            position_ids = positions[:, past:]
        return position_ids, key_positions(position_ids, keep, past, size) if grown else None

    def default_positions(self, length: int, keep: torch.Tensor | None, device) -> torch.Tensor:
        """(1, L) or (B, L): 0 at the first real token of each row, so that padding on the left moves nothing."""
        position_ids = torch.arange(length, device=device)[None]
        anywhere = self.position.shift_invariant and (self.position.max_length is None or is_tracing(position_ids))
        if keep is None or anywhere or (not is_tracing(keep) and bool(keep.all())):
            return position_ids
        first = keep.to(torch.int8).argmax(-1, keepdim=True)
        return torch.where(keep, position_ids - first, 0)

    def is_recorded(self, kwargs: Mapping[str, Any]) -> bool:
        """Whether the caller or the configuration asks for every layer's hidden states or attentions."""
        keys = ("output_hidden_states", "output_attentions")
        return any(kwargs.get(key, getattr(self.config, key, False)) for key in keys)

    def is_compact(self, attention_mask, keep, segments, source, recorded: bool) -> bool:
        """Whether the batch is computed on its real tokens only."""
        if recorded or is_tracing(source) or self.config._attn_implementation == "flex_attention":
            return False
        if keep is None:
            return attention_mask is None and segments is not None
        return bool(keep.any()) and (segments is not None or not bool(keep.all()))


class HfRopeLMHead(nn.Module):
    """Dense, activation, norm and the projection to the vocabulary: (..., D) -> (..., V), as BERT's."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.embedding_size)
        self.activation: Callable = ACT2FN[config.hidden_act]
        self.norm = nn.LayerNorm(config.embedding_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.embedding_size, config.vocab_size)

    def forward(self, x: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        x = self.norm(self.activation(self.dense(x)))
        return self.decoder(x) if weight is None else F.linear(x, weight, self.decoder.bias)


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

    def shared_weight(self, only_loss: bool):
        """`tied_weight` for a forward in which nothing but the loss leaves the model; else nothing is shared."""
        return tied_weight(self.get_input_embeddings(), self.lm_head.decoder) if only_loss else nullcontext(())


class HfRopeForMaskedLM(HfRopeLM):
    """The encoder with a masked-LM head.

    In training with labels, only labelled tokens go through the head, and `logits` is None; in eval mode `logits` is
    the full (B, L, V). The loss is the same either way.
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
        only_labelled = labels is not None and self.training and not is_tracing(labels)
        with self.shared_weight(only_labelled and not self.model.is_recorded(kwargs)) as shared:
            outputs = self.model(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        x, loss, logits = outputs.last_hidden_state, None, None
        check_labels(labels, x)
        if labels is not None and only_labelled:
            labelled = labels != -100
            logits_there = self.lm_head(x[labelled], *shared)
            loss = self.loss_function(logits_there, labels[labelled], self.config.vocab_size, **kwargs)
        else:
            logits = self.lm_head(x)
            if labels is not None:
                loss = self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class HfRopeForCausalLM(HfRopeLM, GenerationMixin):
    """The decoder with a head that predicts the next token, and `generate`.

    In training with labels, only tokens with a label to predict go through the head, and `logits` is None; in eval mode
    `logits` is the full (B, L, V). The loss is the same either way. A loss needs no cache, and none is made.
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
        following = kwargs.pop("shift_labels", None)
        given = labels if following is None else following
        if given is not None:
            check_kept(logits_to_keep)
        if use_cache is None and (given is not None or self.training):
            use_cache = False
        only_labelled = given is not None and self.training and not is_tracing(given)
        with self.shared_weight(only_labelled and not self.model.is_recorded(kwargs)) as shared:
            outputs = self.model(
                *(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds),
                *(encoder_hidden_states, encoder_attention_mask, cache),
                use_cache=use_cache,
                **kwargs,
            )
        x, loss, logits = outputs.last_hidden_state, None, None
        if given is not None:
            check_labels(given, x)
            following = next_labels(given, attention_mask) if following is None else following
            if only_labelled:
                labelled = following != -100
                loss = self.next_token_loss(self.lm_head(x[labelled], *shared), following[labelled], **kwargs)
            else:
                logits = self.lm_head(x)
                loss = self.next_token_loss(logits, following, **kwargs)
        else:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(x[:, kept])
        return CausalLMOutputWithCrossAttentions(
            loss=loss,
            logits=logits,
            **{CACHE: getattr(outputs, CACHE)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )

    def next_token_loss(self, logits: torch.Tensor, following: torch.Tensor, **kwargs) -> torch.Tensor:
        return self.loss_function(logits, None, self.config.vocab_size, shift_labels=following, **kwargs)

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


def next_labels(labels: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """(B, L) -> (B, L): the label that each token is to predict, the next one; -100 at the end and at padding."""
    following = F.pad(labels[:, 1:], (0, 1), value=-100)
    if attention_mask is None or attention_mask.ndim != 2:
        return following
    return following.masked_fill(attention_mask[:, -labels.shape[1] :] == 0, -100)


def classifier_dropout(config) -> nn.Dropout:
    return nn.Dropout(config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout)


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
        outputs = self.model(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        pooled = outputs.pooler_output
        if pooled is None:
            pooled = self.mean(outputs.last_hidden_state, attention_mask)
        logits = self.classifier(self.dropout(pooled))
        loss = (
            None
            if labels is None
            else self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **kwargs)
        )
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    @staticmethod
    def mean(x: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """(B, L, D) -> (B, D): the mean of the real tokens."""
        if attention_mask is None or attention_mask.ndim != 2:
            return x.mean(1)
        weights = attention_mask.bool()[..., None].to(x.dtype)
        return (x * weights).sum(1) / weights.sum(1).clamp(min=1)


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
        outputs = self.model(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        check_labels(labels, outputs.last_hidden_state)
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None if labels is None else self.loss_function(logits, labels, self.config, **kwargs)
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
        """`start_positions` and `end_positions`: (B,) int64 token indices; an index beyond the input takes no loss."""
        outputs = self.model(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        start_logits, end_logits = self.qa_outputs(outputs.last_hidden_state).unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start_logits, end_logits, start_positions, end_positions, **kwargs)
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class HfRopeForMultipleChoice(HfRopePreTrainedModel):
    """The encoder with one score a choice, from inputs of shape (B, choices, L)."""

    accepts_loss_kwargs = False  # its loss is a mean, so Trainer has to divide by the accumulated steps

    def __init__(self, config):
        super().__init__(config)
        self.model = HfRopeModel(config)
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
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        choices = check_choices(input_ids, inputs_embeds)
        outputs = self.model(*(None if x is None else x.flatten(0, 1) for x in inputs), **kwargs)
        logits = self.classifier(self.dropout(outputs.pooler_output)).view(-1, choices)
        return MultipleChoiceModelOutput(
            loss=None if labels is None else F.cross_entropy(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

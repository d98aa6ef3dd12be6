"""The transformer of the language model: plain layers over a static cache."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from audiogen_fast.errors import check
from audiogen_fast.modules.activations import GatedLinearUnit, get_activation_fn
from audiogen_fast.modules.attention import StreamingMultiheadAttention
from audiogen_fast.modules.kv_cache import KVCache
from audiogen_fast.modules.norm import LayerScale, create_norm_fn, linear
from audiogen_fast.modules.rope import RotaryEmbedding
from audiogen_fast.ops.reference import sin_embedding


@dataclass
class CrossContext:
    """What cross-attention needs, made once per generation.

    `kv` holds one (keys, values) pair per layer for the first rows of the batch; rows past them
    have no text at all, and their cross-attention is exactly zero. `mask`, boolean `[rows, L]`,
    limits the slots attended to; None attends to all, padding included, as the original does.
    """

    kv: Sequence[tuple[Tensor, Tensor]]
    mask: Tensor | None = None


class StreamingTransformerLayer(nn.Module):
    """Self-attention, optional cross-attention, feed-forward; norms before or after each."""

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        bias_ff: bool = True,
        bias_attn: bool = True,
        causal: bool = False,
        past_context: int | None = None,
        custom: bool = False,
        memory_efficient: bool = False,
        attention_as_float32: bool = False,
        qk_layer_norm: bool = False,
        qk_layer_norm_cross: bool = False,
        cross_attention: bool = False,
        layer_scale: float | None = None,
        rope: RotaryEmbedding | None = None,
        attention_dropout: float | None = None,
        kv_repeat: int = 1,
        norm: str = "layer_norm",
        norm_first: bool = False,
        activation: str | Callable[[Tensor], Tensor] = "relu",
        device=None,
        dtype=None,
    ):
        super().__init__()
        options = {"device": device, "dtype": dtype}
        attention_options = {
            "dropout": dropout if attention_dropout is None else attention_dropout,
            "bias": bias_attn,
            "custom": custom,
            "memory_efficient": memory_efficient,
            "attention_as_float32": attention_as_float32,
            **options,
        }
        self.norm_first = norm_first
        self.self_attn = StreamingMultiheadAttention(
            d_model,
            num_heads,
            causal=causal,
            past_context=past_context,
            rope=rope,
            qk_layer_norm=qk_layer_norm,
            kv_repeat=kv_repeat,
            **attention_options,
        )
        self.activation = get_activation_fn(activation)
        gated = isinstance(self.activation, GatedLinearUnit)
        hidden = dim_feedforward // 2 if gated else dim_feedforward
        self.linear1 = nn.Linear(d_model, dim_feedforward, bias=bias_ff, **options)
        self.linear2 = nn.Linear(hidden, d_model, bias=bias_ff, **options)
        self.norm1 = create_norm_fn(norm, d_model, **options)
        self.norm2 = create_norm_fn(norm, d_model, **options)
        self.dropout = nn.Dropout(dropout)
        self.cross_attention: StreamingMultiheadAttention | None = None
        self.layer_scale_1 = self.layer_scale_2 = self.layer_scale_cross = None
        if cross_attention:
            self.cross_attention = StreamingMultiheadAttention(
                d_model,
                num_heads,
                cross_attention=True,
                qk_layer_norm=qk_layer_norm_cross,
                **attention_options,
            )
            self.norm_cross = create_norm_fn("layer_norm", d_model, **options)
        if layer_scale is not None:
            self.layer_scale_1 = LayerScale(d_model, layer_scale, **options)
            self.layer_scale_2 = LayerScale(d_model, layer_scale, **options)
            if cross_attention:
                self.layer_scale_cross = LayerScale(d_model, layer_scale, **options)

    def forward(
        self,
        x: Tensor,
        cross: tuple[tuple[Tensor, Tensor], Tensor | None] | Tensor | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """One layer over `x` `[B, T, D]`.

        `cross` is this layer's ((keys, values), mask), or the source `[B, L, D]` to make them of:
        in here, because a sharded layer has its weights in its forward pass only.
        """
        source = x
        if isinstance(cross, Tensor):
            cross = (self.cross_attention.project_kv(cross), None)
        if self.norm_first:
            x = x + self._self_attention(self.norm1(x), cache, layer)
            if cross is not None:
                x = self._add_cross(x, self.norm_cross, x, cross)
            return x + self._feed_forward(self.norm2(x))
        x = self.norm1(x + self._self_attention(x, cache, layer))
        if cross is not None:
            # In post-norm layers the query is the layer's input, as in the original.
            x = self.norm_cross(self._add_cross(x, None, source, cross))
        return self.norm2(x + self._feed_forward(x))

    def _self_attention(self, x: Tensor, cache: KVCache | None, layer: int) -> Tensor:
        return _scaled(self.dropout(self.self_attn(x, cache, layer)), self.layer_scale_1)

    def _add_cross(self, x: Tensor, norm: nn.Module | None, query: Tensor, cross) -> Tensor:
        (kv, mask), rows = cross, cross[0][0].shape[0]
        if rows == 0:
            return x
        partial = rows < x.shape[0]
        query = query[:rows] if partial else query
        query = query if norm is None else norm(query)
        branch = self.dropout(self.cross_attention.attend(query, kv, mask))
        branch = _scaled(branch, self.layer_scale_cross)
        if not partial:
            return x + branch
        return torch.cat([x[:rows] + branch, x[rows:]])

    def _feed_forward(self, x: Tensor) -> Tensor:
        hidden = self.activation(linear(x, self.linear1.weight, self.linear1.bias))
        out = linear(self.dropout(hidden), self.linear2.weight, self.linear2.bias)
        return _scaled(self.dropout(out), self.layer_scale_2)


class StreamingTransformer(nn.Module):
    """Stack of layers with sinusoidal and/or rotary positions.

    Args:
        d_model, num_heads, num_layers, dim_feedforward: sizes.
        positional_embedding: `sin`, `rope` or `sin_rope`.
        max_period, positional_scale, xpos: of the positions.
        checkpointing: `none`, or recompute each layer in the backward pass with any other value.
        lr, weight_decay: optimiser overrides, kept for the training loop.
        Other arguments: see `StreamingTransformerLayer`.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        num_layers: int,
        dim_feedforward: int = 2048,
        *,
        custom: bool = False,
        memory_efficient: bool = False,
        cross_attention: bool = False,
        positional_embedding: str = "sin",
        max_period: float = 10_000,
        positional_scale: float = 1.0,
        xpos: bool = False,
        lr: float | None = None,
        weight_decay: float | None = None,
        checkpointing: str = "none",
        **layer_options,
    ):
        super().__init__()
        check(
            d_model % num_heads == 0,
            f"num_heads must divide the width {d_model}, got {num_heads}",
        )
        kinds = ("sin", "rope", "sin_rope")
        check(
            positional_embedding in kinds,
            f"positional_embedding must be one of {kinds}, got {positional_embedding!r}",
        )
        self.positional_embedding = positional_embedding
        self.max_period, self.positional_scale = max_period, positional_scale
        self.lr, self.weight_decay, self.checkpointing = lr, weight_decay, checkpointing
        self.has_cross_attention = cross_attention
        rope = None
        if positional_embedding != "sin":
            check(custom or memory_efficient, "rope needs custom or memory_efficient attention")
            rope = RotaryEmbedding(
                d_model // num_heads, max_period=max_period, xpos=xpos, scale=positional_scale
            )
        self.layers = nn.ModuleList(
            StreamingTransformerLayer(
                d_model,
                num_heads,
                dim_feedforward,
                custom=custom,
                memory_efficient=memory_efficient,
                cross_attention=cross_attention,
                rope=rope,
                **layer_options,
            )
            for _ in range(num_layers)
        )

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """An empty cache for `batch` rows and `capacity` positions."""
        attention = self.layers[0].self_attn
        weight = attention.in_proj_weight
        return KVCache(
            len(self.layers),
            batch,
            attention.kv_heads,
            capacity,
            attention.head_dim,
            weight.dtype,
            weight.device,
        )

    def rows_with_text(self, source: Tensor) -> int:
        """Rows of `source` `[B, L, D]`, from the first, whose cross-attention can be non-zero.

        Without a bias it is exactly zero for rows that are all zero. Waits for the device once.
        """
        if self.layers[0].cross_attention.in_proj_bias is not None:
            return source.shape[0]
        used = source.flatten(1).any(dim=1).nonzero()
        return 0 if len(used) == 0 else int(used[-1]) + 1

    def project_cross(
        self, source: Tensor, mask: Tensor | None = None, rows: int | None = None
    ) -> CrossContext:
        """Keys and values of `source` `[B, L, D]` for every layer, of the first `rows` rows."""
        source = source if rows is None else source[:rows]
        kv = [layer.cross_attention.project_kv(source) for layer in self.layers]
        return CrossContext(kv, None if mask is None else mask[: source.shape[0]])

    def forward(
        self,
        x: Tensor,
        cross_attention_src: Tensor | None = None,
        *,
        cross: CrossContext | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Run the stack over `x` `[B, T, D]`.

        Args:
            cross_attention_src: `[B, L, D]`, for a single pass without preparation.
            cross: the same, prepared by `project_cross`.
            cache: continue after the cached positions, and store these.
        Returns:
            `[B, T, D]`.
        """
        given = cross is not None or cross_attention_src is not None
        check(
            given == self.has_cross_attention,
            "this model has cross-attention and needs a text condition"
            if self.has_cross_attention
            else "this model has no cross-attention but got an input for it",
        )
        T = x.shape[1]
        if self.positional_embedding != "rope":
            positions = torch.arange(T, device=x.device) if cache is None else cache.positions(T)
            embedding = sin_embedding(positions, x.shape[-1], self.max_period, x.dtype)
            x = x + self.positional_scale * embedding
        for index, layer in enumerate(self.layers):
            layer_cross = None
            if cross is not None:
                layer_cross = (cross.kv[index], cross.mask)
            elif cross_attention_src is not None:
                layer_cross = cross_attention_src
            if self.checkpointing != "none" and self.training and cache is None:
                x = checkpoint(layer, x, layer_cross, use_reentrant=False)
            else:
                x = layer(x, layer_cross, cache, index)
        if cache is not None:
            cache.advance(T)
        return x


def _scaled(x: Tensor, scale: LayerScale | None) -> Tensor:
    return x if scale is None else scale(x)

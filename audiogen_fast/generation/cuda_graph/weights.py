"""The weights of a decode step: views of the model's own, laid out as the step wants them."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from audiogen_fast.models.lm import LMModel
from audiogen_fast.ops.reference import sin_embedding
from audiogen_fast.ops.weight_formats import QuantizedWeight, quantize


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Sizes of a language model."""

    layers: int
    dim: int
    heads: int
    hidden: int
    n_q: int
    card: int
    eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


@dataclass
class Linear:
    """A linear map: `weight` `[N, K]`, plain or packed, and `bias` `[N]` or None."""

    weight: Tensor | QuantizedWeight
    bias: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K), packed or not."""
        if isinstance(self.weight, QuantizedWeight):
            return self.weight.n, self.weight.k
        return tuple(self.weight.shape)


@dataclass
class Norm:
    """A layer norm: float32 `weight` and `bias`, `[D]` each."""

    weight: Tensor
    bias: Tensor


@dataclass
class LayerWeights:
    """One layer. `qkv` has its rows in the order q | k | v, head by head."""

    norm1: Norm
    qkv: Linear
    out: Linear
    norm2: Norm
    ff1: Linear
    ff2: Linear
    norm_cross: Norm | None = None
    cross_q: Linear | None = None
    cross_out: Linear | None = None


@dataclass
class StepWeights:
    """All of a model that a decode step reads.

    Args:
        size: of the model.
        tables: `[K, card + 1, D]`, the embedding tables of the codebooks.
        layers: from the first.
        out_norm: before the heads.
        heads: the K output heads as one linear map, `[K * card, D]`, codebook by codebook.
        max_period, positional_scale: of the sinusoidal positions.
        dtype: of the activations that enter a product.
    """

    size: ModelSize
    tables: Tensor
    layers: list[LayerWeights]
    out_norm: Norm
    heads: Linear
    max_period: float
    positional_scale: float
    dtype: torch.dtype
    _positions: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def positions(self, count: int) -> Tensor:
        """Position embeddings float32 `[count, D]`, scaled; always the same tensor for a count,
        because graphs remember its address."""
        if count not in self._positions:
            index = torch.arange(count, device=self.tables.device)
            table = sin_embedding(index, self.size.dim, self.max_period)
            self._positions[count] = self.positional_scale * table
        return self._positions[count]


@torch.no_grad()
def step_weights(lm: LMModel, format: str | None = None) -> StepWeights:
    """The weights of `lm`, without copies where its own layout is the wanted one.

    Args:
        format: `int8` or `int4` to pack every matrix of the step that way; None for the model's
            own weights. Norms, embeddings and biases are never packed.
    """
    layers, dim = lm.transformer.layers, lm.dim
    size = ModelSize(
        layers=len(layers),
        dim=dim,
        heads=layers[0].self_attn.num_heads,
        hidden=layers[0].linear1.out_features,
        n_q=lm.n_q,
        card=lm.card,
        eps=layers[0].norm1.eps,
    )
    biased = lm.linears[0].bias is not None
    return StepWeights(
        size=size,
        tables=torch.stack([table.weight.detach() for table in lm.emb]),
        layers=[_layer(layer, dim, format) for layer in layers],
        out_norm=_norm(lm.out_norm),
        heads=_linear(
            torch.cat([head.weight for head in lm.linears]),
            torch.cat([head.bias for head in lm.linears]) if biased else None,
            format,
        ),
        max_period=lm.transformer.max_period,
        positional_scale=lm.transformer.positional_scale,
        dtype=layers[0].linear1.weight.dtype,
    )


def _layer(layer: torch.nn.Module, dim: int, format: str | None) -> LayerWeights:
    own, cross = layer.self_attn, layer.cross_attention
    weights = LayerWeights(
        norm1=_norm(layer.norm1),
        qkv=_linear(own.in_proj_weight, own.in_proj_bias, format),
        out=_linear(own.out_proj.weight, own.out_proj.bias, format),
        norm2=_norm(layer.norm2),
        ff1=_linear(layer.linear1.weight, layer.linear1.bias, format),
        ff2=_linear(layer.linear2.weight, layer.linear2.bias, format),
    )
    if cross is not None:
        bias = None if cross.in_proj_bias is None else cross.in_proj_bias[:dim]
        weights.norm_cross = _norm(layer.norm_cross)
        weights.cross_q = _linear(cross.in_proj_weight[:dim], bias, format)
        weights.cross_out = _linear(cross.out_proj.weight, cross.out_proj.bias, format)
    return weights


def _linear(weight: Tensor, bias: Tensor | None, format: str | None) -> Linear:
    weight = weight.detach()
    packed = weight if format is None else quantize(weight, format)
    return Linear(packed, None if bias is None else bias.detach())


def _norm(module: torch.nn.LayerNorm) -> Norm:
    return Norm(module.weight.detach().float(), module.bias.detach().float())

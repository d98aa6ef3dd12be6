"""Self-attention with a static cache, and cross-attention with keys and values made once."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiogen_fast.errors import check
from audiogen_fast.modules.kv_cache import KVCache
from audiogen_fast.modules.norm import LayerNorm, linear
from audiogen_fast.modules.rope import RotaryEmbedding
from audiogen_fast.ops.autograd import cross_attention


class CrossSource(NamedTuple):
    """What cross-attention attends to, before its projection.

    `vectors` `[B, L, D]`; of each row, all but the first `lengths` (int64 `[B]`) have keys and
    values that are zero, and `n_pad` (int64 `[B]`) is their number.
    """

    vectors: Tensor
    lengths: Tensor
    n_pad: Tensor


class StreamingMultiheadAttention(nn.Module):
    """Multi-head attention with one packed input projection, rows in the order q | k | v.

    Args:
        embed_dim, num_heads: width and number of heads.
        dropout: on the attention weights, in training.
        bias: biases in both projections.
        causal: each step sees itself and the past only.
        past_context: how many past steps it sees; None for all.
        custom, memory_efficient: the original's choice of attention code. The result is the same;
            kept because they decide two of its behaviours (`past_context` is ignored by the
            memory-efficient code, and see `rope_positions`).
        attention_as_float32: compute attention in float32 whatever the dtype.
        rope: rotary embedding for queries and keys.
        cross_attention: queries attend to another sequence.
        qk_layer_norm: normalise queries and keys, all heads together.
        kv_repeat: each key/value head serves this many query heads.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        causal: bool = False,
        past_context: int | None = None,
        custom: bool = False,
        memory_efficient: bool = False,
        attention_as_float32: bool = False,
        rope: RotaryEmbedding | None = None,
        cross_attention: bool = False,
        qk_layer_norm: bool = False,
        kv_repeat: int = 1,
        device=None,
        dtype=None,
    ):
        super().__init__()
        check(
            not (cross_attention and causal), "causal cannot be used together with cross_attention"
        )
        check(
            past_context is None or causal,
            f"past_context needs causal=True, got past_context={past_context}, causal=False",
        )
        check(
            num_heads % kv_repeat == 0,
            f"kv_repeat must divide num_heads={num_heads}, got {kv_repeat}",
        )
        plain = not custom and not memory_efficient
        check(
            kv_repeat == 1 or not (cross_attention or plain),
            "kv_repeat > 1 needs self-attention with custom or memory_efficient set",
        )
        check(not (qk_layer_norm and kv_repeat > 1), "qk_layer_norm needs kv_repeat=1")
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.kv_heads = num_heads // kv_repeat
        self.dropout, self.causal = dropout, causal
        self.past_context = None if memory_efficient else past_context
        self.memory_efficient, self.attention_as_float32 = memory_efficient, attention_as_float32
        # The same embedding serves all layers; keeping it out of the modules keeps its name single.
        self.__dict__["rope"] = rope
        options = {"device": device, "dtype": dtype}
        projection = nn.Linear(
            embed_dim, embed_dim + 2 * self.kv_heads * self.head_dim, bias=bias, **options
        )
        self.in_proj_weight, self.in_proj_bias = projection.weight, projection.bias
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias, **options)
        if bias:
            nn.init.zeros_(self.in_proj_bias)
            nn.init.zeros_(self.out_proj.bias)
        self.q_layer_norm = LayerNorm(embed_dim, device=device) if qk_layer_norm else None
        self.k_layer_norm = LayerNorm(embed_dim, device=device) if qk_layer_norm else None

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        # Checkpoints of the non-custom attention keep everything under `mha.`.
        for name in [n for n in state_dict if n.startswith(prefix + "mha.")]:
            state_dict[prefix + name[len(prefix) + 4 :]] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def rope_positions(self, cache: KVCache | None, n: int, device: torch.device) -> Tensor:
        """Rotary positions of the next n steps, with the original's two errors while it streams.

        After the prompt, its memory-efficient attention takes the number of heads for the number
        of cached steps; its other attention forgets how much of a prompt longer than
        `past_context` it has dropped. Checkpoints were heard that way, so both are reproduced.
        Without a cache, and otherwise, the positions are the true ones.
        """
        if cache is None:
            return torch.arange(n, device=device)
        positions = cache.positions(n)
        if cache.prompt_length is None:
            return positions
        if self.memory_efficient:
            return positions - cache.length + self.kv_heads
        if self.past_context is not None:
            return positions - max(0, cache.prompt_length - self.past_context)
        return positions

    def forward(self, x: Tensor, cache: KVCache | None = None, layer: int = 0) -> Tensor:
        """Self-attention over `x` `[B, T, D]`, after what `cache` holds for `layer`."""
        B, T, _ = x.shape
        width = self.kv_heads * self.head_dim
        projected = linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = projected.split([self.embed_dim, width, width], dim=-1)
        if self.q_layer_norm is not None:
            q, k = self.q_layer_norm(q).to(v.dtype), self.k_layer_norm(k).to(v.dtype)
        q, k, v = self._heads(q), self._heads(k), self._heads(v)
        if self.rope is not None:
            positions = self.rope_positions(cache, T, x.device)
            q = self.rope.rotate(q, positions, time_dim=2, invert_decay=False)
            k = self.rope.rotate(k, positions, time_dim=2, invert_decay=True)
        past = 0
        if cache is not None:
            past = cache.length
            k, v = cache.write(layer, cache.positions(T), k, v)
        if self.past_context is not None and T == 1 and k.shape[2] > self.past_context + 1:
            k, v = k[:, :, -self.past_context - 1 :], v[:, :, -self.past_context - 1 :]
        mask = self._causal_mask(T, past, x.device) if self.causal and T > 1 else None
        plain_causal = mask is None and self.causal and T > 1
        return self._attend(q, k, v, mask, plain_causal, x)

    def project_kv(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-attention keys and values `[B, H, L, d]` of `source` `[B, L, D]`, made once."""
        D = self.embed_dim
        bias = self.in_proj_bias
        projected = linear(source, self.in_proj_weight[D:], None if bias is None else bias[D:])
        k, v = projected.split(D, dim=-1)
        if self.k_layer_norm is not None:
            k = self.k_layer_norm(k).to(v.dtype)
        return self._heads(k), self._heads(v)

    def measure_source(self, vectors: Tensor) -> CrossSource:
        """The source with its lengths, without waiting for the device.

        Only without a bias has a zero vector a zero key and value.
        """
        B, L, _ = vectors.shape
        slots = torch.arange(1, L + 1, device=vectors.device)
        if self.in_proj_bias is None and self.k_layer_norm is None and L > 0:
            lengths = torch.where((vectors != 0).any(dim=-1), slots, 0).amax(dim=1)
        else:
            lengths = torch.full([B], L, device=vectors.device)
        return CrossSource(vectors, lengths, L - lengths)

    def attend_source(self, x: Tensor, source: CrossSource) -> Tensor:
        """Cross-attention of `x` `[B, T, D]`, with the fused op where it does the same."""
        kv = self.project_kv(source.vectors)
        if self.attention_as_float32 or (self.training and self.dropout):
            return self.attend(x, kv)
        out = cross_attention(self._query(x, kv[0].dtype), *kv, source.lengths, source.n_pad)
        return linear(out.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)

    def attend(self, x: Tensor, kv: tuple[Tensor, Tensor], mask: Tensor | None = None) -> Tensor:
        """Cross-attention of `x` `[B, T, D]` over `project_kv`'s result.

        `mask` is a boolean `[B, L]` of the slots to attend to; None for all of them.
        """
        mask = None if mask is None else mask[:, None, None, :]
        return self._attend(self._query(x, kv[0].dtype), kv[0], kv[1], mask, False, x)

    def _query(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        D, bias = self.embed_dim, self.in_proj_bias
        q = linear(x, self.in_proj_weight[:D], None if bias is None else bias[:D])
        if self.q_layer_norm is not None:
            q = self.q_layer_norm(q).to(dtype)
        return self._heads(q)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def _causal_mask(self, T: int, past: int, device: torch.device) -> Tensor | None:
        """Boolean `[T, past + T]`, or None where SDPA's own causal mask says the same."""
        if past == 0 and self.past_context is None:
            return None
        delta = torch.arange(past, past + T, device=device).view(-1, 1)
        delta = delta - torch.arange(past + T, device=device)
        mask = delta >= 0
        return mask if self.past_context is None else mask & (delta <= self.past_context)

    def _attend(self, q, k, v, mask: Tensor | None, is_causal: bool, x: Tensor) -> Tensor:
        if self.attention_as_float32:
            q, k, v = q.float(), k.float(), v.float()
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=is_causal,
            enable_gqa=self.kv_heads != self.num_heads,
        )
        out = out.transpose(1, 2).flatten(2)
        return linear(out, self.out_proj.weight, self.out_proj.bias)

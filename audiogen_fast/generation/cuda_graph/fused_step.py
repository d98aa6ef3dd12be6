"""One decode step by fused Triton kernels: one launch for each matrix of a layer.

A layer is: norm, q | k | v and the append to the caches; attention; output projection and residual;
norm and text query; attention to the text; output projection and residual; norm, first
feed-forward matrix and GELU; second one and residual. What a kernel does not cover is done as in
`torch_step`.
"""

import dataclasses
import os

import torch
from torch import Tensor

from audiogen_fast._backend import why_no_triton
from audiogen_fast.generation.cuda_graph.state import DecodeState
from audiogen_fast.generation.cuda_graph.torch_step import (
    embed,
    noise_ahead,
    write_codes,
)
from audiogen_fast.generation.cuda_graph.weights import Linear, Norm, StepWeights
from audiogen_fast.ops import reference
from audiogen_fast.ops.weight_formats import QuantizedWeight

# More rows than this are better served by the library's products.
MOST_ROWS = 256


def why_not_fused(rows: int, device: torch.device) -> str | None:
    """None if steps of so many rows are decoded by fused kernels there, else the reason."""
    reason = why_no_triton()
    if reason is None and device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        reason = f"the model is on {device}"
    if reason is None and rows > MOST_ROWS:
        reason = f"it is made for at most {MOST_ROWS} rows, these are {rows}"
    return reason


class FusedSteps:
    """Runs steps of a state, like `torch_step.torch_steps` with the first two arguments given.

    All scratch is made here, so that a step allocates little and a capture nothing that lasts.
    """

    def __init__(self, weights: StepWeights, state: DecodeState):
        # Not at the top: without a GPU, nothing else needs triton.
        from audiogen_fast.kernels import (
            _launch,
            attention_decode,
            cross_attention_decode,
            norm_linear,
        )

        self.weights, self.state, self._kernels = weights, state, norm_linear
        self._attention = attention_decode
        self._text_attention = cross_attention_decode.cross_attention_decode
        size, R = weights.size, state.shape.rows
        kv, text = state.keys[0].dtype, state.text_keys[0].dtype
        text_rows = state.shape.text_rows
        self.q = state.buffer("q", (R, size.dim), kv)
        self.text_q = state.buffer("text_q", (text_rows, size.dim), text)
        self.mixed = state.buffer("mixed", (R, size.dim), weights.dtype)
        self.hidden = state.buffer("hidden", (R, size.hidden), weights.dtype)
        self._processors = _launch.multiprocessors(state.device)
        self._interpreted = _launch.interpreted()
        needed = [
            norm_linear.workspace_sizes(self._config(rows, linear), rows, _shape(linear)[0])
            for rows, linear in self._products()
        ]
        # Launches follow one another, so they share it.
        partial, counters = (max(max(sizes), 1) for sizes in zip(*needed, strict=True))
        self.workspace = norm_linear.Workspace(
            state.buffer("partial", (partial,), torch.float32),
            state.buffer("counters", (counters,), torch.int32),
        )

    def _products(self) -> list[tuple[int, Linear]]:
        """Rows and matrix of every product of a step; all layers are alike."""
        layer, shape = self.weights.layers[0], self.state.shape
        products = [(shape.rows, m) for m in (layer.qkv, layer.out, layer.ff1, layer.ff2)]
        if shape.text_rows:
            products += [(shape.text_rows, m) for m in (layer.cross_q, layer.cross_out)]
        return [*products, (shape.slots, self.weights.heads)]

    def _config(self, rows: int, linear: Linear):
        """The configuration of a product. The interpreter runs programs one after another, each op
        at the same price whatever its size, so that few large ones suit it better."""
        n, k, bits, group = _shape(linear)
        config = self._kernels.choose_config(rows, n, k, bits, group, self._processors)
        return dataclasses.replace(config, block_n=128) if self._interpreted else config

    @torch.no_grad()
    def __call__(self, limit: int, count: int = 1, sampled: bool = True) -> None:
        """See `torch_steps`."""
        noise = noise_ahead(self.state, count).unbind() if sampled else [None] * count
        for one in noise:
            self._step(limit, one)

    def _step(self, limit: int, noise: Tensor | None) -> None:
        state, weights = self.state, self.weights
        state.x.copy_(embed(weights, state))
        scratch = self.attention_scratch(limit)
        for index, layer in enumerate(weights.layers):
            self._self_attention(index, limit, scratch)
            if state.shape.text_rows:
                self._cross_attention(index)
            self._product(state.x, layer.ff1, self.hidden, layer.norm2, gelu=True)
            self._product(self.hidden, layer.ff2, state.x, residual=True)
        self._product(
            state.x,
            weights.heads,
            state.logits.flatten(1),
            weights.out_norm,
            guidance=state.cfg_coef if state.guided else None,
        )
        drawn = reference.sample_slots(
            state.logits, noise, state.temperature, state.top_k, state.top_p
        )
        write_codes(state, drawn)

    def attention_scratch(self, limit: int):
        size, state = self.weights.size, self.state
        pairs = (state.shape.rows, size.heads, -(-limit // self._attention.CHUNK))
        return self._attention.Workspace(
            state.buffer(f"values-{limit}", (*pairs, size.head_dim), torch.float32),
            state.buffer(f"weights-{limit}", (*pairs, 2), torch.float32),
            state.buffer(f"arrived-{limit}", pairs[:2], torch.int32),
        )

    def _self_attention(self, index: int, limit: int, scratch) -> None:
        state, layer = self.state, self.weights.layers[index]
        keys, values = state.keys[index], state.values[index]
        append = self._kernels.KVAppend(keys, values, state.positions)
        self._product(state.x, layer.qkv, self.q, layer.norm1, append=append)
        self._attention.attention_decode(
            self.q,
            keys,
            values,
            state.positions,
            self.mixed,
            active=state.active,
            limit=limit,
            workspace=scratch,
        )
        self._product(self.mixed, layer.out, state.x, residual=True)

    def _cross_attention(self, index: int) -> None:
        state, layer = self.state, self.weights.layers[index]
        rows = state.shape.text_rows
        x, mixed = state.x.narrow(0, 0, rows), self.mixed.narrow(0, 0, rows)
        self._product(x, layer.cross_q, self.text_q, layer.norm_cross)
        self._text_attention(
            self.text_q,
            state.text_keys[index],
            state.text_values[index],
            state.text_lengths,
            state.text_pads,
            mixed,
            active=state.active,
        )
        self._product(mixed, layer.cross_out, x, residual=True)

    def _product(
        self, x: Tensor, linear: Linear, out: Tensor, norm: Norm | None = None, **options
    ) -> None:
        """`norm_linear` into `out`; rows of slots that are not active are left as they are."""
        weight, scale = linear.weight, None
        if isinstance(weight, QuantizedWeight):
            weight, scale = weight.data, weight.scale
        self._kernels.norm_linear(
            x,
            weight,
            out,
            scale=scale,
            bias=linear.bias,
            norm=None if norm is None else (norm.weight, norm.bias),
            eps=self.weights.size.eps,
            active=self.state.active,
            compute_dtype=self.weights.dtype,
            workspace=self.workspace,
            config=self._config(len(out), linear),
            **options,
        )


def _shape(linear: Linear) -> tuple[int, int, int, int]:
    """(N, K, bits of a weight, columns that share a scale) of a matrix."""
    weight = linear.weight
    if isinstance(weight, QuantizedWeight):
        return weight.n, weight.k, int(weight.format[3:]), weight.group
    return *weight.shape, weight.element_size() * 8, 0

"""One decode step of Triton kernels over a `DecodeState`: 8 launches a layer and 3 more.

    embed | norm + q, k, v + cache append, attention, out + residual,
            norm + q, cross-attention, out + residual,
            norm + ff1 + gelu, ff2 + residual               (each layer)
          | norm + guidance + heads, sampling and advance

Nothing is allocated after `FusedSteps` was made, and nothing waits for the device, so that a CUDA
graph can capture it. It does what `torch_step` does, in the same order; products round later (sums
and the residual stream are float32), and guidance mixes the inputs of the heads instead of their
outputs, which is the same but for rounding.

With more than a few rows, whoever writes the residual stream (the embedding, and each product that
adds to it) also leaves the statistics of the layer norm that comes next, so that no program of the
next product has to read whole rows for them.
"""

import torch
from torch import Tensor

from audiogen_fast._backend import why_no_triton
from audiogen_fast.generation.cuda_graph.state import DecodeState
from audiogen_fast.generation.cuda_graph.weights import Linear, Norm, StepWeights
from audiogen_fast.ops.weight_formats import QuantizedWeight

# More rows than this are better served by the library's products.
MOST_ROWS = 256


def why_not_fused(rows: int, device: torch.device) -> str | None:
    """None if steps of so many rows are decoded by fused kernels there, else the reason."""
    reason = why_no_triton(device)
    if reason is None and rows > MOST_ROWS:
        reason = f"it is made for at most {MOST_ROWS} rows, these are {rows}"
    return reason


def launches_per_step(layers: int, text: bool = True) -> int:
    """How many kernels a step launches."""
    return (8 if text else 5) * layers + 3


class FusedSteps:
    """Runs steps of a state, like `torch_step.torch_steps` with the first two arguments given.

    All scratch is made here.
    """

    def __init__(self, weights: StepWeights, state: DecodeState):
        # Not at the top: without a GPU, nothing else needs triton.
        from audiogen_fast.kernels import attention_decode, norm_linear, sample_codebooks
        from audiogen_fast.kernels import norm_linear_config as configs
        from audiogen_fast.kernels.cross_attention_decode import cross_attention_decode
        from audiogen_fast.kernels.row_statistics import statistics_shape
        from audiogen_fast.kernels.step_embedding import step_embedding

        self.weights, self.state = weights, state
        self._products, self._attention = norm_linear, attention_decode
        self._sampling, self._attend_to_text = sample_codebooks, cross_attention_decode
        self._embed, self._configs = step_embedding, configs
        size, rows, buffer = weights.size, state.shape.rows, state.buffer
        self.positions = weights.positions(state.shape.positions)
        self.branch = buffer("branch", (rows, size.dim), weights.dtype)
        self.attended = buffer("attended", (rows, size.dim), weights.dtype)
        self.hidden = buffer("hidden", (rows, size.hidden), weights.dtype)
        # One form for all products of the step: what one leaves is what the next expects.
        self.tiled = configs.takes_tiles(rows, weights.dtype)
        self.statistics = (
            buffer("statistics", statistics_shape(rows, size.dim), torch.float32)
            if self.tiled
            else None
        )
        self.workspace = self._product_workspace()
        chunks = -(-state.shape.positions // attention_decode.CHUNK)
        self._parts = buffer("parts", (rows * size.heads * chunks * size.head_dim,), torch.float32)
        self._sums = buffer("sums", (rows * size.heads * chunks * 2,), torch.float32)
        self._arrived = buffer("arrived", (rows, size.heads), torch.int32)
        self.slots = sample_codebooks.Slots(
            sequence=state.sequence,
            pattern_mask=state.pattern_mask,
            active=state.active,
            step=state.step,
            ends=state.ends,
            positions=state.positions,
            seeds=state.seeds,
            items=state.items,
            draws=state.draws,
            temperature=state.temperature,
            top_k=state.top_k,
            top_p=state.top_p,
            counters=buffer("slot counters", (state.shape.slots,), torch.int32),
        )

    def _product_workspace(self):
        """Scratch large enough for every product; they follow one another, so they share it."""
        shape, layer, activation = self.state.shape, self.weights.layers[0], self.branch.dtype
        mixed = 8 if self.state.guided else 4  # bytes of the rows that a column of the heads reads
        products = [(shape.slots, self.weights.heads, mixed), (shape.rows, layer.qkv, 4)]
        products += [(shape.rows, layer.ff1, 4)]
        products += [(shape.rows, m, activation.itemsize) for m in (layer.out, layer.ff2)]
        if shape.text_rows:
            products += [(shape.text_rows, layer.cross_q, 4)]
            products += [(shape.text_rows, layer.cross_out, activation.itemsize)]
        partial = counters = 1
        for rows, linear, inputs in products:
            config = self._config(rows, linear, inputs)
            needed = self._configs.workspace_sizes(config, rows, linear.shape[0])
            partial, counters = max(partial, needed[0]), max(counters, needed[1])
        return self._products.Workspace(
            self.state.buffer("product parts", (partial,), torch.float32),
            self.state.buffer("product counters", (counters,), torch.int32),
        )

    def _config(self, rows: int, linear: Linear, inputs: int):
        """How a product of this step is computed; `inputs`: bytes it reads for a column of a row"""
        weight = linear.weight
        if isinstance(weight, QuantizedWeight):
            bits, group = int(weight.format[3:]), weight.group
        else:
            bits, group = 8 * weight.element_size(), 0
        sizes = (*linear.shape, bits, group)
        return self._configs.default_config(rows, *sizes, self.state.device, inputs, self.tiled)

    @torch.no_grad()
    def __call__(self, limit: int, count: int = 1, sampled: bool = True) -> None:
        """See `torch_steps`."""
        for _ in range(count):
            self.step(limit, sampled)

    def step(self, limit: int, sampled: bool = True) -> None:
        """One decode step of every active slot; see `torch_steps` for the arguments."""
        state, weights = self.state, self.weights
        self._embed(
            state.sequence, state.step, state.active, state.positions, weights.tables,
            self.positions, state.x, self.statistics,
        )  # fmt: skip
        scratch = self._attention_workspace(limit)
        for index, layer in enumerate(weights.layers):
            keys, values = state.keys[index], state.values[index]
            append = self._products.KVAppend(keys, values, state.positions)
            self._product(state.x, layer.qkv, self.branch, layer.norm1, append=append)
            self._attention.attention_decode(
                self.branch, keys, values, state.positions, self.attended,
                active=state.active, limit=limit, workspace=scratch,
            )  # fmt: skip
            self._product(self.attended, layer.out, state.x, residual=True)
            if state.shape.text_rows:
                self._cross_attention(index)
            self._product(state.x, layer.ff1, self.hidden, layer.norm2, gelu=True)
            self._product(self.hidden, layer.ff2, state.x, residual=True)
        guidance = state.cfg_coef if state.guided else None
        logits = state.logits.flatten(1)
        self._product(state.x, weights.heads, logits, weights.out_norm, guidance=guidance)
        self._sampling.sample_codebooks(state.logits, self.slots, sampled)

    def _cross_attention(self, index: int) -> None:
        state, layer, rows = self.state, self.weights.layers[index], self.state.shape.text_rows
        x, q, out = (t.narrow(0, 0, rows) for t in (state.x, self.branch, self.attended))
        self._product(x, layer.cross_q, q, layer.norm_cross)
        self._attend_to_text(
            q, state.text_keys[index], state.text_values[index], state.text_lengths,
            state.text_pads, out, active=state.active,
        )  # fmt: skip
        self._product(out, layer.cross_out, x, residual=True)

    def _product(
        self, x: Tensor, linear: Linear, out: Tensor, norm: Norm | None = None, **then
    ) -> None:
        """`norm_linear` into `out`; rows of slots that are not active are left as they are."""
        weight, scale = linear.weight, None
        if isinstance(weight, QuantizedWeight):
            weight, scale = weight.data, weight.scale
        rows, mixed = out.shape[0], "guidance" in then and then["guidance"] is not None
        inputs = x.element_size() * (2 if mixed else 1)
        self._products.norm_linear(
            x,
            weight,
            out,
            scale=scale,
            bias=linear.bias,
            norm=None if norm is None else (norm.weight, norm.bias),
            eps=self.weights.size.eps,
            active=self.state.active,
            compute_dtype=self.weights.dtype,
            statistics=None if norm is None else self.statistics,
            out_statistics=self.statistics if then.get("residual") else None,
            workspace=self.workspace,
            config=self._config(rows, linear, inputs),
            **then,
        )

    def _attention_workspace(self, limit: int):
        """Scratch of attention over `limit` positions, at the front of that for all of them."""
        rows, heads = self._arrived.shape
        used = rows * heads * -(-limit // self._attention.CHUNK)
        width = self.weights.size.head_dim
        return self._attention.Workspace(
            self._parts.narrow(0, 0, used * width).view(rows, heads, -1, width),
            self._sums.narrow(0, 0, used * 2).view(rows, heads, -1, 2),
            self._arrived,
        )

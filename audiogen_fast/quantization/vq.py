"""Residual vector quantiser (Zeghidour et al. 2021, algorithm 1)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiogen_fast.errors import check
from audiogen_fast.ops import dispatch
from audiogen_fast.quantization.base import BaseQuantizer, QuantizedResult
from audiogen_fast.quantization.codebook import EuclideanCodebook, broadcast


class VectorQuantization(nn.Module):
    """One codebook with its losses, on latents `[B, D, T]`.

    Args:
        commitment_weight: weight of the commitment loss.
        orthogonal_reg_weight, orthogonal_reg_active_codes_only, orthogonal_reg_max_codes: of the
            orthogonal regularisation (eq. 2 of arXiv 2112.00384).
        Other arguments: see `EuclideanCodebook`.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        commitment_weight: float = 1.0,
        orthogonal_reg_weight: float = 0.0,
        orthogonal_reg_active_codes_only: bool = False,
        orthogonal_reg_max_codes: int | None = None,
        **codebook_options,
    ):
        super().__init__()
        self._codebook = EuclideanCodebook(dim, codebook_size, **codebook_options)
        self.commitment_weight = commitment_weight
        self.orthogonal_reg_weight = orthogonal_reg_weight
        self.orthogonal_reg_active_codes_only = orthogonal_reg_active_codes_only
        self.orthogonal_reg_max_codes = orthogonal_reg_max_codes

    @property
    def codebook(self) -> Tensor:
        """The vectors `[card, D]`."""
        return self._codebook.embed

    def encode(self, x: Tensor) -> Tensor:
        """Indices `[B, T]` of `x` `[B, D, T]`."""
        return self._codebook.encode(x.transpose(1, 2))

    def decode(self, indices: Tensor) -> Tensor:
        """Vectors `[B, D, T]` of `indices` `[B, T]`."""
        return self._codebook.decode(indices).transpose(1, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantised `[B, D, T]`, indices `[B, T]` and the loss `[1]`."""
        x = x.transpose(1, 2)
        quantized, indices = self._codebook(x)
        loss = torch.zeros(1, device=x.device, requires_grad=self.training)
        if self.training:
            quantized = x + (quantized - x).detach()
            if self.commitment_weight > 0:
                loss = loss + self.commitment_weight * F.mse_loss(quantized.detach(), x)
            if self.orthogonal_reg_weight > 0:
                loss = loss + self.orthogonal_reg_weight * self._orthogonal_loss(indices)
        return quantized.transpose(1, 2), indices, loss

    def _orthogonal_loss(self, indices: Tensor) -> Tensor:
        codebook = self.codebook
        if self.orthogonal_reg_active_codes_only:
            codebook = codebook[torch.unique(indices)]
        limit = self.orthogonal_reg_max_codes
        if limit is not None and codebook.shape[0] > limit:
            codebook = codebook[torch.randperm(codebook.shape[0], device=codebook.device)[:limit]]
        unit = F.normalize(codebook, dim=-1)
        identity = torch.eye(unit.shape[0], device=unit.device)
        return ((unit @ unit.t() - identity) ** 2).sum() / unit.shape[0] ** 2


class ResidualVectorQuantization(nn.Module):
    """Quantisers in a row, each on what the ones before left over."""

    def __init__(self, *, num_quantizers: int, **layer_options):
        super().__init__()
        self.layers = nn.ModuleList(
            VectorQuantization(**layer_options) for _ in range(num_quantizers)
        )

    def forward(self, x: Tensor, n_q: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Quantised `[B, D, T]`, indices `[K, B, T]` and losses `[K, 1]` of the first n_q."""
        total, residual = torch.zeros((), device=x.device), x
        all_indices, losses = [], []
        for layer in self.layers[: n_q or len(self.layers)]:
            quantized, indices, loss = layer(residual)
            # Each layer's input gets its gradient from its own loss only.
            quantized = quantized.detach()
            residual = residual - quantized
            total = total + quantized
            all_indices.append(indices)
            losses.append(loss)
        if self.training:
            total = x + (total - x).detach()
        return total, torch.stack(all_indices), torch.stack(losses)

    def encode(self, x: Tensor, n_q: int | None = None) -> Tensor:
        """Indices `[K, B, T]` of `x` `[B, D, T]`."""
        residual, all_indices = x, []
        for layer in self.layers[: n_q or len(self.layers)]:
            indices = layer.encode(residual)
            residual = residual - layer.decode(indices)
            all_indices.append(indices)
        return torch.stack(all_indices)


class ResidualVectorQuantizer(BaseQuantizer):
    """Residual vector quantiser of latents `[B, dimension, T]`.

    Args:
        dimension: width of the vectors.
        n_q: number of codebooks.
        q_dropout: use a random number of codebooks in each training step.
        bins: entries per codebook.
        Other arguments: see `EuclideanCodebook` and `VectorQuantization`.
    """

    def __init__(
        self,
        dimension: int = 256,
        n_q: int = 8,
        q_dropout: bool = False,
        bins: int = 1024,
        decay: float = 0.99,
        kmeans_init: bool = True,
        kmeans_iters: int = 10,
        threshold_ema_dead_code: float = 2,
        orthogonal_reg_weight: float = 0.0,
        orthogonal_reg_active_codes_only: bool = False,
        orthogonal_reg_max_codes: int | None = None,
    ):
        super().__init__()
        self.max_n_q = self.n_q = n_q
        self.dimension, self.bins, self.q_dropout = dimension, bins, q_dropout
        self.vq = ResidualVectorQuantization(
            num_quantizers=n_q,
            dim=dimension,
            codebook_size=bins,
            decay=decay,
            kmeans_init=kmeans_init,
            kmeans_iters=kmeans_iters,
            threshold_ema_dead_code=threshold_ema_dead_code,
            orthogonal_reg_weight=orthogonal_reg_weight,
            orthogonal_reg_active_codes_only=orthogonal_reg_active_codes_only,
            orthogonal_reg_max_codes=orthogonal_reg_max_codes,
        )

    def forward(self, x: Tensor, frame_rate: float) -> QuantizedResult:
        n_q = self.n_q
        if self.training and self.q_dropout:
            drawn = torch.randint(1, self.n_q + 1, (1,), device=x.device)
            broadcast([drawn])  # or ranks would wait for codebooks that others leave out
            n_q = int(drawn)
        quantized, codes, losses = self.vq(x, n_q=n_q)
        bandwidth = torch.tensor(n_q * math.log2(self.bins) * frame_rate / 1000).to(x)
        return QuantizedResult(quantized, codes.transpose(0, 1), bandwidth, penalty=losses.mean())

    def encode(self, x: Tensor) -> Tensor:
        """Codes `[B, K, T]` (int64) of latents `[B, D, T]`."""
        return self.vq.encode(x, n_q=self.n_q).transpose(0, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Latents `[B, D, T]` of codes `[B, K, T]`."""
        check(
            codes.dim() == 3 and 1 <= codes.shape[1] <= self.max_n_q,
            f"codes must be [B, K, T] with 1 <= K <= {self.max_n_q}, got {tuple(codes.shape)}",
        )
        layers = self.vq.layers[: codes.shape[1]]
        return dispatch.rvq_decode(codes, [layer.codebook for layer in layers])

    @property
    def total_codebooks(self) -> int:
        return self.max_n_q

    @property
    def num_codebooks(self) -> int:
        return self.n_q

    def set_num_codebooks(self, n: int) -> None:
        check(1 <= n <= self.max_n_q, f"n must lie in 1..{self.max_n_q}, got {n}")
        self.n_q = n

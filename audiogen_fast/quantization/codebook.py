"""One codebook of vectors: nearest-entry search, and learning by k-means and moving averages.

Learning follows van den Oord et al. 2017 (appendix A.1) and Zeghidour et al. 2021 (SoundStream).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

_ALONE = ContextVar("alone", default=False)


def sample_vectors(samples: Tensor, num: int) -> Tensor:
    """`num` random rows of `samples` `[N, D]`, with repetition only if there are too few."""
    if samples.shape[0] >= num:
        index = torch.randperm(samples.shape[0], device=samples.device)[:num]
    else:
        index = torch.randint(0, samples.shape[0], (num,), device=samples.device)
    return samples[index]


def kmeans(samples: Tensor, num_clusters: int, num_iters: int = 10) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from random rows: means `[num_clusters, D]` and cluster sizes."""
    means = sample_vectors(samples, num_clusters)
    counts = torch.zeros(num_clusters, dtype=torch.long, device=samples.device)
    for _ in range(num_iters):
        nearest = torch.cdist(samples, means).argmin(dim=-1)
        counts = torch.bincount(nearest, minlength=num_clusters)
        sums = torch.zeros_like(means).index_add_(0, nearest, samples)
        updated = sums / counts.clamp(min=1).unsqueeze(-1)
        means = torch.where((counts == 0).unsqueeze(-1), means, updated)
    return means, counts


@contextmanager
def alone() -> Iterator[None]:
    """Codebooks learn from this rank's batches only, as if there were no process group."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def _together() -> bool:
    return dist.is_available() and dist.is_initialized() and not _ALONE.get()


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Give all ranks rank 0's values; does nothing outside a process group."""
    if _together():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def gather(rows: Tensor) -> Tensor:
    """The rows `[N, D]` of all ranks, in their order; each may have another number of them."""
    if not _together():
        return rows
    counts = [
        torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(dist.get_world_size())
    ]
    dist.all_gather(counts, torch.full_like(counts[0], len(rows)))
    counts = [int(count) for count in counts]
    padded = rows.new_zeros(max(counts), rows.shape[1])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def _sum_over_ranks(tensors: Iterable[Tensor]) -> None:
    """Add up each tensor over all ranks, in place; does nothing outside a process group."""
    if _together():
        for tensor in tensors:
            dist.all_reduce(tensor)


class EuclideanCodebook(nn.Module):
    """Codebook with Euclidean distance.

    In a process group it learns from the batches of all ranks together, as if they were one, so
    that every rank holds the same codebook; all ranks must then call `forward` equally often.

    Args:
        dim, codebook_size: width and number of the vectors.
        kmeans_init, kmeans_iters: learn the first vectors from the first training batch.
        decay, epsilon: of the moving averages.
        threshold_ema_dead_code: entries used less than this are replaced by random inputs.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        kmeans_init: bool = False,
        kmeans_iters: int = 10,
        decay: float = 0.8,
        epsilon: float = 1e-5,
        threshold_ema_dead_code: float = 2,
    ):
        super().__init__()
        self.codebook_size, self.kmeans_iters = codebook_size, kmeans_iters
        self.decay, self.epsilon = decay, epsilon
        self.threshold_ema_dead_code = threshold_ema_dead_code
        embed = torch.zeros(codebook_size, dim)
        if not kmeans_init:
            nn.init.kaiming_uniform_(embed)
        self.register_buffer("inited", torch.tensor([float(not kmeans_init)]))
        self.register_buffer("cluster_size", torch.zeros(codebook_size))
        self.register_buffer("embed", embed)
        self.register_buffer("embed_avg", embed.clone())

    def encode(self, x: Tensor) -> Tensor:
        """Index of the nearest entry of each `x` `[..., D]`; the first one on ties.

        The distance is evaluated in its expanded form, as the original does, because near-ties
        are decided by its rounding.
        """
        flat, table = x.reshape(-1, x.shape[-1]), self.embed.t()
        score = -(
            flat.pow(2).sum(1, keepdim=True) - 2 * flat @ table + table.pow(2).sum(0, keepdim=True)
        )
        return score.max(dim=-1).indices.view(x.shape[:-1])

    def decode(self, indices: Tensor) -> Tensor:
        """The vectors `[..., D]` of `indices` `[...]`."""
        return F.embedding(indices, self.embed)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Quantise `x` `[B, T, D]`; in training also learn from it. Returns vectors, indices.

        With `kmeans_init` the very first batch makes the codebook, in training or not.
        """
        flat = x.detach().reshape(-1, x.shape[-1])
        self._init_from(flat)
        indices = self.encode(x)
        quantized = self.decode(indices)
        if self.training:
            self._update_averages(flat, indices.reshape(-1))
            self._replace_dead_entries(flat)
        return quantized, indices

    @torch.no_grad()
    def _init_from(self, flat: Tensor) -> None:
        if self.inited:
            return
        means, counts = kmeans(gather(flat), self.codebook_size, self.kmeans_iters)
        self.embed.copy_(means)
        self.embed_avg.copy_(means)
        self.cluster_size.copy_(counts)
        self.inited.fill_(1.0)
        broadcast(self.buffers())

    @torch.no_grad()
    def _replace_dead_entries(self, flat: Tensor) -> None:
        dead = self.cluster_size < self.threshold_ema_dead_code
        if self.threshold_ema_dead_code == 0 or not dead.any():
            return
        fresh = sample_vectors(gather(flat), self.codebook_size)
        # The averages must follow, or the next update would put the dead entry straight back
        # (the original replaces `embed` alone, just before an update, which has no effect).
        floor = torch.full_like(self.cluster_size, self.threshold_ema_dead_code)
        self.cluster_size.copy_(torch.where(dead, floor, self.cluster_size))
        dead = dead.unsqueeze(-1)
        self.embed.copy_(torch.where(dead, fresh, self.embed))
        self.embed_avg.copy_(torch.where(dead, fresh * floor.unsqueeze(-1), self.embed_avg))
        broadcast(self.buffers())

    @torch.no_grad()
    def _update_averages(self, flat: Tensor, indices: Tensor) -> None:
        counts = torch.bincount(indices, minlength=self.codebook_size).to(self.cluster_size)
        sums = torch.zeros_like(self.embed_avg).index_add_(0, indices, flat.to(self.embed_avg))
        _sum_over_ranks((counts, sums))
        self.cluster_size.lerp_(counts, 1 - self.decay)
        self.embed_avg.lerp_(sums, 1 - self.decay)
        total = self.cluster_size.sum()
        # Laplace smoothing keeps entries that were never used finite.
        share = (self.cluster_size + self.epsilon) / (total + self.codebook_size * self.epsilon)
        self.embed.copy_(self.embed_avg / (share * total).unsqueeze(1))

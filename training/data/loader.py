"""Batches, read ahead by worker processes, in an order that nothing but the seed decides."""

import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader

from audiogen_fast.errors import check
from audiogen_fast.training.data.batch import Batch, Item


class Samples(Protocol):
    """What a loader reads from: a `SoundDataset` or a `TokenDataset`."""

    @property
    def seed(self) -> int: ...

    def __len__(self) -> int: ...

    def read(self, epoch: int, index: int) -> Item: ...

    def collate(self, items: Sequence[Item], epoch: int, step: int, rank: int) -> Batch: ...


@dataclass(frozen=True)
class _Plan:
    """Which samples make a batch."""

    epoch: int
    step: int
    indices: tuple[int, ...]
    repeated: int


class Loader:
    """Iterating gives the rest of the epoch, iterating again the next epoch.

    Batch `step` of an epoch has the samples `step * batch_size` to `(step + 1) * batch_size`, of
    which rank r takes every `world_size`-th from the r-th on. All of it depends on the seed, the
    epoch and the step alone: neither on the number of workers, nor, without mixing, on the number
    of ranks. Each rank gets as many batches as the others, so that none waits for another.

    Args:
        dataset: see `Samples`.
        batch_size: samples in a batch over all ranks, as in the original's configurations.
        rank, world_size: which part is ours.
        num_workers: processes that read; 0 reads in this one.
        drop_last: leave out the batch at the end of an epoch that is not full; else it is filled
            up from the start of the epoch, see `Batch.repeated`.
        prefetch: batches that each worker has ready.
        pin_memory: page-locked memory, for copies to a GPU that overlap with its work.
        keep_workers: let them read the next epoch ahead; else they end with the epoch.
        start_method: of the workers; `forkserver` and `spawn` do not copy threads or CUDA.

    Attributes:
        epoch, step: of the next batch.
        wait_seconds: how long the last batch was waited for.
        total_wait_seconds, batches: sums since the start.
        skipped: what could not be used since the start: (path, reason) to how often.
        silent: how many draws were silent; they are in `skipped` too.
    """

    def __init__(
        self,
        dataset: Samples,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        drop_last: bool = True,
        prefetch: int = 4,
        pin_memory: bool = False,
        keep_workers: bool = True,
        start_method: str = "forkserver",
    ):
        check(0 <= rank < world_size, f"rank must lie in 0..{world_size - 1}, got {rank}")
        check(
            batch_size >= 1 and batch_size % world_size == 0,
            f"batch_size must be a multiple of the {world_size} processes, got {batch_size}",
        )
        check(num_workers >= 0, f"num_workers must be at least 0, got {num_workers}")
        check(prefetch >= 1, f"prefetch must be at least 1, got {prefetch}")
        check(
            not drop_last or len(dataset) >= batch_size,
            f"an epoch must have at least one batch of {batch_size}, got {len(dataset)} samples",
        )
        self.dataset, self.batch_size = dataset, batch_size
        self.rank, self.world_size, self.drop_last = rank, world_size, drop_last
        self.num_workers, self.prefetch, self.pin_memory = num_workers, prefetch, pin_memory
        self.keep_workers, self.start_method = keep_workers, start_method
        self.epoch = self.step = self.batches = self.silent = 0
        self.wait_seconds = self.total_wait_seconds = 0.0
        self.skipped: Counter[tuple[str, str]] = Counter()
        self._batches: Iterator[Batch] | None = None

    def __len__(self) -> int:
        """Batches in an epoch, the same on every rank."""
        samples = len(self.dataset)
        return samples // self.batch_size if self.drop_last else -(-samples // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            batch = self._next()
            yield batch
            if batch.step == len(self) - 1:
                return

    def forever(self) -> Iterator[Batch]:
        """The batches of this and all later epochs."""
        while True:
            yield from self

    def state_dict(self) -> dict[str, int]:
        """The position after the last batch that was given, whatever was read ahead."""
        return {
            "epoch": self.epoch,
            "samples": self.step * self.batch_size,
            "seed": self.dataset.seed,
            "epoch_samples": len(self.dataset),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from there: with any number of workers or ranks.

        If the batch size has changed, samples of the epoch are repeated up to one batch.

        Raises:
            InvalidInputError: the state is no such position, or one in other data: seed or size of
                an epoch differ.
        """
        missing = sorted({"epoch", "samples", "seed", "epoch_samples"} - set(state))
        check(not missing, f"the stored position lacks {missing}")
        for name, ours in (("seed", self.dataset.seed), ("epoch_samples", len(self.dataset))):
            check(
                state[name] == ours,
                f"{name} of the stored position must be {ours}, got {state[name]}",
            )
        self.close()
        self.epoch = int(state["epoch"])
        self.step = int(state["samples"]) // self.batch_size
        if self.step >= len(self):
            self.epoch, self.step = self.epoch + 1, 0

    def close(self) -> None:
        """End the workers; iterating starts new ones."""
        self._batches = None

    def rewind(self) -> None:
        """Go back to the start, wherever it stopped: what measures takes the same samples again."""
        self.close()
        self.epoch = self.step = 0

    def report(self, most: int = 10) -> str:
        """What was skipped, the most frequent first; empty if nothing was."""
        if not self.skipped:
            return ""
        lines = [f"skipped {self.skipped.total()} draws, {self.silent} of them silent:"]
        lines += [f"  {n} x {path}: {why}" for (path, why), n in self.skipped.most_common(most)]
        if len(self.skipped) > most:
            lines.append(f"  and {len(self.skipped) - most} more")
        return "\n".join(lines)

    def _next(self) -> Batch:
        start = time.perf_counter()
        if self._batches is None:
            self._batches = iter(self._loader())
        try:
            batch = next(self._batches)
        except BaseException:
            self.close()  # what was read ahead is lost; the position stands
            raise
        self.wait_seconds = time.perf_counter() - start
        self.total_wait_seconds += self.wait_seconds
        self.batches += 1
        for skipped in batch.skipped:
            self.skipped[skipped.path, skipped.reason] += 1
            self.silent += skipped.silent
        self.epoch, self.step = batch.epoch, batch.step + 1
        if self.step == len(self):
            self.epoch, self.step = batch.epoch + 1, 0
            if not self.keep_workers:
                self.close()
        return batch

    def _loader(self) -> DataLoader:
        workers: dict[str, Any] = {}
        if self.num_workers > 0:
            context = torch.multiprocessing.get_context(self.start_method)
            if self.start_method == "forkserver":
                # imported once, not by every worker; no effect if the server runs already
                context.set_forkserver_preload([__name__, type(self.dataset).__module__])
            workers = {"multiprocessing_context": context, "prefetch_factor": self.prefetch}
        return DataLoader(
            _Batches(self.dataset, self.rank),
            batch_size=None,
            sampler=_Plans(self),
            num_workers=self.num_workers,
            collate_fn=_same,
            worker_init_fn=_ignore_interrupt,
            pin_memory=self.pin_memory and torch.cuda.is_available(),
            # or it would draw from the global generator, whose state is part of the training's
            generator=torch.Generator().manual_seed(self.dataset.seed),
            **workers,
        )


class _Plans:
    """The plans from the loader's position on, without end unless workers end with the epoch."""

    def __init__(self, loader: Loader):
        self.first = (loader.epoch, loader.step)
        self.steps, self.endless = len(loader), loader.keep_workers
        self.samples, self.size = len(loader.dataset), loader.batch_size
        self.rank, self.world_size = loader.rank, loader.world_size

    def __iter__(self) -> Iterator[_Plan]:
        epoch, step = self.first
        while True:
            yield self._plan(epoch, step)
            step += 1
            if step == self.steps:
                epoch, step = epoch + 1, 0
                if not self.endless:
                    return

    def _plan(self, epoch: int, step: int) -> _Plan:
        start = step * self.size
        ours = range(start + self.rank, start + self.size, self.world_size)
        return _Plan(
            epoch,
            step,
            tuple(index % self.samples for index in ours),
            sum(index >= self.samples for index in ours),
        )


class _Batches:
    """Makes the batch of a plan, in whichever process."""

    def __init__(self, dataset: Samples, rank: int):
        self.dataset, self.rank = dataset, rank

    def __getitem__(self, plan: _Plan) -> Batch:
        items = [self.dataset.read(plan.epoch, index) for index in plan.indices]
        batch = self.dataset.collate(items, plan.epoch, plan.step, self.rank)
        return replace(batch, epoch=plan.epoch, step=plan.step, repeated=plan.repeated)


def _ignore_interrupt(worker: int) -> None:
    """Ctrl-C goes to the workers too; when to stop is for the process that they read for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _same(batch: Batch) -> Batch:
    return batch

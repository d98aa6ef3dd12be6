"""Decoding of finished codes beside the generation of the next ones, on a CPU."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from audiogen_fast.models.streaming_decoder import StreamingDecoder


def _one_core_thread() -> ThreadPoolExecutor:
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))
    pool.submit(torch.get_num_threads).result()
    # The number is kept for each thread; this restores it for threads that start later.
    torch.set_num_threads(threads)
    return pool


class OverlappedDecoder:
    """A `StreamingDecoder` that works in a thread of its own, in order.

    That thread computes with one core: the engine has a thread on each already. To be used as a
    context, at whose end the thread is gone.
    """

    def __init__(self, decoder: StreamingDecoder):
        self.decoder = decoder
        self._pool: ThreadPoolExecutor | None = None
        self._pending: list[Future] = []

    def __enter__(self) -> "OverlappedDecoder":
        return self

    def __exit__(self, *exc) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def push(self, codes: Tensor) -> None:
        """Begin to decode codes that follow those pushed before."""
        if self._pool is None:
            self._pool = _one_core_thread()
        self._pending.append(self._pool.submit(self.decoder.push, codes))

    def ready(self, wait: bool = False) -> Iterator[Tensor]:
        """Audio that is decoded by now, in order; with `wait`, of all codes pushed so far."""
        while self._pending and (wait or self._pending[0].done()):
            audio = self._pending.pop(0).result()
            if audio is not None:
                yield audio

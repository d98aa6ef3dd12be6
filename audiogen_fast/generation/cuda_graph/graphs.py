"""Capturing several decode steps in one CUDA graph, and replaying it."""

import os
import threading
import warnings
from collections.abc import Callable

import torch

from audiogen_fast.errors import check

GRAPH_VARIABLE = "AUDIOGEN_FAST_CUDA_GRAPH"
# A process can capture only one graph at a time.
_ONE_CAPTURE = threading.Lock()


def graphs_enabled() -> bool:
    """False when `AUDIOGEN_FAST_CUDA_GRAPH=0` asks to run every step uncaptured.

    Raises:
        InvalidInputError: any value but 0 and 1.
    """
    value = os.environ.get(GRAPH_VARIABLE, "") or "1"
    check(value in ("0", "1"), f"{GRAPH_VARIABLE} must be 0 or 1, got {value}")
    return value == "1"


class CapturePool:
    """What the graphs of one engine share: memory, the stream they are captured on, and the
    decision to do without graphs after a capture has failed.

    Sharing the memory is sound because no graph leaves anything in it: results go to tensors that
    exist already, and graphs are replayed one after another.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.enabled = device.type == "cuda"
        self._handle = self._stream = None

    def renewed(self) -> "CapturePool":
        """A pool with memory of its own and the same decision; the old memory goes with its
        graphs."""
        pool = CapturePool(self.device)
        pool.enabled = self.enabled
        return pool

    def run_and_capture(self, work: Callable[[], None]) -> "torch.cuda.CUDAGraph | None":
        """Do `work` once, then capture it; None when that fails, which a warning says once.

        The work is done on the stream of the capture, so that libraries set up there what they
        need before the capture forbids it.
        """
        try:
            if self._handle is None:
                self._handle, self._stream = (
                    torch.cuda.graph_pool_handle(),
                    torch.cuda.Stream(self.device),
                )
        except RuntimeError as error:
            self.give_up(error)
            work()
            return None
        with _ONE_CAPTURE, torch.cuda.device(self.device):
            caller = torch.cuda.current_stream()
            self._stream.wait_stream(caller)
            with torch.cuda.stream(self._stream):
                work()
            caller.wait_stream(self._stream)
            try:
                # A capture that fails may leave its stream current: this context puts it back.
                with torch.cuda.stream(self._stream):
                    return self._capture(work)
            except RuntimeError as error:  # running out of memory is one too
                self.give_up(error)
                return None

    def _capture(self, work: Callable[[], None]) -> "torch.cuda.CUDAGraph":
        graph = torch.cuda.CUDAGraph()
        # thread_local: what other threads do with the device must not break this capture.
        with torch.cuda.graph(
            graph,
            pool=self._handle,
            stream=self._stream,
            capture_error_mode="thread_local",
        ):
            work()
        return graph

    def give_up(self, error: Exception) -> None:
        """Go on without graphs, and say so."""
        self.enabled = False
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        warnings.warn(
            f"decoding goes on without CUDA graphs, which is slower: the capture failed with "
            f"{type(error).__name__}: {first_line} (set {GRAPH_VARIABLE}=0 to skip the attempt)",
            RuntimeWarning,
            stacklevel=2,
        )


class GraphedSteps:
    """Runs a fixed piece of work for a key: captured at its first use, replayed afterwards.

    Args:
        pool: shared by all graphs of an engine; if it is not enabled, nothing is captured.
        work: called with a key's parts.
    """

    def __init__(self, pool: CapturePool, work: Callable[..., None]):
        self.pool, self.work = pool, work
        self._graphs: dict[tuple, torch.cuda.CUDAGraph] = {}

    def __call__(self, *key) -> None:
        graph = self._graphs.get(key)
        if graph is not None:
            graph.replay()
        elif not self.pool.enabled:
            self.work(*key)
        else:
            # The first time, the work that prepares the capture is the work that was asked for.
            graph = self.pool.run_and_capture(lambda: self.work(*key))
            if graph is not None:
                self._graphs[key] = graph

    def captured(self) -> list[tuple]:
        """The keys that have a graph."""
        return list(self._graphs)

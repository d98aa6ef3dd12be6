"""The engine `cuda_graph`: captured decode steps, replayed without waiting for the device."""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator

import torch

from audiogen_fast.errors import DeviceMemoryError, check
from audiogen_fast.generation.cuda_graph.graphs import CapturePool, GraphedSteps, graphs_enabled
from audiogen_fast.generation.cuda_graph.prefill import fill, halves, prepare_text, shape_of
from audiogen_fast.generation.cuda_graph.state import DecodeState, StateShape, position_range
from audiogen_fast.generation.cuda_graph.steps import check_step, make_steps
from audiogen_fast.generation.cuda_graph.support import why_unsupported_model
from audiogen_fast.generation.cuda_graph.weights import StepWeights, step_weights
from audiogen_fast.generation.job import DecodeJob
from audiogen_fast.models.lm import LMModel
from audiogen_fast.ops.weight_formats import FORMATS

# Steps of one graph: progress, cancelling and streaming come back this often.
STEPS_PER_REPLAY = 8
# States kept for jobs of other sizes, each with its caches and graphs.
KEPT_STATES = 4


class CudaGraphEngine:
    """Decodes with captured steps over static caches.

    Args:
        lm: a model `why_unsupported_model` has nothing against.
        weights: `int8` or `int4` to decode with a packed copy of the weights (a prompt is read
            with the model's own); None for those of the model.
        kv: dtype of the caches; None for that of the weights.
        step: `fused` by Triton kernels, `torch`, or `auto` for the first that can run here.
        captured: run steps as CUDA graphs, which needs a CUDA device; without, the same steps are
            launched one by one, on any device. None captures on a CUDA device unless
            `AUDIOGEN_FAST_CUDA_GRAPH=0`.
    """

    name = "cuda_graph"

    def __init__(
        self,
        lm: LMModel,
        weights: str | None = None,
        kv: torch.dtype | None = None,
        step: str = "auto",
        captured: bool | None = None,
    ):
        check(
            weights is None or weights in FORMATS,
            f"weights must be one of {FORMATS} or None, got {weights!r}",
        )
        reason = why_unsupported_model(lm)
        check(reason is None, f"the cuda_graph engine cannot run this model: {reason}")
        check_step(step, lm.device)
        self.lm, self.format, self.kv, self.step = lm, weights, kv, step
        self.device = lm.device
        self.pool = CapturePool(self.device)
        check(
            not captured or lm.device.type == "cuda",
            f"captured needs a model on a CUDA device, got one on {lm.device}",
        )
        self.pool.enabled &= graphs_enabled() if captured is None else captured
        self._weights: StepWeights | None = None
        self._fingerprint: tuple = ()
        self._states: OrderedDict[StateShape, tuple[DecodeState, GraphedSteps]] = OrderedDict()
        self._running: DecodeJob | None = None  # the last job begun, which owns the states
        self._lock = threading.Lock()
        self._last_work: torch.cuda.Event | None = None

    def weights(self) -> StepWeights:
        """The weights as the steps read them: laid out at the first use, and again when the model's
        have changed (which is not noticed when they were changed through `Parameter.data`)."""
        current = self.lm.fingerprint()
        if self._weights is None or current != self._fingerprint:
            self.free()  # graphs remember addresses
            self._weights, self._fingerprint = None, current
            self._weights = step_weights(self.lm, self.format)
        return self._weights

    def state(self, shape: StateShape) -> tuple[DecodeState, GraphedSteps]:
        """The state of that shape and its steps: kept from an earlier job, or new."""
        weights = self.weights()
        if shape not in self._states:
            while len(self._states) >= KEPT_STATES:
                self._wait_for_device()
                self._states.popitem(last=False)
            made = None
            with contextlib.suppress(torch.OutOfMemoryError):
                made = self._new_state(weights, shape)
            if made is None:
                self.free()  # states of other sizes may be what is in the way
                made = self._new_state(weights, shape)
            self._states[shape] = made
        self._states.move_to_end(shape)
        return self._states[shape]

    def _new_state(
        self, weights: StepWeights, shape: StateShape
    ) -> tuple[DecodeState, GraphedSteps]:
        kv = weights.dtype if self.kv is None else self.kv
        state = DecodeState(weights.size, shape, kv, weights.dtype, self.device)
        weights.positions(shape.positions)
        return state, GraphedSteps(self.pool, make_steps(self.step, weights, state))

    def free(self) -> None:
        """Give the memory of all states and graphs back; the next job makes new ones."""
        if not self._states:
            return
        self._wait_for_device()
        self._states.clear()
        self.pool = self.pool.renewed()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _wait_for_device(self) -> None:
        """Before memory is given back that a replay may still be using."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def capture(self, shape: StateShape, sampled: bool = True) -> None:
        """Capture all graphs of a shape ahead of the first job that needs them."""
        with self._lock:
            self._running = None
            self._wait_for_last_work()
            state, run_steps = self.state(shape)
            state.release(0, shape.slots)
            ranges = {min(position_range(n), shape.positions) for n in range(1, shape.positions)}
            for limit in sorted(ranges):
                run_steps(limit, STEPS_PER_REPLAY, sampled)
            self._mark_last_work()

    def run(self, job: DecodeJob) -> Iterator[int]:
        """See `Engine.run`; yields after every `STEPS_PER_REPLAY` steps.

        Raises:
            DeviceMemoryError: the device has too little memory; the engine has freed what it held.
            InvalidInputError: another generation has begun on this engine meanwhile.
        """
        steps = job.sequence.shape[-1]
        state, run_steps = self._guarded(job, self._start, job)
        for begin in range(job.start, steps, STEPS_PER_REPLAY):
            end = min(begin + STEPS_PER_REPLAY, steps)
            # A step attends to as many positions as its number says.
            limit = min(position_range(end - 1), state.shape.positions)
            self._guarded(job, self._advance, job, state, run_steps, limit)
            yield end - job.start

    # Inference mode, because the caller may be in it, and its sequence then is a tensor that only
    # can be written to there.
    @torch.inference_mode()
    def _start(self, job: DecodeJob) -> tuple[DecodeState, GraphedSteps]:
        check(
            self.lm.device == self.device,
            f"the model has moved from {self.device} to {self.lm.device} since its engine was made",
        )
        self._running = job
        self._wait_for_last_work()
        groups = halves(job)
        contexts = prepare_text(self.lm, groups)
        state, run_steps = self.state(shape_of(job, groups, contexts))
        state.release(0, state.shape.slots)
        fill(self.lm, state, job, groups, contexts)
        return state, run_steps

    @torch.inference_mode()
    def _advance(
        self, job: DecodeJob, state: DecodeState, run_steps: GraphedSteps, limit: int
    ) -> None:
        check(
            self._running is job,
            "another generation has begun on this cuda_graph engine; give each its own engine",
        )
        self._wait_for_last_work()
        run_steps(limit, STEPS_PER_REPLAY, not job.sampling.greedy)
        sounds, _, steps = job.sequence.shape
        job.sequence.copy_(state.sequence[:sounds, :, :steps])
        self._mark_last_work()

    def _guarded(self, job: DecodeJob, work, *args):
        """`work(*args)` alone, with running out of memory told in the user's terms."""
        with self._lock:
            try:
                return work(*args)
            except torch.OutOfMemoryError as error:
                reason = str(error)
            # Out of the handler, because its traceback holds tensors that are to be freed.
            self._running = None
            self.free()
        sounds, _, steps = job.sequence.shape
        raise DeviceMemoryError(
            f"the device ran out of memory while decoding {sounds} sounds of {steps} steps with "
            f"{self.format or self.lm.transformer.layers[0].linear1.weight.dtype} weights; lower "
            "the number of descriptions per call, the duration, or the dtype (int8 and int4 too, "
            f"by quantize=): {reason}"
        )

    def _wait_for_last_work(self) -> None:
        """Order this thread's stream after what another one may have left running."""
        if self._last_work is not None:
            torch.cuda.current_stream(self.device).wait_event(self._last_work)

    def _mark_last_work(self) -> None:
        if self.device.type == "cuda":
            self._last_work = torch.cuda.current_stream(self.device).record_event()

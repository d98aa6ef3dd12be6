"""Clips of any length: one window, or overlapping windows that continue each other."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from audiogen_fast.errors import check
from audiogen_fast.generation.job import DecodeJob, Engine, Keys, RowGroup, SamplingParams
from audiogen_fast.generation.lm_generate import finished_codes, make_job
from audiogen_fast.models.lm import LMModel


@dataclass(frozen=True, kw_only=True)
class WindowPlan:
    """Lengths in frames, derived from seconds the way the original rounds them."""

    duration: float
    """Seconds of the whole clip."""
    max_duration: float
    """Seconds of one window."""
    stride: float | None
    """Seconds by which a window advances."""
    frame_rate: float

    def total_frames(self) -> int:
        return int(self.duration * self.frame_rate)

    def stride_frames(self) -> int:
        return int(self.frame_rate * self.stride)

    def window_frames(self, offset: int, prompt_frames: int = 0) -> int:
        """Frames of the window that starts at frame `offset` with `prompt_frames` known ones."""
        remaining = self.duration - offset / self.frame_rate
        frames = int(min(remaining, self.max_duration) * self.frame_rate)
        # Rounding can hide the clip's last frame, which leaves a window of nothing but its prompt;
        # the original fails there.
        hidden = offset > 0 and frames <= prompt_frames
        return self.total_frames() - offset if hidden else frames

    def validate(self, prompt_frames: int) -> None:
        """Raise `InvalidInputError` unless these windows can make the clip."""
        frames = self.total_frames()
        check(frames > 0, f"duration must hold at least one frame, got {self.duration} s")
        check(
            prompt_frames < frames,
            f"prompt must be shorter than the duration of {self.duration} s ({frames} frames), "
            f"got {prompt_frames} frames",
        )
        first = self.window_frames(0)
        check(
            prompt_frames < first,
            f"prompt must be shorter than one window of {self.max_duration} s ({first} frames), "
            f"got {prompt_frames} frames",
        )
        if self.duration > self.max_duration:
            check(
                self.stride is not None and 0 < self.stride < self.max_duration,
                f"extend_stride must lie in (0, {self.max_duration}) seconds to generate more "
                f"than one window, got {self.stride}",
            )
            check(
                self.stride_frames() > 0,
                f"extend_stride must hold at least one frame, got {self.stride} s",
            )


class WindowedGeneration:
    """Generates the codes of a clip; iterate it to make it run.

    Each item is (steps done in this window, steps of this window, first frame of this window).
    Between items `codes()` tells what is finished. Every window sees the end of the one before as
    its prompt, restarts its positions at 0 and draws from the same keys, never twice the same.
    """

    def __init__(
        self,
        lm: LMModel,
        engine: Engine,
        plan: WindowPlan,
        prompt: Tensor,
        groups: list[RowGroup],
        sampling: SamplingParams,
        keys: Keys,
        cfg_coef: float,
    ):
        plan.validate(prompt.shape[-1])
        self.lm, self.engine, self.plan = lm, engine, plan
        self.groups, self.sampling, self.keys = groups, sampling, keys
        self.cfg_coef = cfg_coef
        self._finished = [prompt]  # frames of all finished windows, without overlaps
        self._job: DecodeJob | None = None
        self._job_prompt = 0
        self._job_done = 0

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        prompt, offset, draws = self._finished[0], 0, 0
        while True:
            frames = self.plan.window_frames(offset, prompt.shape[-1])
            job = make_job(
                self.lm,
                prompt,
                self.groups,
                frames,
                self.sampling,
                self.keys,
                self.cfg_coef,
                first_draw=draws,
            )
            self._job, self._job_prompt, self._job_done = job, prompt.shape[-1], 0
            for done in self.engine.run(job):
                self._job_done = done
                yield done, job.total_steps, offset
            window = finished_codes(job)
            self._job = None
            self._finished.append(window[..., prompt.shape[-1] :])
            draws += job.total_steps
            if self.plan.duration <= self.plan.max_duration:
                return
            prompt = window[..., self.plan.stride_frames() :]
            offset += self.plan.stride_frames()
            if offset + prompt.shape[-1] >= self.plan.total_frames():
                return

    def ready_frames(self) -> int:
        """How many leading frames are complete so far, prompt included."""
        frames = sum(part.shape[-1] for part in self._finished)
        return frames + max(0, self._ready_in_job() - self._job_prompt)

    def codes(self) -> Tensor:
        """Codes `[B, K, ready_frames()]`."""
        parts, ready = list(self._finished), self._ready_in_job()
        if ready > self._job_prompt:
            codes, _, _ = self._job.pattern.revert_pattern_sequence(self._job.sequence, 0)
            parts.append(codes[..., self._job_prompt : ready])
        return torch.cat(parts, dim=-1)

    def _ready_in_job(self) -> int:
        if self._job is None or self._job_done == 0:
            return 0
        return self._job.pattern.complete_timesteps[self._job.start + self._job_done - 1]

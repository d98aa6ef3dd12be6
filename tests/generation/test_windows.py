"""How long clips come out that are made in several windows."""

import pytest
import torch

from audiogen_fast import AudioGen
from audiogen_fast.generation.job import SamplingParams, make_keys
from audiogen_fast.generation.windows import WindowedGeneration, WindowPlan


class Counting:
    """An engine that writes the number of the draw, so that nothing is made twice unseen."""

    name = "counting"

    def run(self, job):
        steps = torch.arange(job.sequence.shape[-1]) - job.start + job.first_draw
        new = (job.sequence < 0) & job.pattern_mask
        job.sequence[new] = steps.expand_as(job.sequence)[new]
        yield job.total_steps


@pytest.fixture(scope="module")
def lm():
    return AudioGen.get_pretrained("debug", "cpu").lm


def lengths(lm, plan: WindowPlan, prompt_frames: int = 0) -> list[int]:
    """Frames of the clip after each of its windows."""
    prompt = torch.zeros(1, lm.n_q, prompt_frames, dtype=torch.long)
    keys = make_keys(0, None, 1, torch.device("cpu"))
    clip = WindowedGeneration(lm, Counting(), plan, prompt, [], SamplingParams(), keys, 1.0)
    found = [clip.ready_frames() for _ in clip]
    codes = clip.codes()
    assert codes.shape == (1, lm.n_q, found[-1])
    return found


# Strides up to half a window; the original loses a frame at some durations with longer ones.
@pytest.mark.parametrize(("max_duration", "stride"), [(10, 1), (10, 2), (10, 2.5), (4, 1), (4, 2)])
def test_every_duration_of_tenths_of_a_second_comes_out_whole(lm, max_duration, stride):
    """Rounding may hide the last frame from the last window, which has one left to make then."""
    short = 0
    for tenths in range(int(10 * max_duration) + 1, 301):
        plan = WindowPlan(
            duration=tenths / 10, max_duration=max_duration, stride=stride, frame_rate=50
        )
        found = lengths(lm, plan)
        assert found[-1] == plan.total_frames()
        assert found == sorted(set(found))  # each window has made something
        short += found[-1] - found[-2] == 1
    assert short > 10  # there are such windows among these


@pytest.mark.parametrize(("duration", "windows"), [(4.3, [200, 214, 215]), (6.0, [200, 300])])
def test_windows_are_those_of_the_original(lm, duration, windows):
    """All but the one frame that the original fails at."""
    plan = WindowPlan(duration=duration, max_duration=4.0, stride=2.0, frame_rate=50)
    assert lengths(lm, plan) == windows
    assert lengths(lm, plan, prompt_frames=150) == windows

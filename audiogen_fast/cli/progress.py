"""The progress bar of the commands that make sounds."""

from tqdm import tqdm

from audiogen_fast.api import AudioGen


class SoundProgress:
    """A bar over seconds of sound, from the model's count of steps.

    That count starts again in every window of a long sound, at the window's first frame; what the
    window repeats of the one before has been counted by then.
    """

    def __init__(self, model: AudioGen, sounds: int, quiet: bool):
        rate = model.frame_rate
        self.frames = int(model.duration * rate)
        self.overlap = int(model.max_duration * rate) - int(model.extend_stride * rate)
        self.sounds = self.given = self.last = self.finished = 0
        self.bar = tqdm(
            total=sounds * self.frames,
            unit=" s of sound",
            unit_scale=1 / rate,
            smoothing=0.1,
            disable=quiet,
            bar_format="{n:.1f} of {total:.1f} s |{bar}| {elapsed}<{remaining}, {rate_noinv_fmt}",
        )
        model.set_custom_progress_callback(self._step)

    def __enter__(self) -> "SoundProgress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def start_batch(self, sounds: int, given: int) -> None:
        """A batch of that many sounds, whose first `given` frames are a recording's."""
        self.sounds, self.given = sounds, given
        self.last = self.finished = 0
        self._show(given)

    def end_batch(self) -> None:
        self._show(self.frames)

    def _step(self, done: int, _: int) -> None:
        if done < self.last:  # a new window
            self.given = self.overlap
        self.last = done
        self._show(self.given + done)

    def _show(self, frames: int) -> None:
        frames = min(frames, self.frames)
        if frames > self.finished:
            self.bar.update(self.sounds * (frames - self.finished))
            self.finished = frames

"""`audiogen-fast generate` and `audiogen-fast continue`."""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from audiogen_fast.api import AudioGen
from audiogen_fast.cli.items import (
    OF_ONE_SOUND,
    Item,
    check_prompt_frames,
    items_to_continue,
    items_to_generate,
)
from audiogen_fast.cli.manifest import Manifest
from audiogen_fast.cli.output import output_folder
from audiogen_fast.cli.parser import PROGRAM
from audiogen_fast.cli.progress import SoundProgress
from audiogen_fast.data.audio import audio_read, audio_write
from audiogen_fast.data.audio_utils import convert_audio
from audiogen_fast.errors import InvalidInputError
from audiogen_fast.pretrained import labelled

Batch = list[tuple[Item, Tensor | None]]


def generate_sounds(args: argparse.Namespace) -> dict[str, Any]:
    """Make a sound for each description; what was made, and how, as a dictionary for `json`."""
    return _Run(args, items_to_generate(args)).run()


def continue_sounds(args: argparse.Namespace) -> dict[str, Any]:
    """Continue each recording; see `generate_sounds`."""
    return _Run(args, items_to_continue(args)).run()


class _Run:
    """Makes the items that are not there yet; each batch is written as soon as it is made."""

    def __init__(self, args: argparse.Namespace, items: list[Item]):
        self.args, self.items = args, items
        self.folder = Path(args.output)
        self.manifest = Manifest(self.folder)
        self.timings = {"loading": 0.0, "generating": 0.0, "sound": 0.0}

    def run(self) -> dict[str, Any]:
        todo, finished = [], []
        for item in self.items:
            done = not self.args.overwrite and self.manifest.finished(item.name, item.settings)
            (finished if done else todo).append(item)
        for item in finished:
            self._tell(str(self.folder / item.name))
        if finished:
            self._note(f"{len(finished)} of {len(self.items)} files are there already")
        if todo:
            # Found now, and not when the first batch is to be written.
            with output_folder(self.folder):
                self._make(todo)
        return self._report({item.name for item in finished})

    def _make(self, items: list[Item]) -> None:
        self._note(f"loading {labelled(self.args.model)}")
        start = time.perf_counter()
        model = _load(self.args)
        self.timings["loading"] = time.perf_counter() - start
        _check_prompts(items, model)
        with SoundProgress(model, len(items), self.args.quiet) as progress:
            for batch in _batches(items, self.args.batch_size, model):
                start = time.perf_counter()
                audio = _generate(model, batch, progress)
                self.timings["generating"] += time.perf_counter() - start
                self.timings["sound"] += len(batch) * audio.shape[-1] / model.sample_rate
                self._write([item for item, _ in batch], audio, model.sample_rate)

    def _write(self, items: list[Item], audio: Tensor, sample_rate: int) -> None:
        length = {"seconds": audio.shape[-1] / sample_rate, "sample_rate": sample_rate}
        self.manifest.record({item.name: length | {"settings": item.settings} for item in items})
        for item, wav in zip(items, audio, strict=True):
            path = self.folder / item.name
            audio_write(
                path,
                wav,
                sample_rate,
                format=self.args.format,
                strategy=self.args.strategy,
                loudness_compressor=True,
                log_clipping=not self.args.quiet,
                add_suffix=False,
            )
            self._tell(str(path))

    def _report(self, skipped: set[str]) -> dict[str, Any]:
        files = []
        for item in self.items:
            record = self.manifest.records[item.name]
            files.append(
                {
                    "path": str(self.folder / item.name),
                    "description": item.description,
                    "seed": item.seed,
                    "seconds": record["seconds"],
                    "sample_rate": record["sample_rate"],
                    "skipped": item.name in skipped,
                }
            )
        timings = {name: round(seconds, 3) for name, seconds in self.timings.items()}
        if self.timings["generating"] > 0:
            speed = self.timings["sound"] / self.timings["generating"]
            timings["times_real_time"] = round(speed, 3)
        settings = self.items[0].settings
        return {
            "command": self.args.command,
            "output": str(self.folder),
            "settings": {k: v for k, v in settings.items() if k not in OF_ONE_SOUND},
            "files": files,
            "timings": timings,
        }

    def _tell(self, line: str) -> None:
        if not (self.args.json or self.args.quiet):
            tqdm.write(line, file=sys.stdout)

    def _note(self, line: str) -> None:
        if not self.args.quiet:
            print(f"{PROGRAM}: {line}", file=sys.stderr)


def _load(args: argparse.Namespace) -> AudioGen:
    if args.quiet:
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
    model = load_model(args)
    stride = args.extend_stride
    model.set_generation_params(
        use_sampling=not args.greedy,
        top_k=args.top_k,
        top_p=args.top_p,
        temperature=args.temperature,
        duration=args.duration,
        cfg_coef=args.cfg_coef,
        two_step_cfg=args.two_step_cfg,
        extend_stride=min(2, model.max_duration / 2) if stride is None else stride,
        batch_invariant=args.batch_invariant,
    )
    return model


def load_model(args: argparse.Namespace) -> AudioGen:
    """The model that the options of `options.add_model_options` name."""
    return AudioGen.get_pretrained(
        args.model,
        choose_device(args.device),
        dtype=args.dtype,
        revision=args.revision,
        local_files_only=args.local_files_only,
        engine=args.engine,
        quantize=args.quantize,
    )


def choose_device(name: str | None) -> torch.device | None:
    try:
        return None if name is None else torch.device(name)
    except RuntimeError:
        raise InvalidInputError(f"--device must be such as cpu or cuda:0, got {name!r}") from None


def _check_prompts(items: list[Item], model: AudioGen) -> None:
    """All of them before the first batch: one that is too long would stop what comes after it."""
    for item in items:
        if item.prompt is not None:
            check_prompt_frames(
                item, model.sample_rate, model.frame_rate, model.duration, model.max_duration
            )


def _batches(items: list[Item], size: int, model: AudioGen) -> Iterator[Batch]:
    """At most `size` items at a time; recordings that are continued together are of one length."""
    batch: Batch = []
    for item in items:
        prompt = None if item.prompt is None else _read_prompt(item, model)
        fits = not batch or prompt is None or prompt.shape == batch[0][1].shape
        if len(batch) == size or not fits:
            yield batch
            batch = []
        batch.append((item, prompt))
    if batch:
        yield batch


def _read_prompt(item: Item, model: AudioGen) -> Tensor:
    """The recording `[C, T]` as the model wants it."""
    wav, rate = audio_read(item.prompt, duration=item.settings["prompt_duration"] or -1)
    return convert_audio(wav, rate, model.sample_rate, model.audio_channels)


def _generate(model: AudioGen, batch: Batch, progress: SoundProgress) -> Tensor:
    """Audio `[B, C, samples]` on the CPU."""
    texts = [item.description for item, _ in batch]
    seeds = [item.seed for item, _ in batch]
    prompts = [prompt for _, prompt in batch if prompt is not None]
    samples = prompts[0].shape[-1] if prompts else 0
    progress.start_batch(len(batch), int(samples / model.sample_rate * model.frame_rate))
    if prompts:
        audio = model.generate_continuation(
            torch.stack(prompts), model.sample_rate, texts, progress=True, seed=seeds
        )
    else:
        audio = model.generate(texts, progress=True, seed=seeds)
    audio = audio.cpu()
    progress.end_batch()
    return audio

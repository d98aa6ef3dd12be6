"""`python -m audiogen_fast.demo`: sounds of a model, with pictures, on a web page.

Without `--model` it is the small model in the package, so that nothing is downloaded.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from audiogen_fast.api import AudioGen
from audiogen_fast.data.audio import audio_read
from audiogen_fast.data.audio_utils import convert_audio
from audiogen_fast.demo_model import RECORDING, RECORDING_CAPTION
from audiogen_fast.env import get_env
from audiogen_fast.errors import AudioGenFastError, InvalidInputError, check
from audiogen_fast.pretrained import ABOUT, TINY, labelled
from audiogen_fast.report import Section, Sound, figure_class, write_page, write_sound

DESCRIPTIONS = (
    # The three of the original's own example come first.
    "dog barking",
    "siren of an emergency vehicle",
    "footsteps in a corridor",
    "thunder and rain",
    "a rooster crowing",
    "glass breaking",
    "a machine gun firing a long burst",
    "a door creaking",
    "birds singing outdoors",
    "waves and flowing water",
    "a steam train whistling",
    "a crowd cheering and applauding",
)
LONG_DESCRIPTION = "a crackling fire"
_SHORTEST = 0.5
_LONGEST_WINDOW = 5.0
_CHUNK = 0.5


def main(argv: Sequence[str] | None = None) -> int:
    """Make the page; exit status 0, 2 for wrong input, 1 for other failures."""
    parser = argparse.ArgumentParser(prog="audiogen_fast.demo", description=__doc__)
    parser.add_argument("--output", default="demo_output", help="folder (default demo_output)")
    parser.add_argument("--model", default=TINY, help=f"hub id, folder or file (default {TINY})")
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: CUDA where there is one)")
    parser.add_argument("--seed", type=int, default=0, help="(default 0)")
    parser.add_argument(
        "--duration",
        type=float,
        help=f"seconds of a sound (default {_LONGEST_WINDOW:g}, or what the model makes at once)",
    )
    args = parser.parse_args(argv)
    try:
        page = make_demo(Path(args.output), args.model, args.device, args.seed, args.duration)
    except (AudioGenFastError, OSError) as error:
        print(f"audiogen_fast.demo: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InvalidInputError) else 1
    print(f"open {page} in a browser")
    return 0


def make_demo(
    folder: Path,
    name: str = TINY,
    device: str | None = None,
    seed: int = 0,
    duration: float | None = None,
) -> Path:
    """Generate, continue, encode and stream sounds, and write a page about them.

    Args:
        folder: made if need be.
        name, device: for `AudioGen.get_pretrained`.
        seed: of the sounds.
        duration: seconds of each sound; None for 5, or the model's window if that is shorter.
    Returns:
        The path of the page.
    """
    check(
        duration is None or duration >= _SHORTEST,
        f"duration must be at least {_SHORTEST} seconds, got {duration}",
    )
    figure_class()  # before anything that takes time
    print(f"loading {labelled(name)}", flush=True)
    model = AudioGen.get_pretrained(name, device)
    demo = _Demo(model, folder, seed, duration or min(_LONGEST_WINDOW, model.max_duration))
    sections = [
        demo.from_text(),
        demo.from_recording(),
        demo.long(),
        demo.on_two_engines(),
        demo.streamed(),
    ]
    page = folder / "index.html"
    about = f" It is {ABOUT[name]}." if name in ABOUT else ""
    write_page(
        page,
        "audiogen_fast: text to sound",
        f"Sounds made by {name}, each by itself.{about} Speed is seconds of sound for each second "
        "of computing: above 1×, a sound is made faster than it plays. The files are brought to "
        "one loudness; the pictures show the sounds as made.",
        sections,
        _facts(model),
    )
    return page


class _Demo:
    """Makes the sounds of the page, saying on the console what it is at."""

    def __init__(self, model: AudioGen, folder: Path, seed: int, duration: float):
        self.model, self.folder, self.seed, self.duration = model, folder, seed, duration
        # What is done once (loading of libraries, compilation) is not part of any sound's time.
        self._set_duration(_SHORTEST)
        model.generate([DESCRIPTIONS[0]], seed=seed)
        self._set_duration(duration)

    def _set_duration(self, seconds: float) -> None:
        stride = min(2, self.model.max_duration / 2)
        self.model.set_generation_params(duration=seconds, extend_stride=stride)

    def from_text(self) -> Section:
        sounds = []
        for index, text in enumerate(DESCRIPTIONS):
            wav, computing = self._generate(text, self.seed + index)
            sounds.append(self._write(f"text-{index}", text, wav, computing))
        return Section("From descriptions", "Nothing but the text is given.", sounds)

    def from_recording(self) -> Section:
        model = self.model
        wav = convert_audio(*audio_read(RECORDING), model.sample_rate, model.audio_channels)
        start = time.perf_counter()
        with torch.no_grad():
            codes, scale = model.compression_model.encode(wav[None].to(model.device))
            decoded = model.compression_model.decode(codes, scale)[0].cpu()
        coding = time.perf_counter() - start
        given = min(2.0, self.duration / 2, wav.shape[-1] / model.sample_rate)
        prompt = wav[:, : int(given * model.sample_rate)]
        start = time.perf_counter()
        continued = model.generate_continuation(
            prompt, model.sample_rate, [RECORDING_CAPTION], seed=[self.seed]
        )[0].cpu()
        computing = time.perf_counter() - start
        note = f"its first {given:.2g} s are the recording's, as the codec hears them"
        sounds = [
            self._write("recording", RECORDING_CAPTION, wav, note="the recording (CC0)"),
            self._write("codec", "the recording, encoded and decoded", decoded, coding),
            self._write("continued", "the recording, continued", continued, computing, note),
        ]
        return Section(
            "From a recording",
            f"The codec turns {wav.shape[-1]} samples into {codes[0].numel()} codes and back; the "
            "language model goes on from the codes of the beginning.",
            sounds,
        )

    def long(self) -> Section:
        model = self.model
        self._set_duration(2.5 * model.max_duration)
        wav, computing = self._generate(LONG_DESCRIPTION, self.seed)
        note = f"windows of {model.max_duration:g} s, each {model.extend_stride:g} s further"
        self._set_duration(self.duration)
        sound = self._write("long", LONG_DESCRIPTION, wav, computing, note)
        text = "The model sees a window of limited length, which moves on over what it has made."
        return Section("Longer than the model's window", text, [sound])

    def on_two_engines(self) -> Section:
        """The first sound by the engine of the page, and by the one in plain torch."""
        text, seed = DESCRIPTIONS[0], [self.seed]
        eager = AudioGen.get_pretrained(self.model.name, self.model.device, engine="eager")
        other = _Demo(eager, self.folder, self.seed, self.duration)
        found = []
        for stem, demo in (("engine", self), ("engine-eager", other)):
            start = time.perf_counter()
            wav, codes = demo.model.generate([text], seed=seed, return_tokens=True)
            computing = time.perf_counter() - start
            found.append((stem, demo.model.engine.name, wav[0].cpu(), codes.cpu(), computing))
        codes = found[0][3]
        same = int((codes == found[1][3]).sum())
        sounds = [
            self._write(stem, f"{text}, by the engine {name}", wav, computing)
            for stem, name, wav, _, computing in found
        ]
        return Section(
            "The same seed on two engines",
            f"{same} of {codes.numel()} codes are the same. The engine eager is plain torch, which "
            "the others are tested against; they may differ where rounding decides.",
            sounds,
        )

    def streamed(self) -> Section:
        start = time.perf_counter()
        pieces: list[Tensor] = []
        first = 0.0
        for piece in self.model.generate_stream(
            [DESCRIPTIONS[0]], chunk_duration=_CHUNK, seed=[self.seed]
        ):
            pieces.append(piece[0].cpu())
            first = first or time.perf_counter() - start
        computing = time.perf_counter() - start
        wav = torch.cat(pieces, dim=-1)
        note = f"first audio after {first:.2f} s, in {len(pieces)} pieces"
        sound = self._write("streamed", DESCRIPTIONS[0], wav, computing, note)
        text = "The first sound again, given out while it is made: with the same seed, the same."
        return Section("Streamed", text, [sound])

    def _generate(self, text: str, seed: int) -> tuple[Tensor, float]:
        """A sound `[C, T]` on the CPU, and the seconds it took."""
        start = time.perf_counter()
        wav = self.model.generate([text], seed=[seed])[0].cpu()
        return wav, time.perf_counter() - start

    def _write(
        self, stem: str, title: str, wav: Tensor, computing: float | None = None, note: str = ""
    ) -> Sound:
        sound = write_sound(self.folder, stem, title, wav, self.model.sample_rate, computing, note)
        took = "" if computing is None else f" in {computing:.2f} s"
        print(f"{sound.audio}: {sound.seconds:.2f} s{took}, {title}", flush=True)
        return sound


def _facts(model: AudioGen) -> dict[str, str]:
    """What the figures depend on."""
    env = get_env()
    parameter = next(model.lm.parameters())
    size = sum(p.numel() for p in model.lm.parameters())
    facts = {
        "model": f"{model.name}, {size / 1e6:.1f} million parameters, {parameter.dtype}",
        "runs on": str(model.device),
        "engine": model.engine.name,
        "devices": "; ".join(env["devices"]),
        "platform": env["platform"],
    }
    return facts | {name: version for name, version in env["versions"].items() if version}


if __name__ == "__main__":
    raise SystemExit(main())

"""`python -m audiogen_fast.demo`: sounds of a model, with pictures, on a web page.

Without `--model` the model is a small one with random weights, so that nothing is downloaded.
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
from audiogen_fast.demo_model import RECORDING, RECORDING_CAPTION, random_model
from audiogen_fast.env import get_env
from audiogen_fast.errors import AudioGenFastError, InvalidInputError, check
from audiogen_fast.report import Section, Sound, figure_class, write_page, write_sound

DESCRIPTIONS = (
    "a dog barking in a back yard",
    "rain falling on a tin roof",
    "footsteps on gravel",
    "a train passing by",
)
RANDOM_WEIGHTS = (
    "The weights of this model are random, so its sounds are noise, whatever the descriptions say: "
    "they only show that everything works. A trained checkpoint comes with a later release; "
    "--model makes this page with one that you have."
)
_SHORTEST = 0.5
_CHUNK = 0.5


def main(argv: Sequence[str] | None = None) -> int:
    """Make the page; exit status 0, 2 for wrong input, 1 for other failures."""
    parser = argparse.ArgumentParser(prog="audiogen_fast.demo", description=__doc__)
    parser.add_argument("--output", default="demo_output", help="folder (default demo_output)")
    parser.add_argument("--model", help="hub id, folder or file (default: random weights)")
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: CUDA where there is one)")
    parser.add_argument("--seed", type=int, default=0, help="(default 0)")
    parser.add_argument("--duration", type=float, default=5.0, help="seconds (default 5)")
    args = parser.parse_args(argv)
    if args.model is None:
        # Its operations are too small to share: threads would only wait for each other.
        torch.set_num_threads(1)
    try:
        page = make_demo(Path(args.output), args.model, args.device, args.seed, args.duration)
    except (AudioGenFastError, OSError) as error:
        print(f"audiogen_fast.demo: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InvalidInputError) else 1
    print(f"open {page} in a browser")
    return 0


def make_demo(
    folder: Path,
    name: str | None = None,
    device: str | None = None,
    seed: int = 0,
    duration: float = 5.0,
) -> Path:
    """Generate, continue, encode and stream sounds, and write a page about them.

    Args:
        folder: made if need be.
        name, device: for `AudioGen.get_pretrained`; without a name the weights are random.
        seed: of the sounds, and of random weights.
        duration: seconds of each sound.
    Returns:
        The path of the page.
    """
    check(duration >= _SHORTEST, f"duration must be at least {_SHORTEST} seconds, got {duration}")
    figure_class()  # before anything that takes time
    if name is None:
        print(RANDOM_WEIGHTS, flush=True)
        model = random_model(seed, device)
    else:
        print(f"loading {name}", flush=True)
        model = AudioGen.get_pretrained(name, device)
    demo = _Demo(model, folder, seed, duration)
    sections = [demo.from_text(), demo.from_recording(), demo.streamed()]
    page = folder / "index.html"
    write_page(
        page,
        "audiogen_fast: text to sound",
        f"Sounds made by {'a small model' if name is None else name}, each by itself. Speed is "
        "seconds of sound for each second of computing: above 1×, a sound is made faster than it "
        "plays. The files are brought to one loudness; the pictures show the sounds as made.",
        sections,
        _facts(model),
        RANDOM_WEIGHTS if name is None else "",
    )
    return page


class _Demo:
    """Makes the sounds of the page, saying on the console what it is at."""

    def __init__(self, model: AudioGen, folder: Path, seed: int, duration: float):
        self.model, self.folder, self.seed, self.duration = model, folder, seed, duration
        stride = min(2, model.max_duration / 2)
        # What is done once (loading of libraries, compilation) is not part of any sound's time.
        model.set_generation_params(duration=_SHORTEST, extend_stride=stride)
        model.generate([DESCRIPTIONS[0]], seed=seed)
        model.set_generation_params(duration=duration, extend_stride=stride)

    def from_text(self) -> Section:
        sounds = []
        for index, text in enumerate(DESCRIPTIONS):
            start = time.perf_counter()
            wav = self.model.generate([text], seed=[self.seed + index])[0].cpu()
            computing = time.perf_counter() - start
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

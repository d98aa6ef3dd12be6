"""Make a virtual environment in which the original implementation runs on a current torch.

    python benchmarks/peers/setup_audiocraft.py [folder]        (default: .peers)

The pins of audiocraft 1.3.0 cannot be met on current Python and torch versions, so the package is
installed without its dependencies, next to the ones that the text-to-sound path really uses.
Packages that are only imported, never called, on that path are replaced by stub modules.
"""

import argparse
import subprocess
import sys
import textwrap
import venv
from pathlib import Path

PACKAGES = [
    "numpy",
    "transformers>=4.50,<5",  # the last series with the sentencepiece tokenizer of the original
    "sentencepiece",
    "protobuf",
    "safetensors",
    "flashy",
    "einops",
    "julius",
    "num2words",
    "omegaconf",
    "hydra-core",
    "hydra_colorlog",
    "torchmetrics",
    "av",
    "soundfile",
]

# Module path inside site-packages -> source. Every name is one that audiocraft imports.
STUBS = {
    "xformers/__init__.py": "",
    "xformers/ops.py": """\
        from torch import unbind  # the same function under another name


        class LowerTriangularMask:
            pass  # with the torch backend only its presence matters


        def memory_efficient_attention(*args, **kwargs):
            raise NotImplementedError("stub: call set_efficient_attention_backend('torch') first")
        """,
    "torchaudio/__init__.py": "from . import functional, transforms\n",
    "torchaudio/functional.py": "",
    "torchaudio/transforms.py": """\
        class MelSpectrogram:
            pass


        class Spectrogram:
            pass


        class Loudness:
            pass
        """,
    "librosa/__init__.py": "from . import filters\n",
    "librosa/filters.py": "",
    "spacy/__init__.py": """\
        def load(name):
            raise NotImplementedError("stub: the whitespace tokenizer needs the real spacy")
        """,
}

CHECK = (
    "import audiocraft, torch; from audiocraft.models import AudioGen; "
    "print('audiocraft', audiocraft.__version__, 'on torch', torch.__version__)"
)


def write_stubs(site_packages: Path) -> None:
    """Write the stub modules, leaving alone any of these packages that is really installed."""
    for name, source in STUBS.items():
        path = site_packages / name
        package = site_packages / name.split("/")[0]
        if package.exists() and not (package / "STUB").exists():
            continue
        path.parent.mkdir(exist_ok=True)
        (package / "STUB").touch()
        path.write_text(textwrap.dedent(source))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default=".peers", type=Path)
    parser.add_argument("--torch", default="torch==2.13.0", help="requirement given to pip")
    args = parser.parse_args()

    if not (args.folder / "pyvenv.cfg").exists():
        venv.create(args.folder, symlinks=True, with_pip=True)
    python = args.folder.resolve() / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, args.torch], check=True)
    subprocess.run([*pip, args.torch, *PACKAGES], check=True)
    subprocess.run([*pip, "--no-deps", "audiocraft==1.3.0"], check=True)
    purelib = "import sysconfig; print(sysconfig.get_path('purelib'))"
    found = subprocess.run(
        [str(python), "-c", purelib], check=True, capture_output=True, text=True
    ).stdout
    write_stubs(Path(found.strip()))
    subprocess.run([str(python), "-c", CHECK], check=True)
    print(f"ready: {python}")


if __name__ == "__main__":
    sys.exit(main())

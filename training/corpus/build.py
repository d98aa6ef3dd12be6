"""Make a corpus of captioned sounds from Debian packages; nothing is installed.

    python -m audiogen_fast.training.corpus.build OUT --packages-dir DEBS [--download] [--others]
        [--large]

Takes the `.deb` files of the packages (`packages.py`; `--only` names some of them) from DEBS, which
`--download` fills with `apt-get download` in the versions of `checksums.txt`, and writes
OUT/audio/*.flac (mono, 16 bits), OUT/manifest.csv and OUT/ATTRIBUTION.md. Captions were written for
the names and titles that the packages give their sounds (`captions.tsv`); sounds without one are
left out.

The column `split` of the manifest says what a sound is for: `train`; `metric`, what models that
judge learn from, never those that are judged; `test`, with `held_out` telling whether the whole
caption is kept from the other two or this sound alone. Only sounds under free licences are in
`train` and `test`. `metric` has a tenth of the free sounds whose captions are not held out, mostly
with packages and captions that `train` has too; `--others` adds packages and sounds under other
licences, all of them `metric`. `--large` adds some large packages, of which all is `train`: with
them or without, the same sounds judge. Their sounds under captions that are held out are left out.
"""

import argparse
import hashlib
import re
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import soundfile
import torch

from audiogen_fast.data.audio import audio_read
from audiogen_fast.data.audio_utils import convert_audio, convert_audio_channels
from audiogen_fast.errors import AudioFileError, AudioGenFastError, DataError, check
from audiogen_fast.training.corpus.containers import Member, members
from audiogen_fast.training.corpus.packages import (
    FREE,
    LARGE_PACKAGES,
    OTHER_PACKAGES,
    PACKAGES,
    CaptionRules,
    Package,
)
from audiogen_fast.training.data.manifest import write_manifest

CAPTIONS = Path(__file__).with_name("captions.tsv")
CHECKSUMS = Path(__file__).with_name("checksums.txt")
"""SHA-256 of the packages that the corpus was made of, as `sha256sum` writes it."""
_PEAK = 0.89
_QUIET_DB = -50.0
"""Below the peak; ends of a sound that are quieter are cut off."""
_MIN_SECONDS, _MAX_SECONDS, _MAX_PIECES = 0.2, 10.0, 2
_MAX_PER_CAPTION = 40
_HELD_OUT_CAPTIONS, _HELD_OUT_SOUNDS, _METRIC_SOUNDS = 6, 12, 10
"""Per cent of the free sounds' captions, and of the sounds under the other captions."""


def build(
    output: Path,
    debs: Path,
    packages: Sequence[Package],
    sample_rate: int,
    others: bool = False,
    any_version: bool = False,
) -> list[dict]:
    """Write the corpus; returns the rows of its manifest.

    Args:
        others: take sounds under licences outside of `FREE` too.
        any_version: take packages that `checksums.txt` does not know.
    Raises:
        DataError: a package is not the one that its checksum was taken of, or cannot be unpacked.
        InvalidInputError: a package is missing.
    """
    rules = CaptionRules(CAPTIONS)
    (output / "audio").mkdir(parents=True, exist_ok=True)
    rows: list[dict] = []
    seen: set[str] = set()
    captions: Counter[str] = Counter()
    for package in packages:
        counts: Counter[str] = Counter()
        deb = _deb(debs, package)
        _verify(deb, any_version)
        version = deb.name.split("_")[1].replace("%3a", ":")
        for member, licence, caption in _chosen(package, deb, rules, others, counts):
            try:
                pieces, native_rate = trimmed(member.content, sample_rate)
            except AudioFileError:
                counts["unreadable"] += 1
                continue
            for number, pcm in enumerate(pieces):
                digest = hashlib.sha1(pcm.tobytes()).hexdigest()
                if digest in seen or captions[caption] >= _MAX_PER_CAPTION:
                    counts["double or too many of a caption"] += 1
                    continue
                seen.add(digest)
                captions[caption] += 1
                counts["kept"] += 1
                name = f"audio/{_name(package, member, number, digest)}.flac"
                soundfile.write(output / name, pcm, sample_rate, "PCM_16")
                split, held_out = "train", ""
                if package.held_out:
                    split, held_out = split_of(caption, member.name, licence)
                rows.append(
                    {
                        "path": name,
                        "caption": caption,
                        "duration": len(pcm) / sample_rate,
                        "sample_rate": sample_rate,
                        "licence": licence,
                        "source_package": package.name,
                        "source_version": version,
                        "member": member.name,
                        "credit": package.credit_of(member),
                        "native_sample_rate": native_rate,
                        "split": split,
                        "held_out": held_out,
                        "sha1": digest,
                    }
                )
        print(package.name, version, dict(counts), flush=True)
    write_manifest(output / "manifest.csv", rows)
    (output / "ATTRIBUTION.md").write_text(attribution(rows), "utf-8")
    return rows


def _chosen(
    package: Package, deb: Path, rules: CaptionRules, others: bool, counts: Counter[str]
) -> Iterator[tuple[Member, str, str]]:
    """Sounds that have a caption and a licence that is wanted, with both."""
    found = list(members(deb))
    copyright = next((m for m in found if m.name.endswith(f"doc/{package.name}/copyright")), None)
    text = "" if copyright is None else copyright.content.decode("utf-8", "replace")
    sounds = [m for m in found if not m.name.endswith("/copyright")]
    for member in sorted(sounds, key=lambda m: m.name):
        if not re.search(package.keep, member.name):
            continue
        caption = rules.caption(package.name, member.name)
        licence = package.licence_of(member, text)
        if caption is None:
            counts["without caption"] += 1
        elif not package.may_teach(licence) and not (others and package.held_out):
            counts["other licence"] += 1
        elif not package.held_out and is_held_out(caption):
            counts["caption held out"] += 1
        else:
            yield member, licence, caption


def trimmed(content: bytes, sample_rate: int) -> tuple[list[np.ndarray], int]:
    """A sound as int16 pieces of at most 10 s, without silence at its ends, its peak at -1 dB; and
    the sample rate that it had."""
    wav, rate = audio_read(BytesIO(content))
    wav = convert_audio(convert_audio_channels(wav, 1), rate, sample_rate, 1)[0]
    if wav.numel() == 0 or not torch.isfinite(wav).all() or wav.abs().max() < 1e-3:
        return [], rate
    wav = wav * (_PEAK / wav.abs().max())
    hop = sample_rate // 100
    frames = len(wav) // hop
    level = wav[: frames * hop].view(frames, hop).square().mean(1).sqrt()
    loud = torch.nonzero(level > _PEAK * 10 ** (_QUIET_DB / 20)).flatten().tolist()
    if loud:
        wav = wav[max(0, loud[0] - 2) * hop : (loud[-1] + 5) * hop]
    length = int(_MAX_SECONDS * sample_rate)
    pieces = wav.split(length)[:_MAX_PIECES]
    least = int(_MIN_SECONDS * sample_rate)
    kept = [p for n, p in enumerate(pieces) if len(p) >= (least if n == 0 else 2 * sample_rate)]
    return [(piece * 32767).round().to(torch.int16).numpy() for piece in kept], rate


def attribution(rows: Sequence[dict]) -> str:
    """Who made what, under which licence."""
    lines = ["# Attribution", "", "| file | sound | licence | credit |", "|---|---|---|---|"]
    for row in rows:
        cells = (
            row["path"],
            f"{row['source_package']} {row['source_version']}, {row['member']}",
            row["licence"],
            row["credit"],
        )
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _name(package: Package, member: Member, number: int, digest: str) -> str:
    stem = re.sub(r"[^A-Za-z0-9]+", "_", member.name.split("!")[-1].rsplit(".", 1)[0])
    piece = f"-{number}" if number else ""
    return f"{package.name}-{stem[-50:].strip('_')}{piece}-{digest[:6]}"


def split_of(caption: str, member: str, licence: str) -> tuple[str, str]:
    """`split` and `held_out` of a sound, the same whatever else is in the corpus."""
    if licence not in FREE:
        return "metric", ""
    if is_held_out(caption):
        return "test", "caption"
    place = _percentile(member)
    if place < _HELD_OUT_SOUNDS:
        return "test", "sound"
    return ("metric" if place < _HELD_OUT_SOUNDS + _METRIC_SOUNDS else "train"), ""


def is_held_out(caption: str) -> bool:
    """Whether no model may learn sounds under this caption."""
    return _percentile(caption) < _HELD_OUT_CAPTIONS


def _percentile(text: str) -> int:
    return int(hashlib.sha1(text.encode()).hexdigest(), 16) % 100


def _deb(folder: Path, package: Package) -> Path:
    found = sorted(folder.glob(f"{package.name}_*.deb"))
    check(bool(found), f"packages-dir {folder} has no {package.name}_*.deb; pass --download")
    return found[-1]


def known_packages() -> dict[str, str]:
    """File name -> SHA-256 of the packages that the corpus was made of."""
    lines = CHECKSUMS.read_text("utf-8").splitlines()
    return {name: digest for digest, name in (line.split() for line in lines)}


def _verify(deb: Path, any_version: bool) -> None:
    wanted = known_packages().get(deb.name)
    if wanted is None:
        check(
            any_version,
            f"packages-dir has {deb.name}, of which no checksum is known; other versions have "
            "other sounds (any_version takes it all the same)",
        )
        return
    with deb.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wanted:
        raise DataError(f"{deb}: its SHA-256 is {found}, and not {wanted}; delete it")


def download(folder: Path, packages: Sequence[Package], any_version: bool) -> None:
    """Fill the folder with the packages that it lacks, by `apt-get download`."""
    folder.mkdir(parents=True, exist_ok=True)
    versions = dict(name.split("_")[:2] for name in known_packages())
    missing = [p.name for p in packages if not list(folder.glob(f"{p.name}_*.deb"))]
    if not missing:
        return
    if not any_version:
        missing = [f"{name}={versions[name].replace('%3a', ':')}" for name in missing]
    result = subprocess.run(["apt-get", "download", "-q", *missing], cwd=folder)
    check(
        result.returncode == 0,
        f"apt-get could not download {', '.join(missing)}; another release of Debian has other "
        "versions (--any-version takes those), or use the sounds in the source folder of this "
        "package, training/corpus/subset",
    )


def main() -> None:
    everything = (*PACKAGES, *OTHER_PACKAGES, *LARGE_PACKAGES)
    names = [package.name for package in everything]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--packages-dir", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--download", action="store_true", help="with apt-get, what is missing")
    parser.add_argument(
        "--others", action="store_true", help="sounds under other licences too, split metric"
    )
    parser.add_argument("--large", action="store_true", help="3 GB more of packages, split train")
    parser.add_argument(
        "--any-version", action="store_true", help="take packages of unknown versions"
    )
    parser.add_argument("--sample-rate", type=int, default=16_000)
    args = parser.parse_args()
    others, large = (OTHER_PACKAGES if args.others else ()), (LARGE_PACKAGES if args.large else ())
    chosen = [*PACKAGES, *others, *large]
    if args.only:
        chosen = [package for package in everything if package.name in args.only]
    try:
        if args.download:
            download(args.packages_dir, chosen, args.any_version)
        rows = build(
            args.output, args.packages_dir, chosen, args.sample_rate, args.others, args.any_version
        )
    except AudioGenFastError as error:
        parser.error(str(error))
    seconds = sum(row["duration"] for row in rows)
    print(f"{args.output}: {len(rows)} sounds, {seconds:.0f} s")
    for column in ("licence", "split"):
        print(dict(Counter(row[column] for row in rows)))


if __name__ == "__main__":
    main()

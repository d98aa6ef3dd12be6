"""A web page of sounds: players, spectrograms and figures, in one folder."""

import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from audiogen_fast.data.audio import audio_write
from audiogen_fast.errors import MissingDependencyError
from audiogen_fast.files import write_atomically

PICTURE_SIZE = (960, 320)
"""Width and height in pixels."""
_N_FFT, _HOP = 512, 128
_RANGE_DB = 80
_DARK, _LIGHT = "#14171c", "#c3c9d2"


@dataclass(frozen=True)
class Sound:
    """One row of the page; `audio` and `picture` are names of files in its folder."""

    title: str
    audio: str
    picture: str
    seconds: float
    computing: float | None = None
    """Seconds it took to make, or None where there is nothing to tell."""
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A heading, a sentence about it, and its sounds."""

    title: str
    text: str
    sounds: Sequence[Sound]


def write_sound(
    folder: Path,
    stem: str,
    title: str,
    wav: Tensor,
    sample_rate: int,
    computing: float | None = None,
    note: str = "",
) -> Sound:
    """Write `stem.wav` (at -14 LKFS) and `stem.png` of a waveform `[C, T]`."""
    audio = audio_write(
        folder / stem, wav, sample_rate, strategy="loudness", loudness_compressor=True
    )
    picture = folder / f"{stem}.png"
    write_atomically(picture, spectrogram_picture(wav, sample_rate))
    seconds = wav.shape[-1] / sample_rate
    return Sound(title, audio.name, picture.name, seconds, computing, note)


def spectrogram(wav: Tensor) -> Tensor:
    """Power in dB, the loudest bin at 0 and nothing below -80.

    Args:
        wav: `[C, T]`, float; its channels are averaged.
    Returns:
        float32 `[257, T // 128 + 1]`: Hann windows of 512 samples every 128, centred, the
        recording continued with silence at both ends.
    """
    mono = wav.detach().to("cpu", torch.float32).mean(dim=0)
    window = torch.hann_window(_N_FFT)
    transform = torch.stft(
        mono, _N_FFT, _HOP, window=window, pad_mode="constant", return_complex=True
    )
    power = transform.abs().square()
    loudest = power.max().clamp(min=torch.finfo(torch.float32).tiny)
    return (10 * torch.log10((power / loudest).clamp(min=1e-30))).clamp(min=-_RANGE_DB)


def figure_class() -> type:
    """matplotlib's `Figure`, which draws without any global state.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "the pictures need matplotlib: pip install matplotlib, or 'audiogen-fast[demo]'"
        ) from error
    return Figure


def spectrogram_picture(wav: Tensor, sample_rate: int) -> bytes:
    """A PNG of the spectrogram of `[C, T]`, with axes in seconds and Hz; see `figure_class`."""
    dpi = 180
    width, height = PICTURE_SIZE
    size = (width / dpi, height / dpi)
    figure = figure_class()(size, dpi, facecolor=_DARK, layout="constrained")
    axes = figure.add_subplot(facecolor=_DARK)
    image = axes.imshow(
        spectrogram(wav).numpy(),
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=-_RANGE_DB,
        vmax=0,
        extent=(0, wav.shape[-1] / sample_rate, 0, sample_rate / 2),
    )
    axes.set_xlabel("time in s")
    axes.set_ylabel("frequency in Hz")
    axes.locator_params(axis="y", nbins=4)
    bar = figure.colorbar(image, pad=0.01, ticks=range(-_RANGE_DB, 1, 20))
    bar.set_label("dB")
    for part in (axes, bar.ax):
        part.tick_params(colors=_LIGHT, labelsize=8)
        part.xaxis.label.set(color=_LIGHT, size=8)
        part.yaxis.label.set(color=_LIGHT, size=8)
        for spine in part.spines.values():
            spine.set_visible(False)
    bar.outline.set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def write_page(
    path: Path,
    title: str,
    introduction: str,
    sections: Sequence[Section],
    facts: Mapping[str, str],
    warning: str = "",
) -> None:
    """Write the page. All texts are plain text; links are relative to its folder.

    Args:
        path: of the page; the files of the sounds lie beside it.
        introduction: below the title.
        facts: a last table, name to value.
        warning: shown with emphasis before everything else.
    """
    body = [f"<h1>{_escape(title)}</h1>", f"<p>{_escape(introduction)}</p>"]
    if warning:
        body.append(f'<p class="warning" role="note">{_escape(warning)}</p>')
    for section in sections:
        body.append(f"<h2>{_escape(section.title)}</h2>\n<p>{_escape(section.text)}</p>")
        body.append(_table(section.sounds))
    rows = "\n".join(
        f'<tr><th scope="row">{_escape(name)}</th><td>{_escape(value)}</td></tr>'
        for name, value in facts.items()
    )
    body.append(f'<h2>Machine and versions</h2>\n<table class="facts">\n{rows}\n</table>')
    document(path, title, body)


def document(path: Path, title: str, body: Sequence[str], style: str = "") -> None:
    """Write a page of this look.

    Args:
        body: pieces of HTML.
        style: further CSS.
    """
    page = _PAGE.format(title=_escape(title), style=_STYLE + style, body="\n".join(body))
    write_atomically(path, page.encode("utf-8"))


def _table(sounds: Sequence[Sound]) -> str:
    rows = "\n".join(_row(sound) for sound in sounds)
    return f'<table class="sounds">\n{_HEAD}\n<tbody>\n{rows}\n</tbody>\n</table>'


def _row(sound: Sound) -> str:
    title = _escape(sound.title)
    note = f'<br><span class="note">{_escape(sound.note)}</span>' if sound.note else ""
    speed = computing = "–"
    if sound.computing:
        computing = f"{sound.computing:.2f} s"
        speed = f"{sound.seconds / sound.computing:.1f}×"
    width, height = PICTURE_SIZE
    return f"""<tr>
<th scope="row">{title}{note}</th>
<td class="listen"><audio controls preload="metadata" src="{_escape(sound.audio)}"></audio></td>
<td class="picture"><img src="{_escape(sound.picture)}" width="{width}" height="{height}"
 loading="lazy" alt="Spectrogram: {title}"></td>
<td class="figure" data-label="Length">{sound.seconds:.2f} s</td>
<td class="figure" data-label="Made in">{computing}</td>
<td class="figure" data-label="Speed">{speed}</td>
</tr>"""


def _escape(text: str) -> str:
    return html.escape(text, quote=True)


_HEAD = (
    '<thead><tr><th scope="col">Sound</th><th scope="col">Listen</th>'
    '<th scope="col">Spectrogram</th><th scope="col">Length</th><th scope="col">Made in</th>'
    '<th scope="col">Speed</th></tr></thead>'
)
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
_STYLE = """
:root { --back: #fbfbfa; --text: #1d2127; --soft: #5c6570; --line: #dcdfe3; --panel: #fff;
  --alert: #fff3d6; --alert-line: #d99a1c; }
@media (prefers-color-scheme: dark) {
  :root { --back: #0f1115; --text: #e6e8eb; --soft: #9aa3ae; --line: #2a2f37; --panel: #171a20;
    --alert: #2e2512; --alert-line: #b9851d; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .25rem; }
p { max-width: 46rem; margin: .25rem 0 1rem; }
.warning { background: var(--alert); border-left: 4px solid var(--alert-line);
  border-radius: 6px; padding: .75rem 1rem; }
.note { color: var(--soft); font-weight: 400; font-size: .875rem; }
table { width: 100%; border-collapse: collapse; background: var(--panel);
  border: 1px solid var(--line); border-radius: 8px; }
th, td { text-align: left; vertical-align: middle; padding: .6rem .75rem;
  border-top: 1px solid var(--line); font-weight: 400; }
tbody th { font-weight: 600; }
thead th { border-top: 0; color: var(--soft); font-size: .8rem; white-space: nowrap; }
.sounds tbody th { width: 20%; }
.figure { white-space: nowrap; font-variant-numeric: tabular-nums; }
audio { display: block; width: 15rem; max-width: 100%; }
img { display: block; width: 100%; min-width: 18rem; max-width: 30rem; height: auto;
  border-radius: 6px; }
.facts { width: auto; max-width: 100%; }
.facts th { white-space: nowrap; color: var(--soft); }
.facts td { overflow-wrap: anywhere; }
@media (max-width: 60rem) {
  .sounds { border: 0; background: none; }
  .sounds thead { display: none; }
  .sounds tbody, .sounds tr, .sounds tbody th, .sounds td { display: block; width: auto; }
  .sounds tr { background: var(--panel); border: 1px solid var(--line); border-radius: 8px;
    padding: .75rem 1rem; margin-bottom: 1rem; }
  .sounds th, .sounds td { border: 0; padding: .25rem 0; }
  .sounds .figure { display: inline-block; margin-right: 1.5rem; }
  .figure::before { content: attr(data-label) ": "; color: var(--soft); }
  audio { width: 100%; }
  img { min-width: 0; max-width: 100%; }
}
"""

"""The report as one web page with nothing beside it: tables, plots, sounds."""

import base64
import html
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from audiogen_fast.data.audio_utils import normalize_audio
from audiogen_fast.data.encoders import encode
from audiogen_fast.errors import AudioGenFastError, MissingDependencyError
from audiogen_fast.evaluation import plots
from audiogen_fast.evaluation.clips import Clip, ClipSet
from audiogen_fast.evaluation.measures import Value
from audiogen_fast.evaluation.results import METRICS, Item, Report, Row, metric_of, title_of
from audiogen_fast.report import document, figure_class, spectrogram

_GROUPS = {
    "sounds": "Sounds",
    "model": "Language model",
    "codec": "Codec",
}
_SHOWN_FAULTS = 200
_LONGEST = 10.0
"""Seconds of a sound on the page."""
_PLAYER_RATE = 16000


def write_page(
    path: Path, report: Report, sets: Mapping[str, ClipSet], reference: ClipSet, items: int = 4
) -> None:
    """Write the page.

    Args:
        sets: clips of the rows that can be listened to, by name of the row.
        items: how many of the best and of the worst of each of them are shown.
    """
    body = [
        "<h1>Evaluation</h1>",
        f"<p>{_escape(_introduction(report))}</p>",
    ]
    if report.faults:
        body.append(f'<p class="warning" role="note">{_escape(_fault_summary(report))}</p>')
    for group, title in _GROUPS.items():
        body += _group(report, group, title)
    body += _items(report, sets, reference, items)
    body += _faults(report)
    body += _notes(report)
    document(path, "Evaluation", body, _STYLE)


def _introduction(report: Report) -> str:
    systems = [row.name for row in report.rows if row.kind == "system"]
    what = ", ".join(systems) if systems else "the references themselves"
    return (
        f"Measured: {what}. Each figure has its interval of 95 %; an arrow says what is better. "
        "Read a system's figures between those of real clips, of real clips with the captions of "
        "others, and of noise."
    )


def _group(report: Report, group: str, title: str) -> list[str]:
    keys = [key for key in report.keys if metric_of(key).group == group]
    if not keys:
        return []
    rows = [row for row in report.rows if any(key in row.values for key in keys)]
    body = [f"<h2>{title}</h2>", _table(rows, keys, explained=group == "sounds")]
    figures = []
    for key in keys:
        if "_q" in key.split(":")[0]:
            continue  # of single codebooks: the table has them
        found = [(row, row.values[key]) for row in rows if key in row.values]
        picture = plots.intervals(
            [row.name for row, _ in found],
            [(v.value, v.low, v.high) for _, v in found],
            [row.kind for row, _ in found],
            _heading(key),
        )
        if picture:
            figures.append(_figure(key, metric_of(key).about, picture))
        figures += _strips(rows, key)
    return [*body, f'<div class="plots">{"".join(figures)}</div>']


def _strips(rows: Sequence[Row], key: str) -> list[str]:
    if key.split(":")[0] not in ("score", "kld"):
        return []
    with_items = [row for row in rows if any(key in item.values for item in row.items)]
    values = [[i.values[key] for i in row.items if key in i.values] for row in with_items]
    names, kinds = [row.name for row in with_items], [row.kind for row in with_items]
    picture = plots.strips(names, values, kinds, _heading(key))
    return [_figure(key, "every clip", picture)] if picture else []


def _figure(key: str, about: str, picture: str) -> str:
    caption = f"<b>{_escape(_heading(key))}</b> {_arrow(key)} {_escape(about)}"
    return f"<figure><figcaption>{caption}</figcaption>{picture}</figure>"


def _heading(key: str) -> str:
    encoder = key.partition(":")[2]
    return f"{title_of(key)} ({encoder})" if encoder else title_of(key)


def _arrow(key: str) -> str:
    better = metric_of(key).better
    return {1: "↑", -1: "↓", 0: ""}[better]


def _table(rows: Sequence[Row], keys: Sequence[str], explained: bool) -> str:
    head = "".join(
        f'<th scope="col" title="{_escape(metric_of(key).about)}">{_escape(title_of(key))} '
        f'{_arrow(key)}<br><span class="note">{_escape(key.partition(":")[2])}</span></th>'
        for key in keys
    )
    lines = []
    for row in rows:
        cells = "".join(_cell(row.values.get(key)) for key in keys)
        about = f'<br><span class="note">{_escape(row.about)}</span>' if explained else ""
        lines.append(
            f'<tr class="{row.kind}"><th scope="row">{_escape(row.name)}{about}</th>{cells}</tr>'
        )
    body = "\n".join(lines)
    return (
        f'<div class="wide"><table class="figures"><thead><tr><th scope="col"></th>{head}</tr>'
        f"</thead><tbody>\n{body}\n</tbody></table></div>"
    )


def _cell(value: Value | None) -> str:
    if value is None:
        return '<td class="figure">–</td>'
    if value.value is None:
        return f'<td class="none">none: <span class="note">{_escape(value.reason)}</span></td>'
    notes = []
    if value.low is not None:
        notes.append(f"{number(value.low)} … {number(value.high)}")
    if value.n:
        notes.append(f"n {value.n}")
    if value.p is not None:
        notes.append(f"p {value.p:.3f}")
    small = "<br>".join(_escape(note) for note in notes)
    return (
        f'<td class="figure"><b>{number(value.value)}</b><br><span class="note">{small}</span></td>'
    )


def number(value: float) -> str:
    """Four figures at most."""
    size = abs(value)
    return f"{value:.0f}" if size >= 1000 else f"{value:.1f}" if size >= 10 else f"{value:.3f}"


def sort_key(row: Row) -> str | None:
    """What tells good items of a row from bad ones: the text score, else the labels."""
    for name in ("score", "kld"):
        for key in row.values:
            if key.split(":")[0] == name and any(key in item.values for item in row.items):
                return key
    return None


def best_and_worst(row: Row, count: int) -> tuple[list[Item], list[Item]]:
    """The items of a row with the best and the worst figure, at most half of them each."""
    key = sort_key(row)
    if key is None:
        return [], []
    better = metric_of(key).better
    items = [item for item in row.items if key in item.values]
    items.sort(key=lambda item: (-better * item.values[key], item.name))
    count = min(count, max(1, len(items) // 2))
    return items[:count], items[len(items) - min(count, len(items) - count) :][::-1]


def _items(
    report: Report, sets: Mapping[str, ClipSet], reference: ClipSet, count: int
) -> list[str]:
    if count == 0 or not sets:
        return []
    rows = {row.name: row for row in report.rows}
    sounds = _Sounds()
    clips = {name: {c.name: c for c in clips.clips} for name, clips in sets.items()}
    references = {clip.name: clip for clip in reference.clips}
    body = []
    for name in sets:
        best, worst = best_and_worst(rows[name], count)
        for word, items in (("Best", best), ("Worst", worst)):
            if not items:
                continue
            body.append(f"<h2>{word} of {_escape(name)}</h2>")
            body.append(f"<p>By {_escape(_heading(sort_key(rows[name])))}.</p>")
            lines = [_item(item, name, rows, clips, references, sounds) for item in items]
            body.append(f'<div class="items">{"".join(lines)}</div>')
    if sounds.missing:
        body.append(f'<p class="note">{_escape(sounds.missing)}</p>')
    return body


def _item(
    item: Item,
    name: str,
    rows: Mapping[str, Row],
    clips: Mapping[str, Mapping[str, Clip]],
    references: Mapping[str, Clip],
    sounds: "_Sounds",
) -> str:
    """A caption with its reference and what each system has for it, side by side."""
    answered = item.reference or item.name
    cells = []
    if answered in references and item.reference is not None:
        cells.append(sounds.cell("reference", references[answered], ""))
    for other, own in clips.items():
        found = item
        if other != name:
            found = next((i for i in rows[other].items if i.reference == answered), None)
        if found is not None and found.name in own:
            figures = [
                f"{title_of(key)} {number(value)}"
                for key, value in found.values.items()
                if "R@" not in key  # 0 or 1
            ]
            cells.append(sounds.cell(other, own[found.name], ", ".join(figures)))
    return (
        f'<section class="item"><h3>{_escape(item.caption or "no caption")}</h3>'
        f'<p class="note">{_escape(item.name)}</p><div class="cells">{"".join(cells)}</div>'
        "</section>"
    )


class _Sounds:
    """Players and pictures as parts of the page, each sound once."""

    def __init__(self):
        self.made: dict[int, str] = {}
        self.missing = ""

    def cell(self, title: str, clip: Clip, note: str) -> str:
        if id(clip) not in self.made:
            self.made[id(clip)] = self._media(title, clip)
        return (
            f'<div class="cell"><b>{_escape(title)}</b>{self.made[id(clip)]}'
            f'<span class="note">{_escape(note)}</span></div>'
        )

    def _media(self, title: str, clip: Clip) -> str:
        try:
            wav = clip.read(_PLAYER_RATE)[: int(_LONGEST * _PLAYER_RATE)][None]
        except (AudioGenFastError, OSError) as error:
            return f'<p class="note">{_escape(str(error))}</p>'
        level = normalize_audio(wav, strategy="peak", sample_rate=_PLAYER_RATE)
        audio = base64.b64encode(encode(level, _PLAYER_RATE, "mp3", mp3_rate=64)).decode()
        player = f'<audio controls preload="none" src="data:audio/mpeg;base64,{audio}"></audio>'
        try:
            picture = base64.b64encode(_picture(wav)).decode()
        except MissingDependencyError as error:
            self.missing = f"No pictures of the sounds: {error}"
            return player
        alt = f"Spectrogram: {_escape(title)}, {_escape(clip.caption or clip.name)}"
        return (
            f'{player}<img src="data:image/png;base64,{picture}" width="320" height="129" '
            f'loading="lazy" alt="{alt}">'
        )


def _picture(wav) -> bytes:
    """A small PNG of the spectrogram, 0 to 8 kHz upwards, from left to right its whole length."""
    figure_class()
    from matplotlib.image import imsave

    power = spectrogram(wav).numpy()[::2]
    columns = np.linspace(0, power.shape[1] - 1, min(320, power.shape[1])).round().astype(int)
    buffer = io.BytesIO()
    imsave(buffer, power[:, columns], vmin=-80, vmax=0, cmap="magma", origin="lower", format="png")
    return buffer.getvalue()


def _fault_summary(report: Report) -> str:
    counts = Counter((fault.system, fault.kind, fault.left_out) for fault in report.faults)
    parts = [
        f"{system}: {count} {kind}{' (left out)' if left_out else ''}"
        for (system, kind, left_out), count in counts.items()
    ]
    return "Faults, listed below: " + "; ".join(parts) + "."


def _faults(report: Report) -> list[str]:
    if not report.faults:
        return ["<h2>Faults</h2>", "<p>None.</p>"]
    lines = "\n".join(
        f"<tr><td>{_escape(f.system)}</td><td>{_escape(f.clip)}</td><td>{_escape(f.kind)}</td>"
        f"<td>{_escape(f.detail)}</td><td>{'left out' if f.left_out else 'counted'}</td></tr>"
        for f in report.faults[:_SHOWN_FAULTS]
    )
    more = len(report.faults) - _SHOWN_FAULTS
    rest = [f"<p>And {more} more in report.json.</p>"] if more > 0 else []
    head = "".join(f'<th scope="col">{t}</th>' for t in ("set", "clip", "fault", "what", ""))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>\n{lines}\n</tbody></table>"
    return ["<h2>Faults</h2>", f'<div class="wide">{table}</div>', *rest]


def _notes(report: Report) -> list[str]:
    body = ["<h2>How it was measured</h2>", "<ul>"]
    body += [f"<li>{_escape(note)}</li>" for note in report.notes]
    used = dict.fromkeys(key.split(":")[0].split("_q")[0] for key in report.keys)
    body += [
        f"<li>{_escape(METRICS[name].title)}: {_escape(METRICS[name].about)}.</li>" for name in used
    ]
    body.append("</ul>")
    took = {name: f"{value:.1f} s" for name, value in report.seconds.items()}
    for title, facts in (
        ("Settings", report.settings),
        ("Time", took),
        ("Machine and versions", report.facts),
    ):
        lines = "\n".join(
            f'<tr><th scope="row">{_escape(str(k))}</th><td>{_escape(str(v))}</td></tr>'
            for k, v in facts.items()
        )
        body.append(f'<h2>{title}</h2>\n<table class="facts">\n{lines}\n</table>')
    return body


def _escape(text: str) -> str:
    return html.escape(text, quote=True)


_STYLE = """
main { max-width: 96rem; }
.figures tbody th { min-width: 10rem; }
.wide { overflow-x: auto; }
.figures td, .figures th { padding: .45rem .6rem; vertical-align: top; }
.figures thead th { white-space: normal; }
.anchor th, .anchor td { color: var(--soft); }
.system th { color: var(--text); }
.none { color: var(--soft); max-width: 14rem; font-size: .875rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); gap: 1rem;
  margin-top: 1rem; }
figure { margin: 0; background: var(--panel); border: 1px solid var(--line); border-radius: 8px;
  padding: .75rem; }
figcaption { font-size: .875rem; }
svg { display: block; width: 100%; height: auto; font: 13px system-ui, sans-serif; }
svg text { fill: var(--text); }
svg .soft { fill: var(--soft); }
svg .grid { stroke: var(--line); }
svg .bar { stroke-width: 3; stroke-linecap: round; }
svg line.anchor { stroke: #7d8894; }
svg circle.anchor { fill: #7d8894; }
svg line.system { stroke: #d1603d; }
svg circle.system { fill: #d1603d; }
svg .point { opacity: .55; }
.items { display: flex; flex-wrap: wrap; gap: 1rem 2rem; }
.item h3 { font-size: 1rem; margin: 0; }
.item p { margin: 0 0 .25rem; }
.cells { display: flex; flex-wrap: wrap; gap: 1rem; }
.cell { flex: 0 1 17rem; background: var(--panel); border: 1px solid var(--line);
  border-radius: 8px; padding: .6rem; }
.cell audio { width: 100%; margin: .4rem 0; }
.cell img { min-width: 0; width: 100%; height: 8rem; }
"""

"""What an evaluation found, and its JSON and CSV."""

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from audiogen_fast.errors import DataError
from audiogen_fast.evaluation.clips import Fault
from audiogen_fast.evaluation.measures import Value
from audiogen_fast.files import write_atomically

FORMAT = "audiogen_fast evaluation"
FORMAT_VERSION = 1
JSON, TABLE, ITEMS, PAGE = "report.json", "table.csv", "items.csv", "index.html"


@dataclass(frozen=True)
class Metric:
    """A column of the table."""

    title: str
    better: int
    """1 where more is better, -1 where less is, 0 where neither."""
    about: str
    group: str = "sounds"
    """The table it stands in: `sounds`, `model` or `codec`."""


METRICS = {
    "fad": Metric("FAD", -1, "Frechet audio distance to the references of the other half"),
    "fad_all": Metric("FAD, all clips", -1, "Frechet audio distance to all references"),
    "kad": Metric("KAD", -1, "kernel audio distance to the references of the other half"),
    "kld": Metric("KL", -1, "divergence of the labels from those of the reference, nats"),
    "score": Metric("text score", 1, "cosine between sound and caption"),
    "R@1": Metric("R@1", 1, "share that is the nearest to its caption, of real clips of others"),
    "R@5": Metric(
        "R@5", 1, "share that is among the nearest 5 to its caption, of real clips of others"
    ),
    "R@10": Metric(
        "R@10", 1, "share that is among the nearest 10 to its caption, of real clips of others"
    ),
    "caption_R@1": Metric("caption R@1", 1, "share whose caption is the nearest of all captions"),
    "caption_R@5": Metric(
        "caption R@5", 1, "share whose caption is among the nearest 5 of all captions"
    ),
    "caption_R@10": Metric(
        "caption R@10", 1, "share whose caption is among the nearest 10 of all captions"
    ),
    "ce": Metric("cross entropy", -1, "of the codes of the clips given captions, nats", "model"),
    "ppl": Metric("perplexity", -1, "exp of the cross entropy", "model"),
    "speed": Metric("x real time", 1, "seconds of sound for a second of computing", "model"),
    "si_sdr": Metric("SI-SDR, dB", 1, "scale-invariant signal-to-distortion ratio", "codec"),
    "mel_distance": Metric("mel distance, dB", -1, "difference of log-mel spectrograms", "codec"),
    "visqol": Metric("ViSQOL", 1, "predicted opinion of listeners, 1 to 5", "codec"),
    "usage": Metric("entries used", 1, "share of a codebook's entries that are used", "codec"),
    "perplexity": Metric("code perplexity", 1, "exp of the entropy of a codebook", "codec"),
}
"""By the first part of a key: `fad:aisfx` is `fad` with the encoder `aisfx`."""
TEXT_METRICS = ("score", *(name for name in METRICS if "R@" in name))
"""What an encoder of sounds and texts measures."""


def metric_of(key: str) -> Metric:
    """The metric of a key such as `kld:aisfx`, `ce_q2:model` or `usage_q1`."""
    return METRICS[key.split(":")[0].split("_q")[0]]


def title_of(key: str) -> str:
    """The heading of its column, without the encoder."""
    name = key.split(":")[0]
    base, _, number = name.partition("_q")
    return METRICS[base].title + (f", codebook {number}" if number else "")


@dataclass
class Item:
    """One clip of a row."""

    name: str
    caption: str | None
    reference: str | None
    """Name of the reference clip it answers to."""
    values: dict[str, float] = field(default_factory=dict)
    """Measures of this clip by key."""


@dataclass
class Row:
    """One system or anchor."""

    name: str
    kind: str
    """`anchor` or `system`."""
    about: str
    values: dict[str, Value] = field(default_factory=dict)
    items: list[Item] = field(default_factory=list)


@dataclass
class Report:
    """Everything an evaluation found."""

    rows: list[Row]
    faults: list[Fault]
    notes: list[str]
    """How it was measured: counts, halves, what was left out."""
    settings: dict[str, Any]
    facts: dict[str, str]
    """Versions and machine."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time of each part."""

    @property
    def keys(self) -> list[str]:
        """All metrics that any row has, in the order of `METRICS`."""
        known = list(METRICS)
        found = dict.fromkeys(key for row in self.rows for key in row.values)
        return sorted(found, key=lambda k: known.index(k.split(":")[0].split("_q")[0]))

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    def as_dict(self) -> dict[str, Any]:
        """For `json`: no NaN, no infinity; what is not known is null, with a reason."""
        return {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "metrics": {
                key: {**asdict(metric_of(key)), "title": title_of(key)} for key in self.keys
            },
            "rows": [asdict(row) for row in self.rows],
            "faults": [asdict(fault) for fault in self.faults],
            "notes": self.notes,
            "settings": self.settings,
            "facts": self.facts,
            "seconds": self.seconds,
        }

    def write(self, folder: Path) -> None:
        """Write `report.json`, `table.csv` and `items.csv`."""
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.as_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(folder / JSON, text.encode("utf-8"))
        write_atomically(folder / TABLE, _csv(_table_rows(self.rows)))
        write_atomically(folder / ITEMS, _csv(_item_rows(self.rows)))


def read_report(path: str | Path) -> Report:
    """A report that was written to a folder, or to a JSON file.

    Raises:
        DataError: it is none.
    """
    path = Path(path)
    path = path / JSON if path.is_dir() else path
    try:
        content = json.loads(path.read_text("utf-8"))
        if (content["format"], content["version"]) != (FORMAT, FORMAT_VERSION):
            raise ValueError(f"its format is {content['format']!r}, {content['version']!r}")
        rows = [
            Row(
                **{
                    **row,
                    "values": {k: Value(**v) for k, v in row["values"].items()},
                    "items": [Item(**item) for item in row["items"]],
                }
            )
            for row in content["rows"]
        ]
        faults = [Fault(**fault) for fault in content["faults"]]
        rest = {name: content[name] for name in ("notes", "settings", "facts", "seconds")}
        return Report(rows, faults, **rest)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: is no report of an evaluation: {error}") from error


def _table_rows(rows: Iterable[Row]) -> Iterable[dict[str, Any]]:
    for row in rows:
        for key, value in row.values.items():
            metric, _, encoder = key.partition(":")
            first = {"row": row.name, "kind": row.kind, "metric": metric, "encoder": encoder}
            yield first | asdict(value)


def _item_rows(rows: Iterable[Row]) -> Iterable[dict[str, Any]]:
    keys = dict.fromkeys(k for row in rows for item in row.items for k in item.values)
    for row in rows:
        for item in row.items:
            first = {
                "row": row.name,
                "clip": item.name,
                "reference": item.reference,
                "caption": item.caption,
            }
            yield first | {key: item.values.get(key) for key in keys}


def _csv(rows: Iterable[dict[str, Any]]) -> bytes:
    rows = list(rows)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]) if rows else ["row"])
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode("utf-8")

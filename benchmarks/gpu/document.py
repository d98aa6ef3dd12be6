"""The report of a GPU as text, and its targets."""

from collections.abc import Iterator
from typing import Any

# H100, in the words of the plan: fraction of bandwidth, and ratios on the same device.
MS_PER_STEP = 1.28
TIMES_EAGER = 10.0
TIMES_GRAPH_ONLY = 1.7
TIMES_REAL_TIME = 200.0


def targets(content: dict[str, Any]) -> list[dict[str, Any]]:
    """What was aimed at, what was measured, and whether that is met; None where unmeasured."""
    if content["device"] != "cuda" or content["size"] != "medium":
        content = {"sections": {}}  # a trial's figures are no measurements
    fused = _value(content, "steps-bfloat16", "1 descriptions", "ms_per_step")
    audiocraft = _value(content, "peers", "audiocraft", "ms_per_step")
    graph_only = _value(content, "graph-only", "1 descriptions", "ms_per_step")
    many = _value(content, "steps-bfloat16", "64 descriptions", "times_real_time")
    name = _value(content, "environment", "device", "name") or ""
    return [
        _target(
            "one description, bfloat16, ms/step" + ("" if "H100" in name else " (meant for H100)"),
            f"<= {MS_PER_STEP}",
            fused,
            None if fused is None else fused <= MS_PER_STEP,
        ),
        _ratio("one description, times eager audiocraft", TIMES_EAGER, audiocraft, fused),
        _ratio(
            "one description, times our captured torch step", TIMES_GRAPH_ONLY, graph_only, fused
        ),
        _target(
            "64 descriptions, bfloat16, times real time"
            + ("" if "H100" in name else " (meant for H100)"),
            f">= {TIMES_REAL_TIME:g}",
            many,
            None if many is None else many >= TIMES_REAL_TIME,
        ),
    ]


def _ratio(what: str, limit: float, slow: float | None, fast: float | None) -> dict[str, Any]:
    ratio = slow / fast if slow and fast else None
    return _target(what, f">= {limit:g}", ratio, None if ratio is None else ratio >= limit)


def _target(what: str, limit: str, value: float | None, met: bool | None) -> dict[str, Any]:
    return {"target": what, "limit": limit, "measured": value, "met": met}


def _value(content: dict[str, Any], section: str, item: str, key: str) -> Any:
    return content["sections"].get(section, {}).get("items", {}).get(item, {}).get(key)


def document(content: dict[str, Any]) -> str:
    """The whole report in Markdown."""
    lines = ["# GPU report", ""]
    device = _value(content, "environment", "device", "name")
    if device is None:
        lines += ["There is no CUDA device here: this report has only what needs none.", ""]
    else:
        lines += [f"On one {device}.", ""]
    if content["device"] == "cpu":
        lines += ["A trial on a CPU: its figures mean nothing.", ""]
    lines += [
        f"Made at {content['time']} by `python benchmarks/gpu_report.py`; model size "
        f"{content['size']}, random weights.",
        "",
        "## Targets",
        "",
        *_table(
            ["target", "limit", "measured", ""],
            [
                [t["target"], t["limit"], _number(t["measured"]), _verdict(t["met"])]
                for t in content.get("targets", [])
            ],
        ),
        "",
    ]
    for name, section in content["sections"].items():
        lines += [f"## {section['title']}", ""]
        if name == "environment":
            lines += _environment(section["items"])
        elif name == "kernels":
            copy = _value(content, "ceilings", "copy", "gb_s")
            lines += _items({k: _share_of_copy(v, copy) for k, v in section["items"].items()})
        else:
            lines += _items(section["items"])
        lines.append("")
    return "\n".join(lines)


def _verdict(met: bool | None) -> str:
    return {True: "met", False: "not met", None: "not measured"}[met]


def _environment(items: dict[str, Any]) -> Iterator[str]:
    for item in ("installation", "device"):
        for key, value in items.get(item, {}).items():
            if isinstance(value, dict):
                value = ", ".join(f"{k}: {v}" for k, v in value.items())
            yield f"- {key}: {value}"
    rows = items.get("predictions", {}).get("rows", [])
    if rows:
        gpus = list(dict.fromkeys(row["gpu"] for row in rows))
        table: dict[tuple[str, int], list[Any]] = {}
        for row in rows:
            line = table.setdefault((row["weights"], row["descriptions"]), [])
            line.append(f"{row['ms_per_step']} ({row['times_real_time']}x)")
        yield ""
        yield "Predicted floors of a decode step, by the bandwidth of data sheets, averaged over a"
        yield "clip of 10 s: ms/step (times real time)."
        yield ""
        yield from _table(["weights", "descriptions", *gpus], [[*k, *v] for k, v in table.items()])


def _items(items: dict[str, Any]) -> Iterator[str]:
    """One row an item; nested results in columns of their own."""
    flat = {item: dict(_flatten(result)) for item, result in items.items()}
    keys = [key for key in dict.fromkeys(k for r in flat.values() for k in r) if key != "where"]
    if not keys:
        return
    rows = [[item, *(_number(r.get(key)) for key in keys)] for item, r in flat.items()]
    yield from _table(["", *keys], rows)


def _share_of_copy(result: dict[str, Any], copy: float | None) -> dict[str, Any]:
    """A kernel's bytes per second over those of a plain copy on the same device."""
    if copy is None or "kernel" not in result:
        return result
    return {**result, "share of copy": result["kernel"]["gb_s"] / copy}


def _flatten(result: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in result.items():
        if key == "files":
            bad = [name for name, one in value.items() if one["status"] != 0]
            yield "failed files", ", ".join(bad)
        elif isinstance(value, dict):
            yield from ((f"{key} {k}", v) for k, v in value.items())
        else:
            yield key, value


def _number(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value).replace("|", "/").replace("\n", " ")[:300]
    return f"{value:.4g}"


def _table(header: list[str], rows: list[list[Any]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines]

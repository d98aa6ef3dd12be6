"""The picture of `benchmarks.cpu`.

python -m benchmarks.cpu_picture benchmarks/results/cpu.json      # draws cpu.png beside it again
"""

import argparse
import json
from pathlib import Path
from typing import Any

_OURS, _PEERS = "#2b6cb0", "#a0aec0"
_IS_PEER = ("audiocraft", "transformers")


def draw(record: dict[str, Any], path: Path) -> Path:
    """Draw time per step and share of the bandwidth of every implementation, one row a batch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    results = record["results"]
    batches = sorted({r["batch"] for r in results})
    count = max(sum(r["batch"] == b for r in results) for b in batches)
    figure = Figure(figsize=(10, (0.42 * count + 1.2) * len(batches) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(batches), 2, squeeze=False, width_ratios=(3, 2))
    for (left, right), batch in zip(axes, batches, strict=True):
        rows = sorted((r for r in results if r["batch"] == batch), key=lambda r: -r["ms_per_step"])
        _steps(left, rows, batch)
        _bandwidth(right, rows)
    machine, settings = record["machine"], record["settings"]
    figure.suptitle(
        f"AudioGen {settings['size']}, one decode step with guidance, mean over a clip of "
        f"{settings['seconds']:g} s\n{machine['cpu']}, {machine['threads']} threads, torch "
        f"{machine['torch']}, memory read at {machine['read_gb_s']:g} GB/s",
        fontsize=10,
    )
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, format="png", dpi=150)
    partial.replace(path)
    return path


def _colours(rows: list[dict]) -> list[str]:
    return [_PEERS if r["implementation"] in _IS_PEER else _OURS for r in rows]


def _steps(axis, rows: list[dict], batch: int) -> None:
    labels = [r["implementation"] for r in rows]
    times = [r["ms_per_step"] for r in rows]
    spread = [
        [max(0.0, r["ms_per_step"] - r["p10_ms"]) for r in rows],
        [max(0.0, r["p90_ms"] - r["ms_per_step"]) for r in rows],
    ]
    axis.barh(labels, times, color=_colours(rows), xerr=spread, ecolor="#4a5568", capsize=2)
    # Beyond the whisker, so that neither covers the other.
    top = max(r["p90_ms"] for r in rows)
    for index, r in enumerate(rows):
        ratios = ", ".join(f"{x:.1f}x {peer}" for peer, x in r["faster_than"].items())
        text = f"{r['ms_per_step']:.1f}" + (f"  ({ratios})" if ratios and _is_ours(r) else "")
        end = max(r["ms_per_step"], r["p90_ms"])
        axis.text(end + 0.015 * top, index, text, va="center", fontsize=8)
    axis.set_xlim(0, 1.6 * top)
    axis.set_xlabel("ms per step (whiskers: 10th and 90th percentile)")
    axis.set_title(f"{batch} description{'s' if batch > 1 else ''}", fontsize=10, loc="left")


def _is_ours(r: dict) -> bool:
    return r["implementation"] not in _IS_PEER


def _bandwidth(axis, rows: list[dict]) -> None:
    labels = [r["implementation"] for r in rows]
    shares = [100 * r["share_of_bandwidth"] for r in rows]
    axis.barh(labels, shares, color=_colours(rows))
    for index, (r, share) in enumerate(zip(rows, shares, strict=True)):
        size = (r["weight_bytes"] + r["cache_bytes"]) / 1e9
        axis.text(share + 1.5, index, f"{share:.0f} %  of {size:.2f} GB", va="center", fontsize=8)
    axis.set_xlim(0, 150)
    axis.set_xticks([0, 25, 50, 75, 100])
    axis.tick_params(labelleft=False)
    axis.set_xlabel("% of the measured read bandwidth")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", type=Path)
    args = parser.parse_args()
    print(draw(json.loads(args.json.read_text()), args.json.with_suffix(".png")))


if __name__ == "__main__":
    main()

"""Curves of finished runs as a picture.

python -m audiogen_fast.training.curves OUT.png RUN:METRIC[,METRIC...] ...
"""

import argparse
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from audiogen_fast.errors import InvalidInputError, check
from audiogen_fast.files import write_atomically
from audiogen_fast.report import figure_class

_STAGES = {"train": "-", "valid": "o--"}


def read_curves(
    run: str | Path, metrics: Sequence[str]
) -> dict[tuple[str, str], tuple[list[int], list[float]]]:
    """Updates and values by metric and stage, from the log of a run.

    Raises:
        InvalidInputError: the folder has no log, or the log no such metric.
    """
    path = Path(run) / "log.jsonl"
    check(path.is_file(), f"run must be the folder of a training run, {path} is not there")
    curves: dict[tuple[str, str], tuple[list[int], list[float]]] = {}
    for line in path.read_text("utf-8").splitlines():
        entry = json.loads(line)
        for metric in metrics:
            if entry.get("stage") in _STAGES and entry.get(metric) is not None:
                steps, values = curves.setdefault((metric, entry["stage"]), ([], []))
                steps.append(entry["step"])
                values.append(entry[metric])
    missing = [metric for metric in metrics if metric not in {name for name, _ in curves}]
    check(not missing, f"metrics must be some that the run logged, {missing} are not in {path}")
    return curves


def draw_curves(output: str | Path, runs: Mapping[str | Path, Sequence[str]]) -> None:
    """Write a PNG with a plot for each metric of each run, training and validation together."""
    plots = [(run, metric) for run, metrics in runs.items() for metric in metrics]
    check(bool(plots), "runs must name at least one metric")
    figure = figure_class()((4.2 * len(plots), 3), 110, layout="constrained")
    for place, (run, metric) in zip(
        figure.subplots(1, len(plots), squeeze=False)[0], plots, strict=True
    ):
        for (_, stage), (steps, values) in read_curves(run, [metric]).items():
            place.plot(steps, values, _STAGES[stage], label=stage, linewidth=1, markersize=4)
        place.set_title(f"{Path(run).name}: {metric}", fontsize=10)
        place.set_xlabel("update")
        place.grid(alpha=0.3)
        place.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(Path(output), buffer.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, metavar="OUT.png")
    parser.add_argument("runs", nargs="+", metavar="RUN:METRIC[,METRIC...]")
    args = parser.parse_args()
    try:
        runs = {}
        for text in args.runs:
            folder, colon, metrics = text.rpartition(":")
            check(bool(colon and metrics), f"must be RUN:METRIC[,METRIC...], got {text!r}")
            runs[folder] = metrics.split(",")
        draw_curves(args.output, runs)
    except InvalidInputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()

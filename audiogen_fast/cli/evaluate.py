"""`audiogen-fast evaluate`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from audiogen_fast.errors import check
from audiogen_fast.evaluation.results import JSON, PAGE, Report, metric_of, title_of
from audiogen_fast.evaluation.run import evaluate as run
from audiogen_fast.evaluation.systems import Sampling
from audiogen_fast.training.data.manifest import conditions

_SHOWN = 10


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, write the report, and print the table; the whole report, for `json`."""
    output = Path(args.output)
    check(
        args.overwrite or not (output / JSON).exists(),
        f"{output / JSON} is there already; pass --overwrite or another --output",
    )
    sampling = Sampling(
        seed=args.seed,
        duration=args.duration,
        batch_size=args.batch_size,
        use_sampling=not args.greedy,
        top_k=args.top_k,
        top_p=args.top_p,
        temperature=args.temperature,
        cfg_coef=args.cfg_coef,
    )
    with _Bars(args.quiet or args.json) as bars:
        report = run(
            args.reference,
            where=conditions(args.where),
            root=args.root,
            generated=_named(args.generated, "--generated"),
            models=_named(args.model, "--model"),
            codecs=_named(args.codec, "--codec"),
            metrics=args.metrics,
            encoders=args.encoder,
            text_encoder=args.text_encoder,
            head_rows=conditions(args.head_where, "--head-where"),
            sampling=sampling,
            limit=args.limit,
            degraded=not args.no_degraded,
            output=output,
            items=args.items,
            seed=args.seed,
            device=args.device,
            progress=bars.step,
        )
    if not (args.json or args.quiet):
        print(_table(report))
        print(f"open {output / PAGE} in a browser")
    if not args.quiet:
        _tell_faults(report, output)
    return {"command": "evaluate", "output": str(output), **report.as_dict()}


def _named(given: list[str], option: str) -> dict[str, str]:
    """Rows by name: `NAME=PLACE`, or a place whose last part is the name."""
    found: dict[str, str] = {}
    for text in given:
        name, equals, place = text.partition("=")
        if not equals or "/" in name:
            name, place = Path(text).name or text, text
        check(name not in found, f"{option} must have a name of its own each, {name!r} comes twice")
        found[name] = place
    return found


class _Bars:
    """A bar for the stage that is at work."""

    def __init__(self, quiet: bool):
        self.quiet, self.stage = quiet, ""
        self.bar: tqdm | None = None

    def __enter__(self) -> "_Bars":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def step(self, stage: str, done: int, total: int) -> None:
        if stage != self.stage:
            self.__exit__()
            self.stage = stage
            self.bar = tqdm(
                desc=stage, total=total or None, leave=False, disable=self.quiet or None
            )
        self.bar.update(done - self.bar.n)


def _table(report: Report) -> str:
    """The figures, a line for each metric and row, with their intervals."""
    lines = []
    width = max(len(row.name) for row in report.rows)
    for key in report.keys:
        if "_q" in key.split(":")[0]:
            continue  # of single codebooks: in the files
        better = {1: "more is better", -1: "less is better", 0: ""}[metric_of(key).better]
        lines.append(
            f"{title_of(key)} ({', '.join(filter(None, (key.partition(':')[2], better)))})"
        )
        for row in report.rows:
            value = row.values.get(key)
            if value is None:
                continue
            text = f"none: {value.reason}"
            if value.value is not None:
                text = f"{value.value:10.4f}"
            if value.value is not None and value.low is not None:
                text += f"  [{value.low:.4f}, {value.high:.4f}]"
            if value.value is not None and value.p is not None:
                text += f"  p {value.p:.3f}"
            lines.append(f"  {row.name:<{width}}  {text}")
    return "\n".join(lines)


def _tell_faults(report: Report, output: Path) -> None:
    for fault in report.faults[:_SHOWN]:
        what = "left out" if fault.left_out else "note"
        name = f"{fault.system}, {fault.clip}" if fault.clip else fault.system
        print(f"{what}: {name}: {fault.kind}: {fault.detail}", file=sys.stderr)
    if len(report.faults) > _SHOWN:
        more = len(report.faults) - _SHOWN
        print(f"and {more} more ({output / JSON} lists all)", file=sys.stderr)

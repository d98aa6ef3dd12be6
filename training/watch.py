"""Watching a run: a line of progress, and the same numbers to the logs."""

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from audiogen_fast.training.parallel import Ranks
from audiogen_fast.training.sinks import Sink


class Watch:
    """Averages what updates report, and tells it every few of them.

    Args:
        total: updates of the whole run.
        every: updates between two lines.
        sinks: only used in the main process.
    """

    def __init__(self, total: int, every: int, ranks: Ranks, sinks: Sequence[Sink] = (), tell=None):
        self.total, self.every, self.ranks, self.sinks = total, every, ranks, sinks
        self.tell = _print if tell is None else tell
        self._start()

    def _start(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts = {"updates": 0, "tokens": 0, "seconds": 0.0, "waited": 0.0}
        self.began = time.perf_counter()

    def update(
        self,
        step: int,
        metrics: Mapping[str, Tensor],
        tokens: int = 0,
        seconds: float = 0.0,
        waited: float = 0.0,
    ) -> dict[str, float] | None:
        """Take one update in; every few updates the averages over processes and updates.

        Args:
            step: number of updates until now.
            metrics: scalars of this process; always the same names.
            tokens, seconds: codes and seconds of audio that were learnt from in this process.
            waited: seconds that it waited for the batch.
        """
        for name, value in metrics.items():
            value = torch.as_tensor(value, dtype=torch.float32).detach()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.counts["updates"] += 1
        self.counts["tokens"] += tokens
        self.counts["seconds"] += seconds
        self.counts["waited"] += waited
        if step % self.every and step != self.total:
            return None
        averages = self._reduce()
        averages["eta"] = (self.total - step) / averages.pop("updates_per_s")
        self.write("train", step, averages)
        self._start()
        return averages

    def _reduce(self) -> dict[str, float]:
        counts = self.counts
        names = sorted(self.sums)
        values = torch.stack([self.sums[name].float().cpu() / counts["updates"] for name in names])
        rest = torch.tensor([counts["tokens"], counts["seconds"], counts["waited"]])
        reduced = self.ranks.sum(torch.cat([values.double(), rest.double()])).tolist()
        elapsed = time.perf_counter() - self.began
        averages = {n: v / self.ranks.world_size for n, v in zip(names, reduced, strict=False)}
        averages["tokens_per_s"] = reduced[-3] / elapsed
        averages["audio_s_per_s"] = reduced[-2] / elapsed
        averages["waiting"] = reduced[-1] / self.ranks.world_size / elapsed
        averages["updates_per_s"] = counts["updates"] / elapsed
        return averages

    def write(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Tell and log numbers, which are the same in every process."""
        if not self.ranks.is_main:
            return
        self.tell(line(stage, step, self.total, metrics))
        for sink in self.sinks:
            sink.write(stage, step, metrics)

    def restart_clock(self) -> None:
        """After a stage, whose time is not an update's."""
        if self.counts["updates"] == 0:
            self.began = time.perf_counter()

    def close(self) -> None:
        for sink in self.sinks if self.ranks.is_main else ():
            sink.close()


def _print(text: str) -> None:
    print(text, flush=True)


def line(stage: str, step: int, total: int, metrics: Mapping[str, float]) -> str:
    """One line of text: the loss first, codebooks together, the time that is left last."""
    left = dict(metrics)
    parts = [f"{stage} {step}/{total}"]
    for name in ("loss", "ce", "ppl"):
        if name in left:
            parts.append(f"{name} {left.pop(name):.4f}")
    codebooks = [left.pop(name) for name in sorted(left) if name.startswith("ce_q")]
    if codebooks:
        parts.append("ce_q " + "/".join(f"{value:.3f}" for value in codebooks))
    left = {name: value for name, value in left.items() if not name.startswith("ppl_q")}
    eta = left.pop("eta", None)
    parts += [f"{name} {_short(value)}" for name, value in left.items()]
    if eta is not None:
        parts.append(f"eta {_duration(eta)}")
    return " | ".join(parts)


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"

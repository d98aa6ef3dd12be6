"""The loop that every solver shares: updates, stages, checkpoints, signals."""

import json
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiogen_fast.errors import AudioGenFastError
from audiogen_fast.files import write_atomically
from audiogen_fast.training.checkpoint import Checkpoints
from audiogen_fast.training.config import TrainConfig
from audiogen_fast.training.ema import ModuleEMA
from audiogen_fast.training.fields import to_dict, to_toml
from audiogen_fast.training.parallel import Ranks
from audiogen_fast.training.parts import Generators, Part, ValuesPart
from audiogen_fast.training.schedules import Schedule
from audiogen_fast.training.sinks import open_sinks
from audiogen_fast.training.watch import Watch
from audiogen_fast.training.watchdog import Watchdog


class TrainingDiverged(AudioGenFastError, RuntimeError):
    """Losses or gradients were not finite, more often than the configuration allows."""


@dataclass
class Update:
    """What one update reports."""

    metrics: dict[str, Tensor]
    """Scalars of this process, always of the same names."""
    made: bool = True
    """Whether the weights changed; False where the gradient was not finite."""
    expected: bool = False
    """With `made` False: part of the search for the scale of a float16 loss, and no failure."""
    tokens: int = 0
    """Codes that were learnt from in this process."""
    seconds: float = 0.0
    """Seconds of audio that were learnt from in this process."""
    batch_ids: list[Any] = field(default_factory=list)
    """What the items were, written down where `made` is False."""


class Solver(ABC):
    """Base of the solvers.

    A subclass defines `build`, `update`, `validate`, and `generate` if it has something to show.
    `build` makes models, optimisers and loaders and fills

    - `self.loader`: of training batches of this process, a `data.Loader` or what has its
      `forever()`, `report()` of what had to be skipped (told at the end of an epoch), and
      `state_dict()` and `load_state_dict()` (JSON) of the position after the batch that was given
      last, the same in every process;
    - `self.common`: what checkpoints hold (see `parts.py`), the same for all processes;
    - `self.averages`: moving averages, by name, which this loop advances and saves;
    - `self.schedules`: advanced here after each update that was made.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks, tell=None):
        self.config, self.ranks = config, ranks
        self.folder = Path(config.folder)
        self.step = 0
        self.common: dict[str, Part] = {}
        self.own: dict[str, Part] = {}
        self.averages: dict[str, ModuleEMA] = {}
        self.schedules: dict[str, Schedule] = {}
        self.loader: Any = None
        self.metrics: dict[str, float] = {}  # of the validation at this very step
        self.non_finite = 0
        self.watchdog: Watchdog | None = None
        self._stop: int | None = None
        self._saved = 0  # the step that a run going on would begin with
        self._tell = tell or (lambda text: print(text, flush=True))
        self.generators = Generators()
        self.generators.seed(config.seed)  # all processes draw the same initial weights
        self.build()
        self.generators.seed(config.seed, ranks.rank)
        self.common |= {f"ema_{name}": average for name, average in self.averages.items()}
        self.common |= {f"schedule_{n}": ValuesPart(s) for n, s in self.schedules.items()}
        self.common |= {"loop": ValuesPart(self), "loader": ValuesPart(self.loader)}
        self.own |= {"generators": ValuesPart(self.generators)}
        self.checkpoints = Checkpoints(
            self.folder / "checkpoints", ranks, config.checkpoint.keep_last, self.tell
        )

    @abstractmethod
    def build(self) -> None:
        """Make models, optimisers and loaders, and register what checkpoints hold."""

    @abstractmethod
    def update(self, batch: Any) -> Update:
        """Learn from one batch. Every process comes to the same `made`."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Metrics on the validation data, averaged over processes; {} without any."""

    def after_epoch(self, epoch: int) -> dict[str, dict[str, float]]:
        """Other stages, such as generation, and their metrics by name; `epoch` counts from 1.

        The epoch's checkpoint is written by then: what is to be in it belongs elsewhere. Stages
        that take long call `progress`.
        """
        return {}

    @classmethod
    def dry_run(cls, config: TrainConfig, world_size: int) -> dict[str, str]:
        """What a run would take, from models on the meta device: name to value, for reading.

        Raises:
            InvalidInputError: the configuration does not fit together.
        """
        raise NotImplementedError

    # What the loop itself saves; its methods have the names ValuesPart wants.

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "non_finite": self.non_finite, "metrics": self.metrics}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.non_finite = state["step"], state["non_finite"]
        self.metrics = state["metrics"]

    def tell(self, text: str) -> None:
        """A line of text, from the main process only."""
        if self.ranks.is_main:
            self._tell(text)

    def progress(self) -> None:
        """Called between the parts of long stages, so that they do not count as hanging."""
        if self.watchdog is not None:
            self.watchdog.progress()

    @property
    def epoch(self) -> int:
        """The epoch that the next update belongs to, from 1 on."""
        return self.step // self.config.optim.updates_per_epoch + 1

    def restore(self) -> bool:
        """Go on from the newest sound checkpoint in the run's folder, if there is one."""
        step = self.checkpoints.latest()
        if step is None:
            return False
        state = self.checkpoints.load(step, self.common, self.own)
        if len(state["own"]) != self.ranks.world_size:
            self.generators.seed(self.config.seed, self.ranks.rank, step)
            self.tell(
                f"the checkpoint is of {len(state['own'])} processes, this run has "
                f"{self.ranks.world_size}: their generators start anew"
            )
        self._saved = self.step
        self.tell(f"going on from {self.checkpoints.path(step)}")
        return True

    def save(self) -> Path:
        """Write a checkpoint of now."""
        self._saved = self.step
        best = self.config.best_metric if self.config.checkpoint.keep_best else None
        return self.checkpoints.save(self.step, self.common, self.own, self.metrics, best)

    def run(self) -> int:
        """Train to the end of the recipe, from the newest checkpoint if there is one.

        At the end of an epoch it validates, saves, and only then comes to `after_epoch`, so that
        whatever ends a long stage there finds everything saved.

        Returns:
            0 at the end; the number of the signal that stopped it, after saving, before. A
            signal leaves out the stages after the save that it comes before.
        Raises:
            TrainingDiverged: see `safety` in the configuration.
        """
        config, optim = self.config, self.config.optim
        self.restore()
        # Only now: a configuration that does not fit must not replace that of a good run.
        if self.ranks.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / "config.toml", to_toml(config).encode())
        with ExitStack() as stack:
            self.watchdog = stack.enter_context(Watchdog(config.safety.timeout, self.ranks.rank))
            stack.enter_context(self._signals())
            sinks = []
            if self.ranks.is_main:
                sinks = open_sinks(config.logging, self.folder, to_dict(config))
            watch = Watch(
                optim.total_updates, config.logging.log_updates, self.ranks, sinks, self._tell
            )
            stack.callback(watch.close)
            batches = self.loader.forever() if self.step < optim.total_updates else None
            while self.step < optim.total_updates:
                began = time.perf_counter()
                batch = self._next(batches)
                if batch is None:
                    return self._stopped(self._stop)
                waited = time.perf_counter() - began
                update = self.update(batch)
                self._finish_update(update)
                self.progress()
                watch.update(self.step, update.metrics, update.tokens, update.seconds, waited)
                ended = self.step % optim.updates_per_epoch == 0
                if ended:
                    self._report()
                    self._validate(watch)
                stop = self._agreed_stop()
                if ended or stop or self.step % config.checkpoint.every == 0:
                    self.save()
                    self.progress()
                if ended and not stop:
                    self._after_epoch(self.step // optim.updates_per_epoch, watch)
                    # At the very end nothing is left that a signal could stop.
                    stop = 0 if self.step == optim.total_updates else self._agreed_stop()
                watch.restart_clock()
                if stop:
                    return self._stopped(stop)
        return 0

    def _next(self, batches: Iterator[Any]) -> Any:
        """The next batch; None where a signal that asks for an end has ended its workers too."""
        try:
            return next(batches)
        except Exception as error:
            # Of several processes the others would wait for this one in their next update.
            if self._stop is None or self.ranks.world_size > 1:
                raise
            self.tell(f"no further batch: {error}")
            return None

    def _stopped(self, number: int) -> int:
        if self._saved != self.step:
            self.save()
        self.tell(f"stopped by signal {number} after update {self.step}, saved")
        return number

    def _finish_update(self, update: Update) -> None:
        self.step += 1
        self.metrics = {}  # those of other weights
        if update.made:
            self.non_finite = 0
            for schedule in self.schedules.values():
                schedule.advance()
        elif not update.expected:
            self._skipped(update)
        if self.step % self.config.optim.ema.updates == 0:
            for average in self.averages.values():
                average.step()

    def _skipped(self, update: Update) -> None:
        """Write down what the batch was, and stop where the configuration says so."""
        self.non_finite += 1
        folder = self.folder / "non_finite"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"step-{self.step:08d}-rank-{self.ranks.rank}.json"
        record = {
            "step": self.step,
            "rank": self.ranks.rank,
            "metrics": {k: str(float(v)) for k, v in update.metrics.items()},
            "batch": update.batch_ids,
        }
        write_atomically(path, json.dumps(record, indent=1, default=str).encode())
        safety = self.config.safety
        self.tell(f"update {self.step} was skipped, it is not finite; its batch is in {path}")
        if safety.non_finite == "stop" or self.non_finite >= safety.max_non_finite:
            raise TrainingDiverged(
                f"{self.non_finite} updates in a row were not finite (safety.non_finite is "
                f"{safety.non_finite}, safety.max_non_finite {safety.max_non_finite}); the last "
                f"batch is in {path}"
            )

    def _report(self) -> None:
        """Tell which recordings could not be learnt from since the start, of each process."""
        reports = self.ranks.gather_objects(self.loader.report())
        for rank, report in enumerate(reports):
            if report:
                self.tell(f"data of process {rank}: {report}" if len(reports) > 1 else report)

    def _validate(self, watch: Watch) -> None:
        with self._averaged():
            self.metrics = self.validate()
        if self.metrics:
            watch.write("valid", self.step, self.metrics)
        self.progress()

    def _after_epoch(self, epoch: int, watch: Watch) -> None:
        # The checkpoint is written already: what is drawn here must not change later updates, or
        # a run that goes on from it would be another.
        drawn = self.generators.state_dict()
        with self._averaged():
            found = self.after_epoch(epoch)
        self.generators.load_state_dict(drawn)
        for stage, metrics in found.items():
            watch.write(stage, self.step, metrics)
        self.progress()

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """With the averaged weights, and without gradients."""
        with ExitStack() as stack:
            for average in self.averages.values():
                stack.enter_context(average.swapped())
            stack.enter_context(torch.no_grad())
            yield

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT ask for an end after the present update; a second one ends at once."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals do not arrive here
            return

        def ask(number: int, _: Any) -> None:
            self._stop = number
            signal.signal(number, before[number])

        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        for number in before:
            signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _agreed_stop(self) -> int:
        """The number of a signal that any process got, or 0."""
        return int(self.ranks.max(torch.tensor([self._stop or 0])).item())

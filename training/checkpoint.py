"""Checkpoints of a run: complete or not there, checked, and never all deleted.

A checkpoint is a folder `step-00000100` with what torch.distributed.checkpoint writes (tensors,
sharded or not, that any number of processes can read), `state.json` (everything else) and
`manifest.json` (size and SHA-256 of every other file). It is written as `step-00000100.tmp`,
synchronised to the disk and renamed; whatever lacks its last name is not a checkpoint.
"""

import hashlib
import json
import math
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from audiogen_fast.errors import CheckpointError
from audiogen_fast.training.dcp_files import Reader, Writer
from audiogen_fast.training.parallel import Ranks
from audiogen_fast.training.parts import Part

STATE, MANIFEST = "state.json", "manifest.json"
_NAME = re.compile(r"step-(\d{8})")
FORMAT_VERSION = 1


class Checkpoints:
    """The checkpoints in one folder.

    Args:
        keep_last: how many are kept when another one is complete.
        tell: takes a line of text about what happened.
    """

    def __init__(self, folder: Path, ranks: Ranks, keep_last: int = 3, tell=print):
        self.folder, self.ranks, self.keep_last, self.tell = folder, ranks, keep_last, tell
        self._unreadable: set[int] = set()  # those that were told about

    def steps(self) -> list[int]:
        """Numbers of the complete ones, ascending."""
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        matches = (_NAME.fullmatch(path.name) for path in found)
        return sorted(int(match[1]) for match in matches if match)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def save(
        self,
        step: int,
        common: Mapping[str, Part],
        own: Mapping[str, Part],
        metrics: Mapping[str, float],
        keep_best: str | None = None,
    ) -> Path:
        """Write one; all processes call this together.

        Args:
            common: parts whose values are the same in every process.
            own: parts without tensors that each process has its own values of.
            metrics: of a validation of these very weights, else empty; the checkpoint with the
                lowest `keep_best` is kept too.
        Returns:
            Its folder.
        """
        final = self.path(step)
        temporary = final.with_name(final.name + ".tmp")
        if self.ranks.is_main:
            self._clean()
            temporary.mkdir(parents=True)
        self.ranks.barrier()
        with _quiet():
            dcp.save(
                tensors_of(common),
                storage_writer=Writer(temporary),
                no_dist=self.ranks.world_size == 1,
            )
        values = self.ranks.gather_objects({name: part.values() for name, part in own.items()})
        if self.ranks.is_main:
            state = {
                "version": FORMAT_VERSION,
                "step": step,
                "metrics": dict(metrics),
                "common": {name: part.values() for name, part in common.items()},
                "own": values,
            }
            _write(temporary / STATE, json.dumps(state).encode())
            manifest = {path.name: _describe(path) for path in sorted(temporary.iterdir())}
            _write(temporary / MANIFEST, json.dumps(manifest, indent=1).encode())
            _synchronise(temporary)
            if final.exists():  # the run went back to before it
                shutil.rmtree(final)
            os.rename(temporary, final)
            _synchronise(self.folder)
            self._retire(step, keep_best)
        self.ranks.barrier()
        return final

    def latest(self) -> int | None:
        """The newest step whose files are what was written, or None without any.

        Damaged ones are told about and set aside under another name.

        Raises:
            CheckpointError: there are checkpoints and every one is damaged.
        """
        return self.ranks.broadcast_object(self._latest() if self.ranks.is_main else None)

    def _latest(self) -> int | None:
        steps = self.steps()
        step, damaged = self._newest_sound(steps)
        for number, problem in damaged.items():
            aside = self.path(number).with_suffix(".damaged")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(self.path(number), aside)
            self.tell(f"checkpoint {self.path(number)} is damaged ({problem}); it is now {aside}")
        if step is None and steps:
            raise CheckpointError(f"{self.folder}: every one of its checkpoints is damaged")
        return step

    def choose(self, step: int | str | None, best_metric: str) -> int:
        """The number of a checkpoint that is sound, for reading: nothing is moved.

        Args:
            step: a number; `best` for the lowest `best_metric` of the validation; None for the
                newest sound one, where newer ones that are damaged are told about.
        Raises:
            CheckpointError: there is none, or the one that was asked for is damaged.
        """
        steps = self.steps()
        if step is None and steps:
            step, damaged = self._newest_sound(steps)
            for number, problem in damaged.items():
                taken = "none is left" if step is None else f"{self.path(step).name} is taken"
                self.tell(f"checkpoint {self.path(number)} is damaged ({problem}); {taken}")
            if step is None:
                raise CheckpointError(f"{self.folder}: every one of its checkpoints is damaged")
            return step
        if step == "best":
            step = self._best(steps, best_metric)
        if step not in steps:
            raise CheckpointError(
                f"{self.folder}: has checkpoints of the updates {steps}, asked for {step}"
            )
        problem = find_damage(self.path(step))
        if problem is not None:
            raise CheckpointError(f"{self.path(step)} is damaged ({problem}); there are {steps}")
        return step

    def _newest_sound(self, steps: Sequence[int]) -> tuple[int | None, dict[int, str]]:
        """The newest step without damage, and what is wrong with those after it."""
        damaged = {}
        for step in reversed(steps):
            problem = find_damage(self.path(step))
            if problem is None:
                return step, damaged
            damaged[step] = problem
        return None, damaged

    def _best(self, steps: Sequence[int], metric: str) -> int | None:
        """The step with the lowest finite value; what cannot be read is told about, and no step."""
        measured = {step: self._metrics(step).get(metric, math.nan) for step in steps}
        measured = {step: value for step, value in measured.items() if math.isfinite(value)}
        return min(measured, key=measured.__getitem__) if measured else None

    def _metrics(self, step: int) -> dict[str, float]:
        try:
            return read_state(self.path(step))["metrics"]
        except CheckpointError as error:
            # One damaged file must not keep the run from being saved any more.
            if step not in self._unreadable:
                self._unreadable.add(step)
                self.tell(f"{error}; it cannot be the best one")
            return {}

    def load(
        self, step: int, common: Mapping[str, Part], own: Mapping[str, Part]
    ) -> dict[str, Any]:
        """Restore the parts from the checkpoint of that step; all processes call this together.

        Parts in `own` stay as they are in processes that the checkpoint has no values for.

        Returns:
            The content of its `state.json`.
        """
        path = self.path(step)
        state = read_state(path)
        for name, part in common.items():
            if name not in state["common"]:
                raise CheckpointError(f"{path}: has no {name!r}; was the configuration another?")
            part.set_values(state["common"][name])
        read_tensors(path, tensors_of(common), with_one=self.ranks.world_size == 1)
        if len(state["own"]) == self.ranks.world_size:
            for name, part in own.items():
                part.set_values(state["own"][self.ranks.rank][name])
        return state

    def _clean(self) -> None:
        """Remove what an interrupted save has left."""
        if self.folder.is_dir():
            for path in self.folder.glob("step-*.tmp"):
                shutil.rmtree(path)

    def _retire(self, newest: int, keep_best: str | None) -> None:
        steps = self.steps()
        # Never the one that was just written, also where later ones of an older run lie about.
        kept = {newest, *steps[-self.keep_last :]}
        if keep_best is not None:
            best = self._best(steps, keep_best)
            if best is not None:
                kept.add(best)
        retired = [step for step in steps if step not in kept]
        # Before anything goes, what stays must be readable from the disk.
        if retired and find_damage(self.path(newest)) is None:
            for step in retired:
                shutil.rmtree(self.path(step))


def tensors_of(parts: Mapping[str, Part]) -> dict[str, Tensor]:
    """All tensors of the parts, under `part.name`."""
    return {
        f"{name}.{key}": tensor
        for name, part in parts.items()
        for key, tensor in part.tensors().items()
    }


def read_tensors(path: Path, tensors: dict[str, Tensor], with_one: bool = True) -> None:
    """Load tensors in place, from a checkpoint that any number of processes wrote.

    Raises:
        CheckpointError: some are not in it, or have another shape there.
    """
    try:
        with _quiet():
            dcp.load(tensors, storage_reader=Reader(path), no_dist=with_one)
    # Of several libraries; what torch wraps them in is no Exception.
    except (Exception, CheckpointException) as error:
        cause = " ".join(str(error).split())[-400:]
        raise CheckpointError(
            f"{path}: does not fit the model of this configuration: {cause}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warning that one process is one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.distributed is disabled.*")
        yield


def read_state(path: Path) -> dict[str, Any]:
    """The content of a checkpoint's `state.json`.

    Raises:
        CheckpointError: it is missing or damaged, or of another version of the format.
    """
    try:
        state = json.loads((path / STATE).read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: no readable {STATE}: {error}") from error
    if not isinstance(state, dict) or not isinstance(state.get("metrics"), dict):
        raise CheckpointError(f"{path}: {STATE} is not that of a checkpoint")
    if state.get("version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: version {state.get('version')} of the format; this package reads "
            f"{FORMAT_VERSION}"
        )
    return state


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        return f"no readable {MANIFEST}: {error}"
    for name, expected in manifest.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected["bytes"]:
            return f"{name} has {file.stat().st_size} bytes instead of {expected['bytes']}"
        if _describe(file)["sha256"] != expected["sha256"]:
            return f"the SHA-256 of {name} is another"
    return None


def _describe(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _synchronise(folder: Path) -> None:
    """Have a folder and its files on the disk before anything is renamed or deleted."""
    for path in (*folder.iterdir(), folder):
        if path.is_file() or path == folder:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

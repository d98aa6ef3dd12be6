"""Processes that measure on request, one for each implementation.

Apart, each has the memory and the thread pool it would have alone, in the environment it needs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT

PEER_PYTHON = ROOT / ".peers" / "bin" / "python"
PEER_SERVER = ROOT / "benchmarks" / "peers" / "server.py"


class Worker:
    """A process that answers one JSON line per request.

    Args:
        command: starts it; the arguments follow as one JSON object.
        arguments: what it is made with.
    """

    def __init__(self, command: list[str], **arguments: Any):
        self._process = subprocess.Popen(
            [*command, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self._hello: dict[str, Any] | None = None

    @property
    def hello(self) -> dict[str, Any]:
        """What it says of itself when it is ready; waits for that."""
        if self._hello is None:
            self._hello = self._answer()
        return self._hello

    def ask(self, call: str, **arguments: Any) -> dict[str, Any]:
        """The answer of the method `call` of what the process serves."""
        assert self.hello is not None
        self._process.stdin.write(json.dumps({"call": call, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args} ended with status {self._process.wait()}")
        return json.loads(line)


def peer_worker(python: Path, task: str, **arguments: Any) -> Worker:
    """A process of the original implementation, in its own environment."""
    if not python.exists():
        raise SystemExit(f"{python} does not exist; see benchmarks/README.md, Peers")
    return Worker([str(python), "-W", "ignore", str(PEER_SERVER), task], **arguments)


def reserve_output():
    """The standard output, for answers alone: what libraries print goes to standard error."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return channel


def serve(target: Any, hello: dict[str, Any], channel) -> None:
    """Say hello, then answer each request with what that method of `target` returns."""
    print(json.dumps(hello), file=channel)
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(target, request.pop("call"))(**request)
        print(json.dumps(answer), file=channel)

"""The end of a process that hangs: after a time without progress it tells where it was."""

import faulthandler
import signal
import sys
from typing import Any


class Watchdog:
    """Ends the process, with the stacks of its threads, unless `progress` is called in time.

    The timer is a thread of C, so it also fires while Python waits inside a collective; as every
    process of a run has one and all of them wait, each tells its own stacks. SIGUSR1 prints
    the stacks and goes on.

    Args:
        timeout: seconds.
        rank: named in front of the stacks.
        file: with a file descriptor; standard error by default.
    """

    def __init__(self, timeout: float, rank: int = 0, file: Any = None):
        self.timeout, self.rank = timeout, rank
        self.file = sys.stderr if file is None else file

    def __enter__(self) -> "Watchdog":
        if hasattr(signal, "SIGUSR1"):
            faulthandler.register(signal.SIGUSR1, self.file, all_threads=True)
        self.progress()
        return self

    def progress(self) -> None:
        """Start the time again."""
        faulthandler.dump_traceback_later(self.timeout, exit=True, file=self.file)

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        if hasattr(signal, "SIGUSR1"):
            faulthandler.unregister(signal.SIGUSR1)

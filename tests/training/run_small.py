"""A small run in a process of its own, for tests that kill it.

    python run_small.py FOLDER [POINT STEP] [-- section.key=value ...]

With POINT it kills itself by SIGKILL while it saves the checkpoint of update STEP: before any file
of it is complete (`data`), before its manifest (`manifest`), before it is renamed (`rename`), and
after that but before older ones are deleted (`retire`).
"""

import os
import signal
import sys

from audiogen_fast.training import checkpoint, train


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str, step: int) -> None:
    save = checkpoint.Checkpoints.save

    def armed(self, now, *args, **kwargs):
        if now == step:
            if point == "data":
                checkpoint.Writer.finish = die
            elif point == "manifest":
                checkpoint._describe = die
            elif point == "rename":
                checkpoint.os.rename = die
            else:
                self._retire = die
        return save(self, now, *args, **kwargs)

    checkpoint.Checkpoints.save = armed


if __name__ == "__main__":
    arguments = sys.argv[1:]
    split = arguments.index("--") if "--" in arguments else len(arguments)
    folder, *fault = arguments[:split]
    if fault:
        arm(fault[0], int(fault[1]))
    sys.exit(train.main(["debug", f"folder={folder}", *arguments[split + 1 :]]))

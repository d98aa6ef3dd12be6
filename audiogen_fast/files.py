"""Files that appear whole or not at all."""

import os
import secrets
from pathlib import Path


def write_atomically(path: Path, content: bytes, sync: bool = False) -> None:
    """Write `content` beside `path` and rename it; what was there before stays on a failure.

    Args:
        sync: wait until the disk has it, so that a power failure does not lose it either.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if sync:
            _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

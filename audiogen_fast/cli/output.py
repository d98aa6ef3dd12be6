"""The folder that sounds are written to."""

import contextlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from audiogen_fast.errors import InvalidInputError


@contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """The folder is there and can be written to; what had to be made goes again if left empty.

    Raises:
        InvalidInputError: it cannot.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Nothing else is sure to tell: permissions do not for root or a read-only disk.
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise InvalidInputError(
                f"--output must be a folder that can be written to, got {folder}: {error}"
            ) from error
        yield
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()

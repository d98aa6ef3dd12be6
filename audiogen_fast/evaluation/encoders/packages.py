"""Files of installed packages that are read without importing the package."""

import hashlib
import importlib.util
from pathlib import Path

from audiogen_fast.errors import MissingDependencyError


def package_file(package: str, path: str, needed_for: str, install: str) -> Path:
    """A file inside an installed package.

    Args:
        package: top-level import name.
        path: relative to the package's folder.
        needed_for, install: for the message.
    Raises:
        MissingDependencyError: the package, or the file in it, is not there.
    """
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        if (found := Path(folder, path)).exists():
            return found
    raise MissingDependencyError(f"{needed_for} needs {package}/{path}: {install}")


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

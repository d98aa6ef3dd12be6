"""Exceptions of the package. Every message names the argument or file, the limit and the value."""


class AudioGenFastError(Exception):
    """Base class of every error raised on purpose by this package."""


class InvalidInputError(AudioGenFastError, ValueError, AssertionError):
    """A user's mistake: a bad argument.

    It is both a `ValueError` and an `AssertionError`, because callers written for the
    original implementation, which validates with `assert`, catch the latter.
    """


class CheckpointError(AudioGenFastError, RuntimeError):
    """A checkpoint is missing, damaged, hostile, or does not fit its configuration."""


class AudioFileError(AudioGenFastError, RuntimeError):
    """An audio file cannot be read (damaged, unsupported) or written."""


class DataError(AudioGenFastError, RuntimeError):
    """A data set or a cache of one is missing, damaged, or has nothing that can be used."""


class MissingDependencyError(AudioGenFastError, ImportError):
    """An optional package is needed for what was asked; the message says what to install."""


class DeviceMemoryError(AudioGenFastError, MemoryError):
    """A device has too little memory for what was asked; the message says what to lower.

    The model stays usable.
    """


class GenerationCancelled(AudioGenFastError):
    """Raised by a progress callback (or because it returned False) to stop a generation.

    The model stays usable.
    """


def check(condition: bool, message: str) -> None:
    """Raise `InvalidInputError(message)` unless `condition` holds."""
    if not condition:
        raise InvalidInputError(message)

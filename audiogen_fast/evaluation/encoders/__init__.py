"""Encoders by name. Their packages are looked for only when one is asked for."""

from importlib import import_module

from audiogen_fast.errors import InvalidInputError

_HOME = {
    "aisfx": ("aisfx", "AiSFX"),
    "clap": ("clap", "Clap"),
    "contrastive": ("contrastive", "load_contrastive"),
    "minilm": ("minilm", "MiniLM"),
    "passt": ("passt", "PaSST"),
}
ENCODERS = tuple(_HOME)
"""Names that `load_encoder` knows."""


def load_encoder(spec: str, device: str = "cpu"):
    """An encoder: `AudioEncoder`, `TextEncoder`, or both in one space (`clap`, `contrastive`).

    Args:
        spec: a name, and after a colon where its weights are, for those that can be told:
            `clap:FOLDER` or `clap:HUB_ID`, `contrastive:FILE`, `minilm:FOLDER`,
            `passt:WEIGHTS_FILE`, `aisfx:CHECKPOINT_FILE`.
        device: to compute on.
    Raises:
        InvalidInputError: no such name.
        MissingDependencyError: a package is missing; the message says what to install.
        CheckpointError: the weights are missing or damaged.
    """
    name, _, place = spec.partition(":")
    if name not in _HOME:
        known = ", ".join(ENCODERS)
        raise InvalidInputError(f"encoder must be one of {known}, got {name!r}")
    module, attribute = _HOME[name]
    loader = getattr(import_module(f"{__name__}.{module}"), attribute)
    return loader(place, device=device) if place else loader(device=device)

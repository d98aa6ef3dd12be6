"""Configurations stored in checkpoints: YAML text to attribute-style dictionaries."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from audiogen_fast.errors import CheckpointError

_REFERENCE = re.compile(r"\$\{([^${}:]+)\}")
# A configuration is a few kilobytes; anything near this is not one.
_MAX_YAML = 1 << 20


class Config(dict):
    """A dictionary whose keys are attributes too: `cfg.dataset.segment_duration`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the configuration has no key {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __deepcopy__(self, memo: dict) -> "Config":
        return _wrap(_plain(self))


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as OmegaConf writes it: `1e-05` is a number although it has no dot."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.\d[\d_]*"
        r"(?:[eE][-+]?\d+)?|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def parse_config(text: str | Mapping[str, Any]) -> Config:
    """The configuration in YAML `text` (or given as a dictionary).

    References to other keys, `${a.b}` or relative `${.b}`, are replaced by their values; those
    that cannot be resolved here, such as environment look-ups, stay as text.

    Raises:
        CheckpointError: not YAML, not a dictionary at the top, or circular references.
    """
    if isinstance(text, str):
        if len(text) > _MAX_YAML:
            raise CheckpointError(f"a configuration of {len(text)} characters is not believable")
        try:
            text = yaml.load(text, Loader=_Loader)
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            raise CheckpointError(f"the configuration is not valid YAML: {error}") from error
    if not isinstance(text, Mapping):
        raise CheckpointError(f"the configuration must be a dictionary, got {type(text).__name__}")
    plain = _plain(text)
    return _wrap(_resolve(plain, plain, (), 0))


def to_yaml(config: Mapping[str, Any]) -> str:
    """YAML text of a configuration."""
    return yaml.safe_dump(_plain(config), sort_keys=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _wrap(value: Any) -> Any:
    if isinstance(value, dict):
        return Config({key: _wrap(item) for key, item in value.items()})
    return [_wrap(item) for item in value] if isinstance(value, list) else value


def _resolve(value: Any, root: dict, path: tuple, depth: int) -> Any:
    if depth > 100:
        raise CheckpointError(f"the configuration refers to itself at {'.'.join(map(str, path))}")
    if isinstance(value, dict):
        return {k: _resolve(v, root, (*path, k), depth + 1) for k, v in value.items()}
    if isinstance(value, list):
        return [_resolve(v, root, (*path, i), depth + 1) for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value
    whole = _REFERENCE.fullmatch(value)
    if whole:
        found, target = _look_up(whole[1], root, path)
        return _resolve(found, root, target, depth + 1) if target is not None else value

    def replacement(match: re.Match) -> str:
        found, target = _look_up(match[1], root, path)
        if target is None:
            return match[0]
        return str(_resolve(found, root, target, depth + 1))

    return _REFERENCE.sub(replacement, value)


def _look_up(reference: str, root: dict, path: tuple) -> tuple[Any, tuple | None]:
    """The value and path a reference stands for; the path is None if there is none."""
    names = reference.lstrip(".")
    dots = len(reference) - len(names)
    target = path[:-dots] if dots else ()
    for name in names.split("."):
        target = (*target, int(name) if name.isdigit() else name)
    value: Any = root
    for name in target:
        try:
            value = value[name]
        except (KeyError, IndexError, TypeError):
            return None, None
    return value, target

"""Configurations stored in checkpoints: YAML text to attribute-style dictionaries."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from audiogen_fast.errors import CheckpointError

RELEASED_STRUCTURE: dict[str, Any] = {
    "norm_first": True,
    "causal": True,
    "cross_attention": True,
    "memory_efficient": True,
    "activation": "gelu",
    "dropout": 0.0,
    "bias_attn": False,
    "bias_ff": False,
    "bias_proj": False,
}
"""Arguments of `LMModel`, here and in the original, that every size of the released model has."""

_REFERENCE = re.compile(r"\$\{([^${}:]+)\}")
# A configuration is some ten kilobytes and a few levels; anything near these is not one.
_MAX_YAML = 1 << 18
_MAX_SIZE = 1 << 20
_MAX_DEPTH = 100


class Config(dict):
    """A dictionary whose keys are attributes too: `cfg.dataset.segment_duration`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the configuration has no key {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


class PickledNode:
    """Stands in for an object of OmegaConf in a pickle: keeps its state, runs nothing of it."""

    state: Any = None

    def __init__(self, *args: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    @property
    def content(self) -> Any:
        """What it holds: a dictionary, a list or a single value."""
        state = self.state if isinstance(self.state, dict) else {}
        return state["_val"] if "_val" in state else state.get("_content")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as OmegaConf writes it: `1e-05` is a number although it has no dot."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Leaves merge keys alone, which makes them an error: nested, they grow exponentially."""


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(
            r"^[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.\d[\d_]*"
            r"(?:[eE][-+]?\d+)?|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        list("-+0123456789."),
    )


def parse_config(source: Any) -> Config:
    """The configuration in YAML text, a dictionary, or a pickled object of OmegaConf.

    References to other keys, `${a.b}` or relative `${.b}`, are replaced by their values; those
    that cannot be resolved here, such as environment look-ups, stay as text.

    Raises:
        CheckpointError: not YAML, not a dictionary at the top, circular or without end.
    """
    if isinstance(source, str):
        if len(source) > _MAX_YAML:
            raise CheckpointError(
                f"its configuration has {len(source)} characters, the limit is {_MAX_YAML}"
            )
        try:
            source = yaml.load(source, Loader=_Loader)
        except Exception as error:  # the loader trips in many ways over odd tags and values
            raise CheckpointError(f"its configuration is not valid YAML: {error}") from error
    if isinstance(source, PickledNode):
        source = source.content
    if not isinstance(source, Mapping):
        raise CheckpointError(
            f"its configuration must be a dictionary, got {type(source).__name__}"
        )
    return _Reader(source).read(source, (), 0)


def to_yaml(config: Mapping[str, Any]) -> str:
    """YAML text of a configuration."""
    return yaml.dump(_plain(config), Dumper=_Dumper, sort_keys=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


class _Reader:
    """Copies a configuration and follows its references, within limits of size and depth.

    Aliases and references can make a short text stand for more than any memory holds.
    """

    def __init__(self, root: Mapping[str, Any]):
        self.root, self.left = root, _MAX_SIZE

    def read(self, value: Any, path: tuple, depth: int) -> Any:
        """A copy of `value`, which is found at `path`."""
        self.left -= 1 + (len(value) if isinstance(value, str) else 0)
        if depth > _MAX_DEPTH or self.left < 0:
            where = ".".join(map(str, path[:10]))
            raise CheckpointError(f"its configuration refers to itself or has no end, at {where}")
        if isinstance(value, PickledNode):
            return self.read(value.content, path, depth + 1)
        if isinstance(value, Mapping):
            return Config({k: self.read(v, (*path, k), depth + 1) for k, v in value.items()})
        if isinstance(value, list | tuple):
            return [self.read(v, (*path, i), depth + 1) for i, v in enumerate(value)]
        return self._text(value, path, depth) if isinstance(value, str) else value

    def _text(self, text: str, path: tuple, depth: int) -> Any:
        whole = _REFERENCE.fullmatch(text)
        if whole:
            found = self._look_up(whole[1], path)
            return text if found is None else self.read(*found, depth + 1)

        def replacement(match: re.Match) -> str:
            found = self._look_up(match[1], path)
            value = None if found is None else self.read(*found, depth + 1)
            return match[0] if found is None or isinstance(value, dict | list) else str(value)

        return _REFERENCE.sub(replacement, text)

    def _look_up(self, reference: str, path: tuple) -> tuple[Any, tuple] | None:
        """The value a reference stands for and where it is, or None."""
        names = reference.lstrip(".")
        dots = len(reference) - len(names)
        target = path[: max(0, len(path) - dots)] if dots else ()
        target += tuple(name for name in re.split(r"[.\[\]]", names) if name)
        value: Any = self.root
        for name in target:
            if isinstance(value, PickledNode):
                value = value.content
            try:
                value = value[int(name) if isinstance(value, list | tuple) else name]
            except (KeyError, IndexError, TypeError, ValueError):
                return None
        return value, target

"""Typed dataclasses from nested dictionaries, and back to TOML.

Every problem names the key by its whole path. An unknown key is refused, with the nearest name.
"""

import ast
import difflib
import functools
import inspect
import json
import textwrap
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar

from audiogen_fast.errors import InvalidInputError, check

T = TypeVar("T")


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """An instance of the dataclass `cls`, with its defaults for what `values` does not name.

    Raises:
        InvalidInputError: an unknown or missing key, or a value of another type.
    """
    hints = typing.get_type_hints(cls)
    known = {field.name: field for field in fields(cls)}
    for name in values:
        check(name in known, unknown_key(name, known, where))
    for name, field in known.items():
        required = field.default is MISSING and field.default_factory is MISSING
        check(not required or name in values, f"the key {_join(where, name)} is missing")
    return cls(**{k: _convert(hints[k], v, _join(where, k)) for k, v in values.items()})


def unknown_key(name: str, known: typing.Iterable[str], where: str = "") -> str:
    """What to say about a key that is none of `known`."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    hint = f"did you mean {_join(where, nearest[0])}?" if nearest else f"known: {sorted(known)}"
    return f"unknown key {_join(where, name)}; {hint}"


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else str(name)


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return None if value == "none" else value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, where)
    if origin is Literal:
        check(value in arguments, f"{where} must be one of {list(arguments)}, got {value!r}")
        return value
    if is_dataclass(kind):
        check(isinstance(value, Mapping), f"{where} must be a section, got {value!r}")
        return from_dict(kind, value, where)
    if origin is list:
        check(isinstance(value, list | tuple), f"{where} must be a list, got {value!r}")
        return [_convert(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value)]
    if origin is dict:
        check(isinstance(value, Mapping), f"{where} must be a section, got {value!r}")
        return {k: _convert(arguments[1], v, _join(where, k)) for k, v in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # A bool is an int to Python, and never what was meant by one here.
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    check(fits, f"{where} must be {kind.__name__}, got {value!r}")
    return value


def _convert_union(arguments: tuple, value: Any, where: str) -> Any:
    kinds = [kind for kind in arguments if kind is not type(None)]
    if type(None) in arguments and (value is None or value == "none"):
        return None  # TOML has no null
    for kind in kinds[:-1]:
        try:
            return _convert(kind, value, where)
        except InvalidInputError:
            continue
    return _convert(kinds[-1], value, where)


def to_dict(config: Any) -> dict[str, Any]:
    """Plain dictionaries of a dataclass, all fields included."""
    if is_dataclass(config):
        return {field.name: to_dict(getattr(config, field.name)) for field in fields(config)}
    if isinstance(config, Mapping):
        return {key: to_dict(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_dict(value) for value in config]
    return config


@functools.cache
def descriptions(cls: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, bases included, on one line."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        for node, after in zip(body, body[1:], strict=False):
            documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if isinstance(node, ast.AnnAssign) and documented:
                found[node.target.id] = " ".join(str(after.value.value).split())
    return found


def to_toml(config: Any, comments: bool = True) -> str:
    """TOML of a dataclass or of nested dictionaries; None becomes "none".

    Args:
        comments: write the description of each field above it.
    """
    return "\n".join(_section(config, "", comments)).strip() + "\n"


def _section(section: Any, where: str, comments: bool) -> list[str]:
    documented = is_dataclass(section)
    items = (
        {field.name: getattr(section, field.name) for field in fields(section)}
        if documented
        else dict(section)
    )
    about = descriptions(type(section)) if documented and comments else {}
    lines, tables = [], []
    for name, value in items.items():
        if is_dataclass(value) or isinstance(value, Mapping):
            tables.append((name, value))
            continue
        lines += textwrap.wrap(about.get(name, ""), 96, initial_indent="# ", subsequent_indent="# ")
        lines.append(f"{_key(name)} = {_literal(value)}")
    for name, value in tables:
        path = f"{where}.{_key(name)}" if where else _key(name)
        lines += ["", f"[{path}]", *_section(value, path, comments)]
    return lines


def _key(name: str) -> str:
    return name if name.replace("_", "a").replace("-", "a").isalnum() else json.dumps(name)


def _literal(value: Any) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_literal(v) for v in value) + "]"
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_key(k)} = {_literal(v)}" for k, v in value.items())
        return "{" + inner + "}"
    # JSON's numbers, booleans and strings are TOML's, except for these two.
    return str(value) if value in (float("inf"), float("-inf")) else json.dumps(value)

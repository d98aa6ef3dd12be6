"""Recipes: TOML files, or configurations in checkpoints, with `section.key=value` changes."""

import importlib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from audiogen_fast.errors import InvalidInputError, check
from audiogen_fast.training.config import TrainConfig
from audiogen_fast.training.fields import from_dict, unknown_key

FOLDER = Path(__file__).with_name("recipes")
# solver -> where its configuration and its class are; imported when they are needed.
SOLVERS = {
    "lm": (
        "audiogen_fast.training.config_lm:LMConfig",
        "audiogen_fast.training.solver_lm:LMSolver",
    ),
    "codec": (
        "audiogen_fast.training.codec.config:CodecConfig",
        "audiogen_fast.training.codec.solver_codec:CodecSolver",
    ),
}


def recipe_names() -> list[str]:
    """Names of the recipes in the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_recipe(recipe: str | Path, changes: Sequence[str] = ()) -> TrainConfig:
    """The configuration of a recipe.

    Args:
        recipe: name of a recipe of the package, path of a TOML file, or a checkpoint whose
            `xp.cfg` becomes the recipe. A TOML file may name another recipe as its `base`, which
            it changes.
        changes: `section.key=value`, with the value in TOML's notation; quotes around a text may
            be left out.
    Raises:
        InvalidInputError: no such recipe, an unknown key or a value that does not fit.
    """
    values = read_values(recipe)
    for change in changes:
        _apply(values, change)
    solver = values.get("solver")
    check(solver is not None, "the key solver is missing; it is lm or codec")
    config = from_dict(solver_part(solver, 0), values)
    name = Path(recipe).stem
    config.folder = config.folder.replace("{recipe}", name)
    config.validate()
    return config


def solver_part(solver: str, index: int) -> type:
    """The configuration (0) or the solver class (1) of that name."""
    check(solver in SOLVERS, f"solver must be one of {sorted(SOLVERS)}, got {solver!r}")
    module, name = SOLVERS[solver][index].split(":")
    return getattr(importlib.import_module(module), name)


def read_values(recipe: str | Path) -> dict[str, Any]:
    """The nested values of a recipe, with those of its base under them."""
    path = FOLDER / f"{recipe}.toml"
    if not path.is_file():
        path = Path(recipe)
        known = path.exists() or path.suffix == ".toml"
        check(known, unknown_key(str(recipe), recipe_names(), "").replace("key", "recipe", 1))
    if path.suffix != ".toml":
        from audiogen_fast.training.xp_recipe import values_of_checkpoint

        return values_of_checkpoint(path)
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise InvalidInputError(f"cannot read the recipe {path}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise InvalidInputError(f"{path} is not valid TOML: {error}") from error
    base = values.pop("base", None)
    if base is None:
        return values
    beside = path.with_name(f"{base}.toml")
    return merge(read_values(beside if beside.is_file() else base), values)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` over it, section by section."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def _apply(values: dict[str, Any], change: str) -> None:
    path, equals, text = change.partition("=")
    check(bool(equals) and bool(path.strip()), f"changes are section.key=value, got {change!r}")
    section = values
    *sections, key = path.strip().split(".")
    for name in sections:
        if section.get(name) == "none":  # a section that may be left out, and was
            section[name] = {}
        section = section.setdefault(name, {})
        check(isinstance(section, dict), f"{name} in {path} is not a section")
    section[key] = _value(text.strip())


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        lowered = text.lower()
        if lowered in ("true", "false"):
            return lowered == "true"
        # As in YAML: a bare word is text, null is none.
        return "none" if lowered == "null" else text

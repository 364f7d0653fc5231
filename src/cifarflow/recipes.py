"""Whole params.yaml files by name: list them, and put one in place without losing the present one."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifarflow import files
from cifarflow.config import load_config
from cifarflow.errors import ConfigError, UnknownNameError
from cifarflow.workspace import Workspace


@dataclass(frozen=True, kw_only=True, slots=True)
class Replacement:
    """What putting a recipe in place did."""

    changes: tuple[str, ...] | None
    """A line for each value that is another now; None where the old file could not be read."""
    saved: Path | None
    """Where the old params.yaml went; None when there was none, or none that a recipe does not bring back."""


def recipe_folder(workspace: Workspace) -> Path:
    return workspace.root / "recipes"


def describe_recipes(workspace: Workspace) -> dict[str, str]:
    """The name of each recipe and the first line of its comment, in the order of the names.

    Raises ConfigError when there are none.
    """
    folder = recipe_folder(workspace)
    paths = sorted(folder.glob("*.yaml"))
    if not paths:
        raise ConfigError(f"{folder} holds no recipes. Run from the project's folder.")
    return {path.stem: _first_comment(path) for path in paths}


def put_in_place(name: str, workspace: Workspace) -> Replacement:
    """Make params.yaml the recipe `name`; the old file is kept first, and equal values leave it as it is.

    An old file that is a recipe to the byte is not kept: it would take the place of one with a person's own values.
    A params.yaml that cannot be used is replaced too: this is the way out of it.
    Raises UnknownNameError, or ConfigError when the recipe itself has faults.
    """
    known = list(describe_recipes(workspace))
    if name not in known:
        raise UnknownNameError("recipe", name, known=known)
    source = recipe_folder(workspace) / f"{name}.yaml"
    wanted = load_config(source).flat()
    present = _present_values(workspace.params)
    if present == wanted:
        return Replacement(changes=(), saved=None)
    saved = _keep(workspace.params, workspace.state / "params.previous.yaml", recipes=source.parent)
    files.write_bytes(workspace.params, source.read_bytes())
    return Replacement(changes=None if present is None else tuple(_changes(present, wanted)), saved=saved)


def _first_comment(path: Path) -> str:
    """The first line, without its `# Recipe NAME:`."""
    first = path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    if not first.startswith("#"):
        return ""
    return first.lstrip("# ").removeprefix(f"Recipe {path.stem}:").strip()


def _present_values(params: Path) -> dict[str, Any] | None:
    try:
        return load_config(params).flat()
    except ConfigError:
        return None


def _keep(params: Path, target: Path, *, recipes: Path) -> Path | None:
    if not params.is_file():
        return None
    content = params.read_bytes()
    if any(recipe.read_bytes() == content for recipe in recipes.glob("*.yaml")):
        return None
    files.write_bytes(target, content)
    return target


def _changes(present: dict[str, Any], wanted: dict[str, Any]) -> Iterator[str]:
    for key, value in wanted.items():
        if present.get(key) != value:
            yield f"{key}: {_show(present.get(key))} -> {_show(value)}"


def _show(value: Any) -> str:
    """As one would write it in YAML."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

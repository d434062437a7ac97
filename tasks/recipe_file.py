"""YAML files -> Recipe and Serving, or an error that names file, field, value and way out."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tasks.config import Batch, Recipe, Serving, keys_from_environment
from tasks.errors import RecipeError


class _UniqueKeys(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, which YAML forbids and PyYAML lets pass."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key.value!r} is given twice", problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_recipe(path: Path) -> Recipe:
    """Read a recipe; prompts and text that it names lie in its own folder or below.

    Raises:
        RecipeError: The file is missing or not YAML, or a field is wrong; names the file, field and value.
    """
    data = _read_yaml(path, "recipe")
    validation = data.get("validation")
    if isinstance(validation, dict):
        data["validation"] = validation = dict(validation)
        if isinstance(validation.get("prompts"), str):
            validation["prompts"] = _read_yaml(_beside(path, validation["prompts"]), "prompts").get("prompts")
        if isinstance(validation.get("text"), str):
            validation["text"] = _read_text(_beside(path, validation["text"]), "text")
    source = data.get("source")
    if isinstance(source, dict) and source.get("kind") == "local" and isinstance(source.get("path"), str):
        data["source"] = {**source, "path": str((path.parent / Path(source["path"]).expanduser()).resolve())}
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"recipe {path}: {_explain(error)}") from error


def load_serving(path: Path | None, **options: object) -> Serving:
    """Read how to serve.

    Args:
        path: A YAML file; none: the defaults.
        options: Fields that come before the file's; None: not given. Keys of VINOFLOW_API_KEYS join the file's.

    Raises:
        RecipeError: The file is missing or not YAML, or a field is wrong; names the file, field and value.
    """
    data = _read_yaml(path, "settings") if path else {}
    data |= {name: value for name, value in options.items() if value is not None}
    try:
        if isinstance(data.get("api_keys", {}), dict):
            data["api_keys"] = data.get("api_keys", {}) | keys_from_environment()
        return Serving.model_validate(data)
    except ValidationError as error:
        where = f"settings {path}" if path else "settings"
        raise RecipeError(
            f"{where}: {_explain(error)}".replace("`vinoflow schema`", "`vinoflow schema serve`")
        ) from error
    except ValueError as error:
        raise RecipeError(str(error)) from error


def load_batch(path: Path | None, *, assignments: Sequence[str] = (), **options: object) -> Batch:
    """Read how to answer a batch.

    Args:
        path: A YAML file; none: the defaults.
        assignments: `NAME=VALUE`, where NAME may be a path (`columns.prompt`) and VALUE is YAML; before the file's.
        options: Fields by such names, which come before both; None: not given.

    Raises:
        RecipeError: The file is missing or not YAML, or a field is wrong; names the file, field and value.
    """
    data = _read_yaml(path, "settings") if path else {}
    for name, value in [*map(_assignment, assignments), *options.items()]:
        if value is not None:
            _assign(data, name, value)
    try:
        return Batch.model_validate(data)
    except ValidationError as error:
        where = f"settings {path}" if path else "settings"
        raise RecipeError(
            f"{where}: {_explain(error)}".replace("`vinoflow schema`", "`vinoflow schema batch`")
        ) from error


def _assignment(text: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    if not (name and sign):
        raise RecipeError(f"--set {text!r} is not NAME=VALUE: `vinoflow schema batch` lists the names")
    try:
        return name.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {name}: {value!r} is not YAML: {' '.join(str(error).split())}") from error


def _assign(data: dict[str, Any], name: str, value: object) -> None:
    """Set a field by its path."""
    *path, last = name.split(".")
    for part in path:
        inner = data.get(part, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"{name}: {part} is {inner!r}, which has no fields")
        data[part] = inner = dict(inner)
        data = inner
    data[last] = value


def _explain(error: ValidationError) -> str:
    """Return a validation error in words: each field, what is wrong, and the value that it has."""
    return "; ".join(_explain_one(problem) for problem in error.errors(include_url=False))


def _explain_one(problem: Any) -> str:
    kinds = ("hub", "local", "wheel")
    field = ".".join(str(part) for part in problem["loc"] if part not in kinds)
    text = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return f"{field} is not a field: `vinoflow schema` lists them"
    if problem["type"] == "missing":
        return f"{field} is missing"
    value = problem["input"]
    shown = f" (it is {value!r})" if isinstance(value, str | int | float | bool | None) else ""
    return f"{field}: {text}{shown}" if field else text


def _beside(recipe: Path, name: str) -> Path:
    """Return a file that a recipe names: MLflow keeps its content, so it is one of the recipe's own, and no other.

    Raises:
        RecipeError: It lies outside of the recipe's folder.
    """
    folder, path = recipe.parent.resolve(), recipe.parent / name
    try:
        inside = path.resolve().is_relative_to(folder)
    except (OSError, ValueError, RuntimeError) as error:
        raise RecipeError(f"recipe {recipe}: {name!r} is no name of a file: {error}") from error
    if not inside:
        raise RecipeError(f"recipe {recipe}: {name} is not in {folder} or below: put it beside the recipe")
    return path


def _read_yaml(path: Path, what: str) -> dict[str, Any]:
    text = _read_text(path, what)
    try:
        data = yaml.load(text, Loader=_UniqueKeys)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise RecipeError(f"{what} {path}{where} is not YAML: {error.problem}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise RecipeError(f"{what} {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{what} {path} must be a mapping of fields, and is {type(data).__name__}")
    return data


def _read_text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RecipeError(f"{what} {path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{what} {path} cannot be read: {error}") from error

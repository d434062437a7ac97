"""Which versions there are."""

from __future__ import annotations

import re
from typing import Any

from tasks.errors import RecipeError, VersionNotFoundError
from tasks.records import ModelVersion
from tasks.registry.files import problem_of
from tasks.registry.ledger import HEAD
from tasks.registry.store import connect, translated

_REFERENCE = re.compile(r"(?P<name>[a-z0-9][a-z0-9._-]*)(/(?P<version>[1-9][0-9]{0,8})|@(?P<alias>[A-Za-z0-9_.-]+))")
_NEWEST = "version_number DESC"


def list_versions(name: str | None = None, *, limit: int | None = None) -> list[ModelVersion]:
    """Return all registered versions, or those of one name: names in order, newest first.

    Args:
        name: Of one registered model.
        limit: At most so many of each name.
    """
    client = connect()
    with translated():
        wanted = f"name = '{name}'" if name else None
        models = {model.name: _aliases(model) for model in pages(client.search_registered_models, filter_string=wanted)}
        return [
            _record(version, aliases)
            for model, aliases in sorted(models.items())
            for version in _newest(model, limit=limit)
        ]


def resolve(reference: str) -> ModelVersion:
    """Return the version that NAME/VERSION, NAME@ALIAS or NAME@latest names.

    Raises:
        RecipeError: The reference has another shape.
        VersionNotFoundError: There is no such model, version or alias.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise RecipeError(
            f"model reference {reference!r} is not NAME/VERSION, NAME@ALIAS or NAME@latest; `vinoflow list` shows them"
        )
    name, alias = match["name"], match["alias"]
    aliases, _ = aliases_of(name)
    number = match["version"] or aliases.get(alias)
    wanted = int(number) if number else None
    with translated():
        found = _newest(name, limit=1, number=wanted) if number or alias == "latest" else []
        newest = found or _newest(name, limit=10)
    if found:
        return _record(found[0], aliases)
    if not newest:
        raise _no_model(name)
    what = f"version {match['version']}" if match["version"] else f"alias {alias!r}"
    known = ", ".join(str(version.version) for version in newest)
    raise VersionNotFoundError(f"model {name!r} has no {what}; its newest versions are {known}")


def aliases_of(name: str) -> tuple[dict[str, int], str]:
    """Return a model's aliases with their versions, and the head of its ledger.

    Raises:
        VersionNotFoundError: There is no such model.
    """
    client = connect()
    from mlflow.exceptions import MlflowException

    with translated():
        try:
            model = client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise _no_model(name) from error
            raise
    return _aliases(model), model.tags.get(HEAD, "")


def _no_model(name: str) -> VersionNotFoundError:
    return VersionNotFoundError(f"no model {name!r} is registered: `vinoflow list` shows what is")


def find_by_inputs(name: str, inputs: str) -> ModelVersion | None:
    """Return the newest complete version of a model that was made from the same inputs."""
    return _whole(name, {"vinoflow.inputs": inputs})


def find_same(name: str, digest: str, recipe_digest: str) -> ModelVersion | None:
    """Return the newest complete version that has an exported model's digest, by the same recipe."""
    return _whole(name, {"vinoflow.digest": digest, "vinoflow.recipe_digest": recipe_digest})


def _whole(name: str, tags: dict[str, str]) -> ModelVersion | None:
    with translated():
        found = _newest(name, tags=tags)
    versions = (_record(version, {}) for version in found)
    version = next((version for version in versions if not problem_of(version)), None)
    return resolve(version.reference) if version else None


def _newest(
    name: str, *, limit: int | None = None, number: int | None = None, tags: dict[str, str] | None = None
) -> list[Any]:
    """Return MLflow's records of a name's versions, newest first."""
    wanted = " AND ".join(
        [
            f"name = '{name}'",
            *([f"version_number = {number}"] if number else []),
            *(f"tags.`{tag}` = '{value}'" for tag, value in (tags or {}).items()),
        ]
    )
    search = connect().search_model_versions
    if limit is not None:
        return list(search(filter_string=wanted, max_results=limit, order_by=[_NEWEST]))
    return pages(search, filter_string=wanted, order_by=[_NEWEST])


def _record(version: Any, aliases: dict[str, int]) -> ModelVersion:
    return ModelVersion(
        name=version.name,
        version=int(version.version),
        digest=version.tags.get("vinoflow.digest", ""),
        aliases=tuple(sorted(alias for alias, number in aliases.items() if number == int(version.version))),
        run_id=version.run_id or "",
        tags=dict(version.tags),
    )


def _aliases(model: Any) -> dict[str, int]:
    return {alias: int(number) for alias, number in model.aliases.items()}


def pages(search: Any, **arguments: Any) -> list[Any]:
    """Return all results of one of MLflow's paged searches."""
    found: list[Any] = []
    token = None
    while True:
        page = search(page_token=token, **arguments)
        found += page
        token = page.token
        if not token:
            return found

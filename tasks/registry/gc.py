"""What nothing needs any more: old versions, logged models that became no version, leftovers in the cache.

A version goes before its files: a kill leaves a logged model without a version, which the next run finds. Runs and
their reports stay. The embedded store and the cache share files by hard links, so that neither can harm the other.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlparse

from pydantic import Field

from tasks import progress
from tasks.errors import RegistryError
from tasks.records import Record
from tasks.registry import leftovers
from tasks.registry.files import sizes_of
from tasks.registry.ledger import entries, versions_named
from tasks.registry.move import settle
from tasks.registry.moved_home import moved_home
from tasks.registry.read import aliases_of, pages
from tasks.registry.store import Locking, connect, locked, translated

MONTH, DAY = timedelta(days=30), timedelta(days=1)
_DIGEST = "vinoflow.digest"
_SOURCE = "models:/"  # what the source of a version begins with


class Garbage(Record):
    """Something that nothing needs."""

    kind: Literal["version", "logged model", "cache"]
    name: str = Field(description="NAME/VERSION, the logged model's id, or the path in the cache.")
    model: str = Field("", description="The registered model that it belonged to; of the cache: empty.")
    model_id: str = Field("", description="The logged model whose files go.")
    size_bytes: int
    why: str


def garbage(*, older_than: timedelta = MONTH) -> list[Garbage]:
    """Return what no alias, no entry of a ledger and no age keeps; deletes nothing.

    Args:
        older_than: Versions that are younger stay; so does the newest of each model. What a killed process left
            must be that old or a day, whichever is less.

    Raises:
        RegistryError: The embedded store's addresses are those of another folder.
    """
    if moved_home():
        raise RegistryError("the project folder was moved or copied: `vinoflow doctor --fix` first, gc then")
    with progress.step("search") as step:
        step.update(note="versions")
        versions = _versions()
        found = [one for _, of_name in _by_name(versions) for one in _old(list(of_name), versions, older_than)]
        step.update(note="logged models")
        found += abandoned(older_than=min(older_than, DAY))
        step.update(note="cache")
        going = {one.name for one in found}
        needed = {version.tags.get(_DIGEST, "") for version in versions if _reference(version) not in going}
        cached = leftovers.in_cache(needed, older_than=min(older_than, DAY))
        step.update(note="")
    return [
        *found,
        *(Garbage(kind="cache", name=str(one.path), size_bytes=one.size_bytes, why=one.why) for one in cached),
    ]


def abandoned(*, older_than: timedelta) -> list[Garbage]:
    """Return vinoflow's logged models that no version came of, and that nobody is working on.

    One whose files a ledger names, while no version has them any more, stays: it is all that is left of what served.
    """
    client, versions, limit = connect(), _versions(), _limit(older_than)
    sources, digests = {version.source for version in versions}, {version.tags.get(_DIGEST) for version in versions}
    with translated():
        experiments = [one.experiment_id for one in pages(client.search_experiments)]
        return [
            Garbage(
                kind="logged model",
                name=model.model_id,
                model=model.name,
                model_id=model.model_id,
                size_bytes=sum(sizes_of(client, model.model_id).values()),
                why=f"{model.status}, but no version: its registration was interrupted, or its version was deleted",
            )
            for model in pages(client.search_logged_models, experiment_ids=experiments)
            if _DIGEST in model.tags
            and f"{_SOURCE}{model.model_id}" not in sources
            and model.last_updated_timestamp <= limit
            and not leftovers.at_work(_inputs(model))
            and (
                model.tags[_DIGEST] in digests
                or model.tags[_DIGEST] not in {one.entry.to_digest for one in entries(model.name)}
            )
        ]


def collect(
    found: Sequence[Garbage], *, older_than: timedelta = MONTH, locking: Locking = locked
) -> tuple[Garbage, ...]:
    """Delete what was found, where it still is garbage; return what went.

    Args:
        found: What `garbage` returned.
        older_than: As given to it.
        locking: Keeps those away who move aliases, while versions are looked at again and go.

    Raises:
        RegistryError: MLflow does not answer; an interrupted move cannot be completed.
    """
    gone: list[Garbage] = []
    old = [one for one in found if one.kind == "version"]
    with progress.step("delete", total=len(found), unit="steps") as step:
        for name, of_name in groupby(old, key=lambda one: one.model):
            step.update(done=len(gone), note=name)
            gone += _delete_versions(name, {one.name for one in of_name}, older_than, locking)
        orphans = {one.model_id for one in found if one.kind == "logged model"} | {one.model_id for one in gone}
        for one in abandoned(older_than=min(older_than, DAY)):
            if one.model_id in orphans:
                step.update(done=len(gone), note=one.name)
                delete_logged_model(one)
                gone += [one] if one in found else []
        for one in found:
            if one.kind == "cache" and leftovers.delete(Path(one.name)):
                gone.append(one)
        step.update(done=len(gone), note="")
    return tuple(gone)


def delete_logged_model(one: Garbage) -> None:
    """Delete the files of a logged model, wherever they are, then the logged model."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    client = connect()
    with translated():
        location = str(client.get_logged_model(one.model_id).artifact_location)
        get_artifact_repository(location).delete_artifacts()
        parts = urlparse(location)
        if parts.scheme in ("", "file"):
            parent = Path(unquote(parts.path)).parent  # models/<id>, which held nothing else
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        client.delete_logged_model(one.model_id)


def _delete_versions(name: str, wanted: set[str], older_than: timedelta, locking: Locking) -> list[Garbage]:
    with locking(name):
        settle(name)
        everything = _versions()
        mine = [version for version in everything if version.name == name]
        going = [one for one in _old(mine, everything, older_than) if one.name in wanted]
        with translated():
            for one in going:
                connect().delete_model_version(name, one.name.rpartition("/")[2])
    return going


def _old(versions: Sequence[Any], everything: Iterable[Any], older_than: timedelta) -> Iterator[Garbage]:
    """Yield those of a model's versions that nothing keeps."""
    limit = _limit(older_than)
    newest = max(int(version.version) for version in versions)
    if all(version.creation_timestamp > limit for version in versions):
        return
    name = versions[0].name
    kept = {newest, *aliases_of(name)[0].values(), *versions_named(name)}
    copied = {version.source for version in everything}
    for version in versions:
        model_id = str(version.source).removeprefix(_SOURCE)
        if (
            int(version.version) in kept
            or version.creation_timestamp > limit
            or _DIGEST not in version.tags
            or f"{_SOURCE}{_reference(version)}" in copied  # by MLflow's own means
        ):
            continue
        days = (time.time() - version.creation_timestamp / 1000) / 86400
        yield Garbage(
            kind="version",
            name=_reference(version),
            model=name,
            model_id=model_id,
            size_bytes=int(version.tags.get("vinoflow.size_bytes", 0)),
            why=f"no alias, in no ledger, {days:.0f} days old",
        )


def _versions() -> list[Any]:
    """Return MLflow's records of all versions, by name, the oldest first."""
    with translated():
        return sorted(pages(connect().search_model_versions), key=lambda one: (str(one.name), int(one.version)))


def _by_name(versions: Sequence[Any]) -> Iterator[tuple[str, Iterator[Any]]]:
    return groupby(versions, key=lambda version: str(version.name))


def _reference(version: Any) -> str:
    return f"{version.name}/{version.version}"


def _inputs(model: Any) -> str:
    """Return the digest of the inputs of the run that a logged model came from; empty: there is none."""
    run = connect().get_run(model.source_run_id) if model.source_run_id else None
    return str(run.data.tags.get("vinoflow.inputs", "")) if run else ""


def _limit(older_than: timedelta) -> float:
    """Return the time, in milliseconds since the epoch, before which something is that old."""
    return (time.time() - older_than.total_seconds()) * 1000

"""Which versions there are, and the files of one of them."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from filelock import FileLock

from tasks import locations, progress
from tasks.errors import IntegrityError, RecipeError, RegistryError, VersionNotFoundError
from tasks.manifest import MANIFEST_NAME, Manifest, discard, put_in_place, read_manifest, verify
from tasks.records import Champion, ModelVersion, Record, ValidationReport
from tasks.registry.store import connect, translated

if TYPE_CHECKING:
    from mlflow import MlflowClient

MODEL_FOLDER = "artifacts/model"  # where a logged model keeps the exported model's files
_REFERENCE = re.compile(r"(?P<name>[a-z0-9][a-z0-9._-]*)(/(?P<version>[0-9]+)|@(?P<alias>[A-Za-z0-9_.-]+))")


class PulledModel(Record):
    """A version's files on this machine, checked."""

    path: Path
    version: ModelVersion


def list_versions(name: str | None = None) -> list[ModelVersion]:
    """Return all registered versions, or those of one name: names in order, newest first."""
    client = connect()
    with translated():
        aliases = {model.name: _aliases(model) for model in _pages(client.search_registered_models)}
        filter_string = f"name = '{name}'" if name else None
        found = [
            _record(version, aliases.get(version.name, {}))
            for version in _pages(client.search_model_versions, filter_string=filter_string)
        ]
    return sorted(found, key=lambda version: (version.name, -version.version))


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
    versions = list_versions(match["name"])
    if not versions:
        raise VersionNotFoundError(f"no model {match['name']!r} is registered: `vinoflow list` shows what is")
    if match["alias"] == "latest":
        return versions[0]
    for version in versions:
        if match["alias"] in version.aliases or (match["version"] and int(match["version"]) == version.version):
            return version
    what = f"version {match['version']}" if match["version"] else f"alias {match['alias']!r}"
    known = ", ".join(str(version.version) for version in versions[:10])
    raise VersionNotFoundError(f"model {match['name']!r} has no {what}; its newest versions are {known}")


def find_by_inputs(name: str, inputs: str) -> ModelVersion | None:
    """Return the newest complete version of a model that was made from the same inputs."""
    client = connect()
    for version in list_versions(name):
        if version.tags.get("vinoflow.inputs") == inputs and _is_complete(client, version):
            return version
    return None


def metrics_of(version: ModelVersion) -> dict[str, float]:
    """Return the metrics of the run that a version came from."""
    with translated():
        return dict(connect().get_run(version.run_id).data.metrics)


def report_of(version: ModelVersion) -> ValidationReport:
    """Return the validation that a version passed.

    Raises:
        RegistryError: It is not there, or is not one.
    """
    from mlflow.artifacts import load_text

    with translated():
        text = load_text(f"{evidence_uri(version.run_id)}/report.json")
    try:
        return ValidationReport.model_validate_json(text)
    except ValueError as error:
        raise RegistryError(f"the report of {version.reference} cannot be read: {error}") from error


def evidence_uri(run_id: str) -> str:
    """Return where the evidence of a run is kept: a path where that is a folder of this machine."""
    with translated():
        uri = str(connect().get_run(run_id).info.artifact_uri)
    parts = urlparse(uri)
    return unquote(parts.path) if parts.scheme in ("", "file") else uri


def champion_of(name: str) -> Champion | None:
    """Return the version that serves under the alias `champion`, with its report; None where there is none."""
    for version in list_versions(name):
        if "champion" in version.aliases:
            return Champion(reference=version.reference, report=report_of(version))
    return None


def pull(reference: str) -> PulledModel:
    """Fetch a version's files into the cache and check every one of them.

    Raises:
        IntegrityError: A file is damaged, missing, or was added; names it.
        RegistryError: The store does not answer, or the version is not one of vinoflow's.
    """
    client = connect()
    version = resolve(reference)
    if not version.digest:
        raise RegistryError(f"{version.reference} has no vinoflow.digest tag: it was not registered by vinoflow")
    folder = locations.cache() / "models" / version.digest
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        location = _location(client, version)
        store = _local_store(location)
        if store is not None:
            _link(store, folder, version.digest)
        elif not (folder / MANIFEST_NAME).is_file():
            _fetch(location, folder, version.digest)
        with progress.step("verify"):
            try:
                verify(folder, read_manifest(folder, digest=version.digest))
            except IntegrityError as error:
                discard(folder)
                raise IntegrityError(f"{version.reference} is not served: {error}. {_way_out(store)}") from error
    return PulledModel(path=folder, version=version)


def _way_out(store: Path | None) -> str:
    if store is None:
        return "The copy in the cache was deleted: run again to fetch it anew"
    return f"Restore {store} from a backup, or run export-and-validate again for a new version"


def _link(store: Path, folder: Path, digest: str) -> None:
    """Make the cache's folder out of the local store's own files: no second copy, and what is checked is the store's.

    Raises:
        IntegrityError: The store's manifest is not the version's, or a file that it names is missing.
    """
    manifest = read_manifest(store, digest=digest)
    verify(store, manifest, deep=False)
    names = [entry.name for entry in manifest.files]
    if folder.is_dir() and all(_same_file(store / name, folder / name) for name in [*names, MANIFEST_NAME]):
        return
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for name in [*names, MANIFEST_NAME]:
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(store / name, partial / name)
        except OSError:  # the cache is on another file system
            shutil.copy2(store / name, partial / name)
    put_in_place(partial, folder)


def _same_file(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def _fetch(location: str, folder: Path, digest: str) -> None:
    """Download a version's files from a server; the folder appears when all that the manifest names are there."""
    from mlflow.artifacts import download_artifacts

    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()

    def get(name: str) -> None:
        target = (partial / name).parent
        target.mkdir(parents=True, exist_ok=True)
        download_artifacts(artifact_uri=f"{location}/{MODEL_FOLDER}/{name}", dst_path=str(target))

    with translated():
        get(MANIFEST_NAME)
        manifest = read_manifest(partial, digest=digest)
        with progress.step("fetch", total=manifest.size_bytes, unit="bytes") as step:
            for entry in manifest.files:
                step.update(note=entry.name)
                get(entry.name)
                step.update(done=step.done + entry.size_bytes, note="")
    put_in_place(partial, folder)


def _location(client: MlflowClient, version: ModelVersion) -> str:
    """Return the URI of the logged model behind a version."""
    with translated():
        return str(client.get_logged_model(_model_id(client, version)).artifact_location)


def _local_store(location: str) -> Path | None:
    """Return the folder of a version's files where the store is a file system of this machine."""
    parts = urlparse(location)
    return Path(unquote(parts.path)) / MODEL_FOLDER if parts.scheme in ("", "file") else None


def _model_id(client: MlflowClient, version: ModelVersion) -> str:
    """Return the id of the logged model behind a version: MLflow keeps it in the version's source only."""
    with translated():
        source = str(client.get_model_version(version.name, str(version.version)).source)
    if not source.startswith("models:/"):
        raise RegistryError(f"{version.reference} points at {source}, not at a logged model")
    return source.removeprefix("models:/")


def _is_complete(client: MlflowClient, version: ModelVersion) -> bool:
    """Tell whether a version can be pulled: every file hashed in a local store, names and sizes on a server."""
    try:
        model_id = _model_id(client, version)
        with translated():
            model = client.get_logged_model(model_id)
        store = _local_store(model.artifact_location)
        if store is not None:
            verify(store, read_manifest(store, digest=version.digest))
        else:
            _verify_on_server(client, model, version.digest)
        return str(model.status) == "READY"
    except (RegistryError, ValueError):  # IntegrityError, and a manifest that is none
        return False


def _verify_on_server(client: MlflowClient, model: Any, digest: str) -> None:
    from mlflow.artifacts import load_text

    with translated():
        text = load_text(f"{model.artifact_location}/{MODEL_FOLDER}/{MANIFEST_NAME}")
        sizes = _sizes(client, model.model_id, MODEL_FOLDER)
    manifest = Manifest.model_validate_json(text)
    expected = {f"{MODEL_FOLDER}/{entry.name}": entry.size_bytes for entry in manifest.files}
    if manifest.digest != digest or not expected.items() <= sizes.items():
        raise IntegrityError(f"the files of {model.model_id} are not those that were registered")


def _sizes(client: MlflowClient, model_id: str, folder: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for entry in client.list_logged_model_artifacts(model_id, folder):
        sizes |= _sizes(client, model_id, entry.path) if entry.is_dir else {entry.path: entry.file_size}
    return sizes


def _record(version: Any, aliases: dict[str, str]) -> ModelVersion:
    return ModelVersion(
        name=version.name,
        version=int(version.version),
        digest=version.tags.get("vinoflow.digest", ""),
        aliases=tuple(sorted(alias for alias, number in aliases.items() if str(number) == str(version.version))),
        run_id=version.run_id or "",
        tags=dict(version.tags),
    )


def _aliases(model: Any) -> dict[str, str]:
    return dict(model.aliases)


def _pages(search: Any, **arguments: Any) -> list[Any]:
    """Return all results of one of MLflow's paged searches."""
    found: list[Any] = []
    token = None
    while True:
        page = search(page_token=token, **arguments)
        found += page
        token = page.token
        if not token:
            return found

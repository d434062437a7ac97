"""Where the files of a version lie, and whether they are whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from tasks.errors import IntegrityError, RegistryError
from tasks.manifest import MANIFEST_NAME, Manifest, read_manifest, verify
from tasks.records import ModelVersion
from tasks.registry.store import connect, translated
from tasks.registry.trouble import ready

if TYPE_CHECKING:
    from mlflow import MlflowClient

MODEL_FOLDER = "artifacts/model"  # where a logged model keeps the exported model's files


def location_of(version: ModelVersion) -> str:
    """Return the URI of the logged model behind a version."""
    model_id = model_id_of(version)
    with translated():
        return ready(str(connect().get_logged_model(model_id).artifact_location))


def local_store(location: str) -> Path | None:
    """Return the folder of a version's files where the store is a file system of this machine."""
    parts = urlparse(location)
    return Path(unquote(parts.path)) / MODEL_FOLDER if parts.scheme in ("", "file") else None


def model_id_of(version: ModelVersion) -> str:
    """Return the id of the logged model behind a version: MLflow keeps it in the version's source only."""
    with translated():
        source = str(connect().get_model_version(version.name, str(version.version)).source)
    if not source.startswith("models:/"):
        raise RegistryError(f"{version.reference} points at {source}, not at a logged model")
    return source.removeprefix("models:/")


def problem_of(version: ModelVersion, *, deep: bool = True) -> str:
    """Return why a version cannot be pulled; empty: it can.

    Args:
        version: The version.
        deep: Hash every file of a local store; otherwise, and on a server, names and sizes are compared.
    """
    client = connect()
    try:
        model_id = model_id_of(version)
        with translated():
            model = client.get_logged_model(model_id)
        if str(model.status) != "READY":
            return f"its logged model {model_id} is {model.status}, not READY: its registration was interrupted"
        store = local_store(ready(model.artifact_location))
        if store is not None:
            verify(store, read_manifest(store, digest=version.digest), deep=deep)
        else:
            _verify_on_server(client, model, version.digest)
    except (RegistryError, ValueError) as error:  # IntegrityError, and a manifest that is none
        return str(error)
    return ""


def _verify_on_server(client: MlflowClient, model: Any, digest: str) -> None:
    from mlflow.artifacts import load_text

    name = f"{MODEL_FOLDER}/{MANIFEST_NAME}"
    with translated():
        sizes = sizes_of(client, model.model_id, MODEL_FOLDER)
        if name not in sizes:  # asked for it, a server says 500 where its S3 lacks it, and is asked again and again
            raise IntegrityError(f"{MANIFEST_NAME} of {model.model_id} is missing")
        text = load_text(f"{model.artifact_location}/{name}")
    manifest = Manifest.model_validate_json(text)
    expected = {f"{MODEL_FOLDER}/{entry.name}": entry.size_bytes for entry in manifest.files}
    if manifest.digest != digest or not expected.items() <= sizes.items():
        raise IntegrityError(f"the files of {model.model_id} are not those that were registered")


def sizes_of(client: MlflowClient, model_id: str, folder: str | None = None) -> dict[str, int]:
    """Return the sizes in bytes of a logged model's files, or of those in a folder of it, by their paths."""
    sizes: dict[str, int] = {}
    for entry in client.list_logged_model_artifacts(model_id, folder):
        sizes |= sizes_of(client, model_id, entry.path) if entry.is_dir else {entry.path: entry.file_size}
    return sizes

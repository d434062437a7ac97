"""Whether a version has all that it was registered with."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from filelock import FileLock

from tasks.errors import IntegrityError, RegistryError
from tasks.manifest import put_in_place
from tasks.records import ModelVersion
from tasks.registry.evidence import evidence_of, recipe_of
from tasks.registry.files import local_store, model_id_of, problem_of
from tasks.registry.finding import Case
from tasks.registry.leftovers import intact
from tasks.registry.libraries import libraries_of, others_here
from tasks.registry.store import connect, translated
from tasks.registry.write import link_files


def check_version(version: ModelVersion) -> Iterator[Case]:
    """Yield what is wrong with a version's files, report, recipe; and of one that serves, with the libraries here."""
    files = problem_of(version)
    if files:
        mend = _from_cache(version)
        way = "the cache has it whole" if mend else "restore it from a backup, or run export-and-validate for another"
        yield Case(version.reference, f"{files}; {way}", mend)
    for problem in evidence_of(version, deep=False).problems:
        if problem != files:
            yield Case(version.reference, problem)
    try:
        recipe_of(version)
        wanted = libraries_of(version) if version.aliases else {}
    except RegistryError as error:
        yield Case(version.reference, str(error))
        return
    if others := others_here(wanted):
        differ = ", ".join(f"{name} {wanted[name]} (here: {here or 'none'})" for name, here in others.items())
        pins = " ".join(f"{name}=={wanted[name]}" for name in others)
        message = f"it was made and validated with {differ}; `pip install {pins}` gives these back"
        yield Case(version.reference, message, level="warning")


def _from_cache(version: ModelVersion) -> Callable[[], None] | None:
    """Return what puts the cache's files in the place of a version's, where the cache has them whole."""
    source = intact(version.digest)
    try:
        with translated():
            model = connect().get_logged_model(model_id_of(version))
    except RegistryError:
        return None
    store = local_store(model.artifact_location)
    if source is None or store is None or str(model.status) != "READY":
        return None
    return partial(_restore_files, version, source, store)


def _restore_files(version: ModelVersion, source: Path, store: Path) -> None:
    partial_ = store.with_name(f"{store.name}.partial")
    shutil.rmtree(partial_, ignore_errors=True)
    with FileLock(f"{source}.lock"):
        link_files(source, partial_)
    put_in_place(partial_, store)
    if wrong := problem_of(version):
        raise IntegrityError(wrong)

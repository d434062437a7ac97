"""The library versions that a registered version was made and validated with, and those that are here."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError

from tasks.records import ModelVersion
from tasks.registry.store import connect, translated
from tasks.versions import versions

_TAG = "version."


def libraries_of(version: ModelVersion) -> dict[str, str]:
    """Return the libraries that a version was made and validated with, as its run names them."""
    with translated():
        tags = connect().get_run(version.run_id).data.tags
    return {name.removeprefix(_TAG): number for name, number in sorted(tags.items()) if name.startswith(_TAG)}


def others_here(wanted: Mapping[str, str]) -> dict[str, str]:
    """Return those libraries of which another version is installed, with it; empty: none is."""
    installed = {name: _installed(name) for name in wanted}
    return {name: number for name, number in installed.items() if number != wanted[name]}


def _installed(name: str) -> str:
    try:
        return versions((name,))[name]
    except PackageNotFoundError:
        return ""

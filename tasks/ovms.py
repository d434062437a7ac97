"""A registered version -> a repository that OpenVINO Model Server (OVMS) serves: pull, lay out, enter in its config.

    FOLDER/config.json                    what OVMS is started with (--config_path); watched by it
    FOLDER/NAME/VERSION/graph.pbtxt       a MediaPipe graph of one node, the LLM calculator
    FOLDER/NAME/VERSION/model/            the version's files and their manifest, whole

Sources, all of github.com/openvinotoolkit/model_server at 7e4df0c (2026-08-21): the graph is the template of
docs/llm/reference.md ("LLM Calculator"), its options are fields of src/llm/llm_calculator.proto; that models_path is
taken relative to the graph's folder is parseModelsPath in src/llm/servable_initializer.cpp; graphs belong in
model_config_list (docs/mediapipe.md; mediapipe_config_list is deprecated), base_path relative to config.json.
The graph pool of newer templates (LLM_NODE_EXECUTION_CONTEXTS) is left out: older servers refuse its side packet.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from string import Template
from typing import Any

from filelock import FileLock
from pydantic import Field

from tasks import devices, progress
from tasks.errors import IntegrityError, RecipeError
from tasks.manifest import MANIFEST_NAME, put_in_place, read_manifest, verify
from tasks.records import ModelVersion, Record
from tasks.registry import PulledModel, pull

CONFIG_NAME = "config.json"
GRAPH_NAME = "graph.pbtxt"
MODEL_FOLDER = "model"
_LISTS = ("model_config_list", "mediapipe_config_list")
# the scheduler's settings are those of our own engine, so that what was validated is what serves
_GRAPH = Template("""\
# $reference $digest, written by vinoflow
input_stream: "HTTP_REQUEST_PAYLOAD:input"
output_stream: "HTTP_RESPONSE_PAYLOAD:output"

node: {
  name: "LLMExecutor"
  calculator: "HttpLLMCalculator"
  input_stream: "LOOPBACK:loopback"
  input_stream: "HTTP_REQUEST_PAYLOAD:input"
  input_side_packet: "LLM_NODE_RESOURCES:llm"
  output_stream: "LOOPBACK:loopback"
  output_stream: "HTTP_RESPONSE_PAYLOAD:output"
  input_stream_info: {
    tag_index: "LOOPBACK:0",
    back_edge: true
  }
  node_options: {
    [type.googleapis.com / mediapipe.LLMCalculatorOptions]: {
      models_path: "./$model_folder",
      device: $device,
      plugin_config: $plugin_config,
      enable_prefix_caching: true,
      max_num_batched_tokens: 512,
      cache_size: $cache_size_gb
    }
  }
  input_stream_handler {
    input_stream_handler: "SyncSetInputStreamHandler",
    options {
      [mediapipe.SyncSetInputStreamHandlerOptions.ext] {
        sync_set {
          tag_index: "LOOPBACK:0"
        }
      }
    }
  }
}
""")


class LaidOut(Record):
    """A version in a repository of OVMS."""

    version: ModelVersion
    path: Path = Field(description="The version's folder, which holds the graph and the model.")
    config: Path = Field(description="What OVMS is started with.")
    device: str


def export_ovms(reference: str, folder: Path, *, device: str | None = None, cache_size_gb: int = 0) -> LaidOut:
    """Lay a version out for OVMS, and have the repository's config name it as what serves its model.

    Files are linked where the file system can, else copied. Nothing half-made is ever to be seen: the version's
    folder gets its name when it is whole, and only then does config.json name it. Other entries of it stay.

    Args:
        reference: NAME/VERSION, NAME@ALIAS or NAME@latest.
        folder: The repository; made if need be.
        device: Where OVMS runs it; none: where the version was validated.
        cache_size_gb: Room for the KV cache in GB; 0: it grows as requests need it.

    Raises:
        DeviceError: The device chosen is none that can be relied on, as AUTO.
        RecipeError: The version's folder exists and holds something else, or config.json is not one of OVMS.
        VersionNotFoundError: There is no such version.
        IntegrityError: One of its files is not what was registered.
    """
    used = devices.chosen(device)
    folder = folder.expanduser().resolve()
    model = pull(reference)
    version = model.version
    used = used or version.tags["vinoflow.device"]
    target = folder / version.name / str(version.version)
    target.parent.mkdir(parents=True, exist_ok=True)
    with progress.step("lay out") as step, FileLock(folder / ".vinoflow.lock"):
        step.update(note=str(target))
        config = _read_config(folder / CONFIG_NAME)
        _refuse_another(target, version)
        staged = target.with_name(f".staging-{target.name}")
        shutil.rmtree(staged, ignore_errors=True)  # of a run that was killed here
        _link(model, staged / MODEL_FOLDER)
        (staged / GRAPH_NAME).write_text(graph(version, device=used, cache_size_gb=cache_size_gb), encoding="utf-8")
        put_in_place(staged, target)
        _write_config(folder / CONFIG_NAME, _naming(config, version))
    return LaidOut(version=version, path=target, config=folder / CONFIG_NAME, device=used)


def graph(version: ModelVersion, *, device: str, cache_size_gb: int = 0) -> str:
    """Return the MediaPipe graph that serves a version, in protobuf's text format."""
    return _GRAPH.substitute(
        reference=version.reference,
        digest=version.digest,
        model_folder=MODEL_FOLDER,
        device=json.dumps(device),
        # JSON in a JSON string, ASCII: its only escapes are \" and \\, which the text format has too
        plugin_config=json.dumps(json.dumps(json.loads(version.tags["vinoflow.ov_config"]))),
        cache_size_gb=cache_size_gb,
    )


def _refuse_another(target: Path, version: ModelVersion) -> None:
    if not target.exists():
        return
    with contextlib.suppress(IntegrityError):
        read_manifest(target / MODEL_FOLDER, digest=version.digest)
        return
    raise RecipeError(f"{target} exists and is not {version.reference}: remove it, or choose another folder")


def _link(model: PulledModel, folder: Path) -> None:
    manifest = read_manifest(model.path, digest=model.version.digest)
    for name in (*(entry.name for entry in manifest.files), MANIFEST_NAME):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(model.path / name, folder / name)
        except OSError:  # another file system
            shutil.copy2(model.path / name, folder / name)
    verify(folder, manifest, deep=False)


def _read_config(path: Path) -> dict[str, Any]:
    """Return what the repository's config says; without one: an empty one.

    Raises:
        RecipeError: It is not a config of OVMS.
    """
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise RecipeError(f"{path} is not JSON: {error}; mend it, or choose another folder") from error
    if not isinstance(config, dict) or not all(isinstance(config.get(key, []), list) for key in _LISTS):
        raise RecipeError(f"{path} is not a config of OpenVINO Model Server: choose another folder")
    return config


def _naming(config: dict[str, Any], version: ModelVersion) -> dict[str, Any]:
    """Return the config with the version as what serves its model; OVMS reloads a graph whose base_path changed."""
    kept = {key: [one for one in config[key] if _name(one) != version.name] for key in _LISTS if key in config}
    entry = {"config": {"name": version.name, "base_path": f"{version.name}/{version.version}"}}
    return {**config, **kept, "model_config_list": [*kept.get("model_config_list", []), entry]}


def _name(entry: Any) -> object:
    inner = entry.get("config", entry) if isinstance(entry, dict) else None
    return inner.get("name") if isinstance(inner, dict) else None


def _write_config(path: Path, config: dict[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory, text_format

from tasks import ovms
from tasks.errors import DeviceError, IntegrityError, RecipeError, RegistryError
from tasks.manifest import read_manifest, verify
from tasks.ovms import export_ovms, graph
from tasks.records import ExportedModel, ModelVersion
from tests import small
from tests.conftest import Vinoflow

# What a graph of ours may say, from the .proto files that OVMS parses it with, field numbers and all: mediapipe's
# framework/{calculator,stream_handler,mediapipe_options}.proto, stream_handler/sync_set_input_stream_handler.proto
# (google/mediapipe at 9d88077), and OVMS's src/llm/llm_calculator.proto (openvinotoolkit/model_server at 7e4df0c).
# A field that is not here does not parse.
SCHEMA = """
name: "ovms.proto" package: "mediapipe" dependency: "google/protobuf/any.proto"
message_type { name: "MediaPipeOptions" extension_range { start: 20000 end: 536870912 } }
message_type {
  name: "SyncSetInputStreamHandlerOptions"
  extension { name: "ext" number: 155816273 label: LABEL_OPTIONAL type: TYPE_MESSAGE
    extendee: ".mediapipe.MediaPipeOptions" type_name: ".mediapipe.SyncSetInputStreamHandlerOptions" }
  nested_type { name: "SyncSet" field { name: "tag_index" number: 1 label: LABEL_REPEATED type: TYPE_STRING } }
  field { name: "sync_set" number: 1 label: LABEL_REPEATED type: TYPE_MESSAGE
    type_name: ".mediapipe.SyncSetInputStreamHandlerOptions.SyncSet" }
}
message_type {
  name: "InputStreamHandlerConfig"
  field { name: "input_stream_handler" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
  field { name: "options" number: 3 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".mediapipe.MediaPipeOptions" }
}
message_type {
  name: "InputStreamInfo"
  field { name: "tag_index" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
  field { name: "back_edge" number: 2 label: LABEL_OPTIONAL type: TYPE_BOOL }
}
message_type {
  name: "CalculatorGraphConfig"
  nested_type {
    name: "Node"
    field { name: "name" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
    field { name: "calculator" number: 2 label: LABEL_OPTIONAL type: TYPE_STRING }
    field { name: "input_stream" number: 3 label: LABEL_REPEATED type: TYPE_STRING }
    field { name: "output_stream" number: 4 label: LABEL_REPEATED type: TYPE_STRING }
    field { name: "input_side_packet" number: 5 label: LABEL_REPEATED type: TYPE_STRING }
    field { name: "node_options" number: 8 label: LABEL_REPEATED type: TYPE_MESSAGE type_name: ".google.protobuf.Any" }
    field { name: "input_stream_handler" number: 11 label: LABEL_OPTIONAL type: TYPE_MESSAGE
      type_name: ".mediapipe.InputStreamHandlerConfig" }
    field { name: "input_stream_info" number: 13 label: LABEL_REPEATED type: TYPE_MESSAGE
      type_name: ".mediapipe.InputStreamInfo" }
  }
  field { name: "node" number: 1 label: LABEL_REPEATED type: TYPE_MESSAGE
    type_name: ".mediapipe.CalculatorGraphConfig.Node" }
  field { name: "input_stream" number: 10 label: LABEL_REPEATED type: TYPE_STRING }
  field { name: "output_stream" number: 15 label: LABEL_REPEATED type: TYPE_STRING }
}
message_type {
  name: "LLMCalculatorOptions"
  field { name: "models_path" number: 1 label: LABEL_REQUIRED type: TYPE_STRING }
  field { name: "max_num_batched_tokens" number: 2 label: LABEL_OPTIONAL type: TYPE_UINT64 default_value: "256" }
  field { name: "cache_size" number: 3 label: LABEL_OPTIONAL type: TYPE_UINT64 default_value: "0" }
  field { name: "max_num_seqs" number: 4 label: LABEL_OPTIONAL type: TYPE_UINT64 default_value: "256" }
  field { name: "dynamic_split_fuse" number: 5 label: LABEL_OPTIONAL type: TYPE_BOOL default_value: "true" }
  field { name: "device" number: 6 label: LABEL_OPTIONAL type: TYPE_STRING }
  field { name: "plugin_config" number: 7 label: LABEL_OPTIONAL type: TYPE_STRING default_value: "" }
  field { name: "enable_prefix_caching" number: 10 label: LABEL_OPTIONAL type: TYPE_BOOL default_value: "false" }
}
"""


def parsed(text: str) -> tuple[Any, Any]:
    """Return a graph's one node and its options, parsed as OVMS does."""
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(any_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(text_format.Parse(SCHEMA, descriptor_pb2.FileDescriptorProto()))
    types = message_factory.GetMessageClassesForFiles(["ovms.proto"], pool)
    config = text_format.Parse(text, types["mediapipe.CalculatorGraphConfig"](), descriptor_pool=pool)
    (node,) = config.node
    assert (list(config.input_stream), list(config.output_stream)) == (
        ["HTTP_REQUEST_PAYLOAD:input"],
        ["HTTP_RESPONSE_PAYLOAD:output"],
    )
    options = types["mediapipe.LLMCalculatorOptions"]()
    assert node.node_options[0].Unpack(options)
    handler = node.input_stream_handler.options.Extensions[
        pool.FindExtensionByName("mediapipe.SyncSetInputStreamHandlerOptions.ext")
    ]
    assert [list(one.tag_index) for one in handler.sync_set] == [["LOOPBACK:0"]]
    return node, options


@pytest.fixture
def registered(home: Path, tmp_path: Path) -> ModelVersion:
    return small.version(tmp_path, "a")


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def test_the_graph_says_what_the_version_was_validated_with() -> None:
    ov_config = {"PERFORMANCE_HINT": "LATENCY", "CACHE_DIR": 'C:\\of "Zoë"\'s\n'}
    version = ModelVersion(
        name="m", version=3, digest="d" * 64, run_id="r", tags={"vinoflow.ov_config": json.dumps(ov_config)}
    )
    node, options = parsed(graph(version, device="GPU.0", cache_size_gb=4))
    assert (node.name, node.calculator) == ("LLMExecutor", "HttpLLMCalculator")
    assert list(node.input_stream) == ["LOOPBACK:loopback", "HTTP_REQUEST_PAYLOAD:input"]
    assert list(node.output_stream) == ["LOOPBACK:loopback", "HTTP_RESPONSE_PAYLOAD:output"]
    assert list(node.input_side_packet) == ["LLM_NODE_RESOURCES:llm"]
    assert [(one.tag_index, one.back_edge) for one in node.input_stream_info] == [("LOOPBACK:0", True)]
    assert json.loads(options.plugin_config) == ov_config
    assert (options.models_path, options.device, options.cache_size) == ("./model", "GPU.0", 4)
    assert (options.enable_prefix_caching, options.max_num_batched_tokens) == (True, 512)


def test_the_check_of_the_graph_can_fail() -> None:
    version = ModelVersion(name="m", version=1, digest="d" * 64, run_id="r", tags={"vinoflow.ov_config": "{}"})
    text = graph(version, device="CPU")
    for good, bad in (("cache_size", "cache_sise"), ("back_edge: true", "back_edge: maybe"), ("SyncSet", "Sync")):
        with pytest.raises(text_format.ParseError):
            parsed(text.replace(good, bad))


@pytest.mark.slow
def test_a_version_is_laid_out_whole(registered: ModelVersion, tmp_path: Path) -> None:
    folder = tmp_path / "ovms"
    done = export_ovms("small@latest", folder)
    assert done.path == folder / "small" / "1"
    assert sorted(path.name for path in done.path.iterdir()) == ["graph.pbtxt", "model"]
    verify(done.path / "model", read_manifest(done.path / "model", digest=registered.digest))
    assert (done.path / "model" / "openvino_model.bin").stat().st_nlink > 1, "linked, not copied"
    entry = {"config": {"name": "small", "base_path": "small/1"}}
    assert config_of(folder) == {"model_config_list": [entry]}
    _, options = parsed((done.path / "graph.pbtxt").read_text())
    assert (folder / "small" / "1" / options.models_path / "manifest.json").is_file()
    assert options.device == "CPU"


@pytest.mark.slow
def test_the_next_version_takes_over_and_other_entries_stay(registered: ModelVersion, tmp_path: Path) -> None:
    folder = tmp_path / "ovms"
    folder.mkdir()
    other = {"config": {"name": "resnet", "base_path": "/models/resnet"}}
    mine = {"name": "small", "base_path": "/by/hand"}
    known = {"model_config_list": [other], "mediapipe_config_list": [mine], "monitoring": {"metrics": {"enable": True}}}
    (folder / "config.json").write_text(json.dumps(known))
    export_ovms("small/1", folder)
    small.version(tmp_path, "b")
    export_ovms("small/2", folder)
    assert config_of(folder) == {
        "model_config_list": [other, {"config": {"name": "small", "base_path": "small/2"}}],
        "mediapipe_config_list": [],
        "monitoring": {"metrics": {"enable": True}},
    }
    assert (folder / "small" / "1" / "graph.pbtxt").is_file(), "the way back"
    export_ovms("small/1", folder)
    assert config_of(folder)["model_config_list"][1]["config"]["base_path"] == "small/1"


@pytest.mark.slow
def test_the_same_version_is_laid_out_again_and_another_refused(registered: ModelVersion, tmp_path: Path) -> None:
    folder = tmp_path / "ovms"
    done = export_ovms("small/1", folder)
    (done.path / "model" / "openvino_model.bin").unlink()
    (done.path.parent / ".staging-1").mkdir()
    export_ovms("small/1", folder, device="GPU.0", cache_size_gb=2)
    verify(done.path / "model", read_manifest(done.path / "model", digest=registered.digest))
    assert parsed((done.path / "graph.pbtxt").read_text())[1].device == "GPU.0"
    assert sorted(path.name for path in done.path.parent.iterdir()) == ["1"]
    theirs = folder / "small" / "2"
    theirs.mkdir()
    (theirs / "notes.txt").write_text("mine")
    small.version(tmp_path, "b")
    before = config_of(folder)
    with pytest.raises(RecipeError, match="is not small/2"):
        export_ovms("small/2", folder)
    assert [path.name for path in theirs.iterdir()] == ["notes.txt"]
    assert config_of(folder) == before


@pytest.mark.slow
def test_what_is_refused_leaves_nothing(registered: ModelVersion, tmp_path: Path) -> None:
    folder = tmp_path / "ovms"
    with pytest.raises(DeviceError, match="in silence"):
        export_ovms("small/1", folder, device="AUTO:GPU,CPU")
    with pytest.raises(RegistryError, match="no version 7"):
        export_ovms("small/7", folder)
    assert not folder.exists()
    folder.mkdir()
    for wrong in ("{", "[]", '{"model_config_list": {}}'):
        (folder / "config.json").write_text(wrong)
        with pytest.raises(RecipeError, match=r"config\.json is not"):
            export_ovms("small/1", folder)
    assert list((folder / "small").iterdir()) == []
    (folder / "config.json").unlink()
    (stored,) = (path for path in (tmp_path / "home").rglob("openvino_model.bin"))
    stored.chmod(0o644)
    stored.write_text("z")
    with pytest.raises(IntegrityError, match="is damaged"):
        export_ovms("small/1", folder)
    assert not (folder / "config.json").exists()


@pytest.mark.slow
def test_another_file_system_gets_copies(registered: ModelVersion, tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no other file system")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        done = export_ovms("small/1", Path(folder))
        verify(done.path / "model", read_manifest(done.path / "model", digest=registered.digest))


@pytest.mark.slow
def test_what_is_cut_off_is_not_to_be_seen(
    registered: ModelVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "ovms"
    for point in ("put_in_place", "_write_config"):
        with monkeypatch.context() as patch:
            patch.setattr(ovms, point, cut_off)
            with pytest.raises(KeyboardInterrupt):
                export_ovms("small/1", folder)
        assert not (folder / "config.json").exists()
        assert (folder / "small" / "1").exists() == (point == "_write_config")
    export_ovms("small/1", folder)
    assert sorted(path.name for path in (folder / "small").iterdir()) == ["1"]


def cut_off(*given: object) -> None:
    raise KeyboardInterrupt


LOADS = """
import json, sys, openvino_genai as genai
folder, device, plugin, tokens, caching = sys.argv[1:]
scheduler = genai.SchedulerConfig()
scheduler.max_num_batched_tokens, scheduler.enable_prefix_caching = int(tokens), caching == "True"
pipeline = genai.ContinuousBatchingPipeline(folder, scheduler, device, json.loads(plugin))
generation = genai.GenerationConfig(max_new_tokens=24)
history = genai.ChatHistory([{"role": "user", "content": "What is the capital of France?"}])
prompt = pipeline.get_tokenizer().apply_chat_template(history, True)
print(pipeline.generate([prompt], [generation])[0].m_generation_ids[0])
"""


@pytest.mark.slow
def test_what_is_laid_out_answers_as_ovms_would_load_it(
    smollm2_export: ExportedModel, tmp_path: Path, vinoflow: Vinoflow
) -> None:
    recipe = small.recipe("smollm2")
    found = small.report(smollm2_export, recipe)
    small.registered(recipe, smollm2_export, found, inputs="i", evidence=tmp_path / "evidence")
    told = json.loads(vinoflow("export-ovms", "smollm2@latest", tmp_path / "ovms", "--json").stdout)
    base = tmp_path / "ovms" / config_of(tmp_path / "ovms")["model_config_list"][0]["config"]["base_path"]
    assert told["path"] == str(base)
    _, options = parsed((base / "graph.pbtxt").read_text())
    given = (str(base / options.models_path), options.device, options.plugin_config)
    scheduling = (str(options.max_num_batched_tokens), str(options.enable_prefix_caching))
    done = subprocess.run(
        [sys.executable, "-c", LOADS, *given, *scheduling], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout

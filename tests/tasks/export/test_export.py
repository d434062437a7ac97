from __future__ import annotations

import json
import shutil
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest

from tasks import child
from tasks.config import Export, LocalSource
from tasks.download import download
from tasks.errors import ExportError, IntegrityError
from tasks.export import export, has_chat_template
from tasks.export.export import _check_complete
from tasks.export.worker import quantization_config
from tasks.manifest import read_manifest, verify
from tasks.progress import Step, listening
from tasks.records import Checkpoint

pytestmark = pytest.mark.slow
INT4 = Export(weight_format="int4", group_size=32, ratio=0.6, sym=True)


@pytest.fixture
def checkpoint(home: Path, tiny_checkpoint: Path) -> Checkpoint:
    return download(LocalSource(kind="local", path=tiny_checkpoint))


class Heard:
    """Keeps what steps say."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def began(self, step: Step) -> None: ...

    def moved(self, step: Step) -> None:
        self.notes.append(step.note)

    def ended(self, step: Step, *, failed: bool) -> None: ...


def leftovers(checkpoint: Checkpoint) -> list[str]:
    models = checkpoint.path.parents[1] / "models"
    return [path.name for path in models.iterdir() if path.suffix != ".lock"] if models.exists() else []


def test_an_export_is_complete_recorded_and_made_once(
    checkpoint: Checkpoint, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard()
    with listening(heard):
        first = export(checkpoint, INT4)
    verify(first.path, read_manifest(first.path, digest=first.digest))
    assert leftovers(checkpoint) == [first.digest]
    assert first.checkpoint == checkpoint
    assert first.weights.settings["ratio"] == "0.6"
    assert first.weights.group_sizes["int4_sym"] == (32,)
    assert set(first.weights.share_by_type) == {"int4_sym", "int8_asym"}
    assert first.peak_rss_bytes > 100_000_000
    assert "converting" in heard.notes
    assert any("weight compression" in note for note in heard.notes)
    monkeypatch.setattr(child, "run", None)  # would fail if it exported again
    assert export(checkpoint, INT4) == first
    copied = download(LocalSource(kind="local", path=shutil.copytree(tiny_checkpoint, tmp_path / "copied")))
    assert copied.digest == checkpoint.digest
    assert export(copied, INT4) == first.model_copy(update={"checkpoint": copied})


def test_exports_of_the_same_inputs_are_equal_bit_by_bit_wherever_they_are_made(
    checkpoint: Checkpoint, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = export(checkpoint, INT4)
    monkeypatch.setenv("VINOFLOW_CACHE", str(tmp_path / "another-cache"))
    second = export(download(LocalSource(kind="local", path=tiny_checkpoint)), INT4)
    assert second.path != first.path
    assert second.digest == first.digest
    for path in second.path.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name


def test_a_damaged_export_is_made_again(checkpoint: Checkpoint) -> None:
    first = export(checkpoint, INT4)
    (first.path / "openvino_model.bin").write_bytes(b"rubbish")
    again = export(checkpoint, INT4)
    verify(again.path, read_manifest(again.path, digest=again.digest))


def test_a_damaged_checkpoint_is_never_exported(checkpoint: Checkpoint) -> None:
    path = checkpoint.path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"model\.safetensors is damaged"):
        export(checkpoint, INT4)


def test_what_optimum_refuses_is_our_error_and_leaves_nothing(checkpoint: Checkpoint) -> None:
    with pytest.raises(ExportError, match=r"(?s)export of .* failed: .*InvalidGroupSizeError"):
        export(checkpoint, Export(weight_format="int4", group_size=48, ratio=1.0))
    assert leftovers(checkpoint) == []


def test_calibration_texts_out_of_the_recipe(checkpoint: Checkpoint) -> None:
    texts = ("The quick brown fox jumps over the lazy dog.", "What is the capital of France?") * 4
    settings = Export(weight_format="int4", group_size=32, dataset=texts, num_samples=4, scale_estimation=True)
    assert export(checkpoint, settings).weights.settings["scale_estimation"] == "True"


@pytest.mark.skipif(find_spec("datasets") is not None, reason="the calibration extra is installed")
def test_a_dataset_of_the_hub_without_its_extra(checkpoint: Checkpoint) -> None:
    with pytest.raises(ExportError, match=r"wikitext2 needs the `calibration` extra"):
        export(checkpoint, Export(weight_format="int4", dataset="wikitext2", scale_estimation=True))


def test_an_export_that_hangs_is_stopped(checkpoint: Checkpoint) -> None:
    with pytest.raises(ExportError, match="did not end within 1 s"):
        export(checkpoint, INT4.model_copy(update={"timeout_s": 1.0}))
    assert leftovers(checkpoint) == []


def test_an_export_that_lacks_a_file_is_refused(checkpoint: Checkpoint) -> None:
    folder = export(checkpoint, INT4).path
    for name in ("openvino_tokenizer.xml", "openvino_detokenizer.bin", "tokenizer.json", "chat_template.jinja"):
        whole = (folder / name).read_bytes()
        (folder / name).unlink()
        with pytest.raises(ExportError, match=f"lacks {name}"):
            _check_complete(folder, checkpoint.path)
        (folder / name).write_bytes(whole)
    _check_complete(folder, checkpoint.path)


def test_two_at_once_export_once(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    original = child.run

    def counted(*arguments: object, **named: object) -> child.Message:
        runs.append(arguments)
        return original(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(child, "run", counted)
    results: list[str] = []
    threads = [threading.Thread(target=lambda: results.append(export(checkpoint, INT4).digest)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runs) == 1
    assert len(set(results)) == 1 and len(results) == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"weight_format": "int4", "group_size": 128, "ratio": 0.6, "sym": True},
        {"weight_format": "int4", "group_size": 64, "backup_precision": "int8_sym", "all_layers": True},
        {
            "weight_format": "int4",
            "dataset": "auto",
            "scale_estimation": True,
            "num_samples": 8,
            "awq": True,
            "gptq": True,
        },
        {"weight_format": "int4", "dataset": "auto", "lora_correction": True, "ratio": 0.8},
        {"weight_format": "int4", "dataset": "auto", "sensitivity_metric": "mean_activation_variance", "ratio": 0.8},
        {"weight_format": "int4", "group_size": 64, "group_size_fallback": "adjust"},
        {"weight_format": "int8", "sym": True},
    ],
)
def test_settings_become_what_optimum_cli_makes_of_the_same_options(settings: dict[str, object]) -> None:
    from argparse import ArgumentParser

    from optimum.commands.export.openvino import parse_args_openvino, prepare_wc_config
    from optimum.intel.openvino.configuration import _DEFAULT_4BIT_WQ_CONFIG, OVConfig

    parser = ArgumentParser()
    parse_args_openvino(parser)
    options = []
    for name, value in settings.items():
        option = f"--{name.replace('_', '-')}"
        options += [option] if value is True else [option, str(value)]
    theirs = prepare_wc_config(parser.parse_args(["--model", "x", *options, "out"]), _DEFAULT_4BIT_WQ_CONFIG)
    ours = quantization_config(Export.model_validate(settings).model_dump(mode="json"))
    assert OVConfig(quantization_config=ours).to_dict() == OVConfig(quantization_config=theirs).to_dict()


def test_chat_templates_are_found_where_models_keep_them(tmp_path: Path) -> None:
    assert not has_chat_template(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert not has_chat_template(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "x"}))
    assert has_chat_template(tmp_path)

"""Tiny, randomly initialised models and their exports, made by optimum in a process of its own.

`python -m tests.tiny_exports JOBS.json`: a list of {"family", "config", "folder", "exports": {name: settings}};
settings are those of `tasks.config.Export`. Float IRs come from main_export; compressed ones from the function that
optimum-cli itself ends in, with the settings as our worker maps them. Writes `failures.json` beside the jobs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tasks.config import Export

MODEL_CLASSES = {"GPT2": "GPT2LMHeadModel"}
SMALL = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def run_jobs(folder: Path, jobs: list[dict[str, Any]]) -> dict[str, str]:
    """Make models and exports below `folder`; return what failed: export folder -> error type and message."""
    path = folder / "jobs.json"
    path.write_text(json.dumps(jobs), encoding="utf-8")
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "true", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "tests.tiny_exports", str(path)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    failures: dict[str, str] = json.loads((folder / "failures.json").read_text(encoding="utf-8"))
    return failures


def job(family: str, folder: Path, exports: dict[str, Export], **config: Any) -> dict[str, Any]:
    settings = {name: export.model_dump(mode="json") for name, export in exports.items()}
    return {"family": family, "config": {**SMALL, **config}, "folder": str(folder), "exports": settings}


def _main(jobs_path: Path) -> None:
    from tasks import telemetry

    telemetry.turn_off()
    failures: dict[str, str] = {}
    for spec in json.loads(jobs_path.read_text(encoding="utf-8")):
        folder = Path(spec["folder"])
        _make_model(spec, folder / "model")
        for name, settings in spec["exports"].items():
            try:
                _export(folder, folder / name, settings)
            except Exception as error:  # what failed, and how, is what the tests look at
                failures[str(folder / name)] = f"{type(error).__name__}: {error}"
    (jobs_path.parent / "failures.json").write_text(json.dumps(failures), encoding="utf-8")


def _make_model(spec: dict[str, Any], folder: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    family, config = spec["family"], dict(spec["config"])
    dtype = getattr(torch, config.pop("dtype", "bfloat16"))
    config_class = getattr(transformers, f"{family}Config")
    model = getattr(transformers, MODEL_CLASSES.get(family, f"{family}ForCausalLM"))(config_class(**config)).to(dtype)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms of one are folded away, which no trained model shows
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(folder)


def _export(folder: Path, output: Path, settings: dict[str, Any]) -> None:
    import openvino
    from optimum.intel.openvino.configuration import OVWeightQuantizationConfig
    from optimum.intel.openvino.quantization import _weight_only_quantization

    from tasks.export.worker import quantization_config

    quantization = quantization_config(settings)
    if quantization is None:
        _convert(folder / "model", output, {"dtype": settings["weight_format"]})
        return
    source = folder / "float"
    if not source.exists():
        _convert(folder / "model", source, {"quantization_config": quantization})
    output.mkdir()
    model = openvino.Core().read_model(source / "openvino_model.xml")
    compressed = _weight_only_quantization(model, OVWeightQuantizationConfig.from_dict(quantization))
    openvino.save_model(compressed, output / "openvino_model.xml", compress_to_fp16=False)


def _convert(model: Path, output: Path, config: dict[str, Any]) -> None:
    from optimum.exporters.openvino.__main__ import main_export
    from optimum.intel.openvino.configuration import OVConfig

    main_export(
        model_name_or_path=str(model),
        output=output,
        task="text-generation-with-past",
        library_name="transformers",
        ov_config=OVConfig(**config),
        convert_tokenizer=False,
    )


if __name__ == "__main__":
    _main(Path(sys.argv[1]))

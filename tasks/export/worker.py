"""The export's child process: optimum-intel does the work, and what it tracks becomes progress."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Any

from tasks.child import Message, Parent, serve_once


def quantization_config(settings: Message) -> dict[str, Any] | None:
    """Return optimum's weight-only quantisation config for our export settings; None for floating point.

    The same mapping as optimum-cli's own (optimum/commands/export/openvino.py, prepare_wc_config), less its
    replacing of unset options by a table of tuned defaults: a recipe says what it wants.
    """
    if settings["weight_format"] not in ("int4", "int8"):
        return None
    int8 = settings["weight_format"] == "int8"
    return {
        "bits": 8 if int8 else 4,
        "ratio": 1.0 if int8 else (settings["ratio"] or 1.0),
        "sym": settings["sym"],
        "group_size": -1 if int8 else settings["group_size"],
        "all_layers": None if int8 else (settings["all_layers"] or None),
        "dataset": settings["dataset"],
        "num_samples": settings["num_samples"],
        "quant_method": "awq" if settings["awq"] else "default",
        "sensitivity_metric": settings["sensitivity_metric"],
        "scale_estimation": settings["scale_estimation"] or None,
        "gptq": settings["gptq"] or None,
        "lora_correction": settings["lora_correction"] or None,
        "dtype": settings["weight_format"],
        "backup_precision": settings["backup_precision"],
        "group_size_fallback": settings["group_size_fallback"],
    }


def export(request: Message, parent: Parent) -> Message:
    """Export `checkpoint` into `output` as `settings` say; return the peak memory in bytes."""
    _forward_tracking(parent)
    from optimum.exporters.openvino import model_configs
    from optimum.exporters.openvino.__main__ import _main_quantize, main_export
    from optimum.intel.openvino.configuration import OVConfig

    # optimum-intel 2.1.0 caps gemma at transformers 5.0; with the pinned 5.5 gemma, gemma2 and gemma3_text agree with
    # torch to 4e-7 (tests/end_to_end/test_families.py)
    model_configs.GemmaOpenVINOConfig.MAX_TRANSFORMERS_VERSION = "5.5.99"
    settings, output = request["settings"], Path(request["output"])
    quantization = quantization_config(settings)
    common = {
        "model_name_or_path": request["checkpoint"],
        "output": output,
        "task": settings["task"],
        "library_name": "transformers",
        "trust_remote_code": settings["trust_remote_code"],
    }
    ov_config = OVConfig(
        **({"quantization_config": quantization} if quantization else {"dtype": settings["weight_format"]})
    )
    parent.send(event="phase", name="converting")
    main_export(**common, ov_config=ov_config, convert_tokenizer=True)
    if quantization:
        parent.send(event="phase", name="compressing weights")
        # what optimum-cli itself calls here; no public function does the same in place
        _main_quantize(**common, quantization_config=ov_config.quantization_config, cache_dir=None)
    _forget_location(output / "openvino_config.json", request["checkpoint"])
    return {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def _forget_location(config: Path, checkpoint: str) -> None:
    """Take this machine's path out of the export: it says nothing elsewhere, and would be part of the digest."""
    if config.is_file():
        config.write_text(config.read_text(encoding="utf-8").replace(json.dumps(checkpoint), "null"), encoding="utf-8")


def _forward_tracking(parent: Parent) -> None:
    """Send nncf's progress bars, which are rich's, on to the parent."""
    import rich.progress

    last: dict[str, float] = {}

    def forward(progress: rich.progress.Progress, task_id: rich.progress.TaskID) -> None:
        task = progress._tasks[task_id]
        name, now = task.description.lower(), time.monotonic()
        if task.total and (now - last.get(name, 0.0) > 0.2 or task.completed >= task.total):
            last[name] = now
            parent.send(event="phase", name=name, done=float(task.completed), total=float(task.total))

    for name in ("advance", "update"):
        original = getattr(rich.progress.Progress, name)

        def wrapped(self: Any, task_id: Any, *args: Any, _original: Any = original, **kwargs: Any) -> None:
            _original(self, task_id, *args, **kwargs)
            forward(self, task_id)

        setattr(rich.progress.Progress, name, wrapped)


if __name__ == "__main__":
    serve_once(export)

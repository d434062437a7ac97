"""A stand-in for an Intel GPU: OpenVINO's CPU plugin under the name GPU.0, with the faults of drivers on demand.

The children of a process whose environment has what `build` returns find GPU.0, whose full name says that it is the
CPU. optimum, LLMPipeline and continuous batching load and generate on it; prefix caching alone must be off, since
openvino-genai counts blocks of 16 tokens on a GPU, and the CPU's kernels blocks of 32. Nothing that ran on it is a
GPU's result.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
MADE_FOR = "2026.4"  # plugin.cpp knows this version's tables of virtual functions
FAULT = "VINOFLOW_SHIM_FAULT"
FAULTS = {
    "refuse": "the model is not compiled: an error of the driver",
    "crash": "the process dies while it compiles",
    "elsewhere": "it says that it compiled for the CPU (EXECUTION_DEVICES)",
    "nan": "every logit is NaN",
    "zero": "every logit is 0, so every token is token 0",
    "wrong": "the logits are negated, so every token is the least likely one",
    "drift": "each logit is off by some 10 %: the answers are words, but not the CPU's answers",
    "overflow": "the logits are NaN once a sequence is longer than 1,000 tokens",
}


def build(folder: Path) -> dict[str, str]:
    """Copy the installed openvino package with the shim in the place of its GPU plugin (some 4 s, no disk space).

    Args:
        folder: Where the copy goes, as `openvino`; files are linked where the file system can.

    Returns:
        Environment variables with which a process and its children import the copy.

    Raises:
        RuntimeError: The installed OpenVINO is not the one that the shim was made for, or g++ fails.
    """
    import openvino

    version = openvino.get_version()
    if not version.startswith(f"{MADE_FOR}."):
        raise RuntimeError(
            f"the GPU shim is made for OpenVINO {MADE_FOR} and this is {version}: compare the tables of virtual "
            "functions in tests/gpu_shim/plugin.cpp with those of the new version, then change MADE_FOR"
        )
    package = Path(find_spec("openvino").submodule_search_locations[0])
    copy = folder / "openvino"
    shutil.copytree(package, copy, copy_function=_link, ignore=shutil.ignore_patterns("*gpu_plugin*"))
    (library,) = (package / "libs").glob("libopenvino.so*")
    command = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
    command += ["-isystem", package / "include", Path(__file__).with_name("plugin.cpp"), library, "-Wl,-rpath,$ORIGIN"]
    command += ["-o", copy / "libs" / "libopenvino_intel_gpu_plugin.so"]
    if not shutil.which("g++"):
        subprocess.run([ROOT / ".ci" / "system-packages", "g++"], check=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"g++ does not compile the GPU shim:\n{done.stderr}")
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)

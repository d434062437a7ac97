"""What a model says on a device, asked in a process of its own, which can have the shim's environment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[2]


def generated(folder: Path, *devices: str) -> list[list[int]]:
    """Return the ids of 16 greedy tokens from each device, through optimum, as users load a model."""
    return json.loads(_ask("generate", folder, *devices))


def logits(folder: Path, device: str, *, tokens: int) -> NDArray[np.float32]:
    """Return the logits of `tokens` ids, shape (tokens, vocabulary)."""
    return np.array(json.loads(_ask("logits", folder, device, str(tokens))), np.float32)


def _ask(*arguments: object) -> str:
    command = [sys.executable, "-m", "tests.gpu_shim.ask", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def _generate(folder: str, *devices: str) -> list[list[int]]:
    import torch
    from optimum.intel import OVModelForCausalLM

    answers = []
    for device in devices:
        model = OVModelForCausalLM.from_pretrained(folder, device=device, ov_config={"CACHE_DIR": ""})
        answer = model.generate(torch.tensor([[3, 40, 50, 60]]), max_new_tokens=16, do_sample=False)
        answers.append(answer[0].tolist())
    return answers


def _logits(folder: str, device: str, tokens: str) -> list[list[float]]:
    import openvino

    request = openvino.Core().compile_model(f"{folder}/openvino_model.xml", device).create_infer_request()
    ids = np.arange(int(tokens))[None] % 400 + 3
    positions = {"attention_mask": np.ones_like(ids), "position_ids": np.arange(int(tokens))[None]}
    return request.infer({"input_ids": ids, **positions, "beam_idx": np.zeros(1, np.int32)})["logits"][0].tolist()


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    print(json.dumps({"generate": _generate, "logits": _logits}[what](*arguments)))

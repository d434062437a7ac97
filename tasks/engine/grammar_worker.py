"""The child process that tries grammars: the engine's own grammar library, on a model of a few bytes.

A continuous-batching pipeline whose grammar does not compile throws in `step()`, again and again, for all its requests
(openvino-genai 2026.4). Here it throws on a pipeline that nobody else uses.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tasks.child import parent_from_arguments
from tasks.engine.worker import structured


def pipeline(folder: Path) -> Any:
    """Return a pipeline with the model's tokenizer and, in place of the model, logits that are all zero."""
    import openvino
    import openvino_genai

    tokenizer = openvino_genai.Tokenizer(str(folder))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "openvino_model.xml"
        openvino.save_model(_zeros(len(tokenizer.get_vocab())), path)
        weights = openvino.Tensor(np.fromfile(path.with_suffix(".bin"), np.uint8))
        return openvino_genai.LLMPipeline(path.read_text(), weights, tokenizer, "CPU", ATTENTION_BACKEND="SDPA")


def _zeros(vocabulary: int) -> Any:
    """Return a model of a text's shape: (1, tokens) -> logits (1, tokens, vocabulary)."""
    import openvino
    from openvino import opset13 as ops

    shapes = {"input_ids": ([-1, -1], np.int64), "attention_mask": ([-1, -1], np.int64), "beam_idx": ([-1], np.int32)}
    inputs = {name: ops.parameter(shape, kind, name=name) for name, (shape, kind) in shapes.items()}
    for name, parameter in inputs.items():
        parameter.output(0).get_tensor().set_names({name})
    nothing = ops.constant(np.float32(0))
    used = [
        ops.reduce_sum(ops.convert(inputs[name], "f32"), ops.constant(list(range(len(shape)))))
        for name, (shape, _) in shapes.items()
    ]  # a pipeline wants all three
    each = ops.unsqueeze(ops.convert(inputs["input_ids"], "f32"), ops.constant(2))
    row = ops.constant(np.zeros((1, 1, vocabulary), np.float32))
    logits = ops.multiply(ops.add(ops.multiply(each, row), ops.add(used[0], ops.add(used[1], used[2]))), nothing)
    logits.output(0).get_tensor().set_names({"logits"})
    return openvino.Model([ops.result(logits)], list(inputs.values()), "zeros")


def main() -> None:
    """Try each grammar that the parent sends, until it is gone."""
    import openvino
    import openvino_genai

    parent = parent_from_arguments()
    start = parent.receive()
    if start is None:
        return
    tried = pipeline(Path(start["folder"]))
    parent.send(ready=True)
    prompt = openvino.Tensor(np.zeros((1, 1), np.int64))
    while (grammar := parent.receive()) is not None:
        problem = ""
        try:
            config = openvino_genai.GenerationConfig(max_new_tokens=1)
            config.structured_output_config = structured(grammar)
            tried.generate(prompt, config)
        except Exception as error:
            first = next(iter(str(error).strip().splitlines()), "it cannot be compiled")
            problem = re.sub(r"^.*\.cc:\d+: ", "", first)  # where in the library's source
        parent.send(problem=problem)


if __name__ == "__main__":
    main()

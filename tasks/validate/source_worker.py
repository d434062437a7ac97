"""The source model's child process: what the unquantised model makes of passages, in torch on the CPU.

Of each scored position the final hidden state is kept, not the logits: 2 kB in place of 200 kB, and the last projection
gives the logits back, block by block of the vocabulary (`tasks.validate.reference`). Where a model does more than that
projection, its logits are kept.
"""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import numpy as np

from tasks.child import Message, Parent, serve_once

_CONTINUATION = 24  # tokens of the source model's own way on that a report shows
_ROWS = 128  # positions whose logits are in memory at a time


def score(request: Message, parent: Parent) -> Message:
    """Write final states of `passages` into `folder`, how they would go on, and the last projection into `head`."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    passages = request["passages"]
    model = AutoModelForCausalLM.from_pretrained(  # nosec B615 # a folder of this machine
        request["checkpoint"],
        dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[request["precision"]],
        trust_remote_code=request["trust_remote_code"],
        local_files_only=True,
    )
    model.eval()
    folder, head = Path(request["folder"]), Path(request["head"])
    with torch.inference_mode():
        form = _form(model, passages[0]["ids"])
        if request["write_head"]:
            _write_head(model, head, form)
        states, ways = [], []
        for number, passage in enumerate(passages, start=1):
            scored = slice(passage["start"] - 1, -1)
            ids = torch.tensor([passage["ids"]])
            kept = _hidden(model, ids)[scored] if form else model(ids, use_cache=False).logits[0, scored]
            states.append(kept.float().numpy())
            if request["continue"]:
                top = [(_project(model, form, part) if form else part).argmax(-1) for part in kept.split(_ROWS)]
                ways.append(_way_on(model, passage, torch.cat(top).tolist()))
            parent.send(event="scored", done=number)
    np.save(folder / "states.npy", np.concatenate(states))
    (folder / "ways.json").write_text(json.dumps(ways), encoding="utf-8")
    return {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def _hidden(model: Any, ids: Any) -> Any:
    """Return the final hidden states, shape (tokens, hidden size)."""
    return getattr(model, model.base_model_prefix)(ids, use_cache=False).last_hidden_state[0]


def _form(model: Any, ids: list[int]) -> dict[str, float] | None:
    """Return what the model does to its last projection's output: a factor, a soft cap; None: something else.

    Found by trying: what the config names must reproduce the model's own logits.
    """
    import torch

    config = model.config.get_text_config()
    form = {
        "scale": float(getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)),
        "soft_cap": float(getattr(config, "final_logit_softcapping", None) or 0),
    }
    sample = torch.tensor([ids[:8]])
    logits = model(sample, use_cache=False).logits[0].float()
    same = torch.allclose(_project(model, form, _hidden(model, sample)), logits, rtol=1e-2, atol=1e-3)
    return form if same else None


def _project(model: Any, form: dict[str, float], hidden: Any) -> Any:
    import torch

    logits = model.get_output_embeddings()(hidden).float() * form["scale"]
    return torch.tanh(logits / form["soft_cap"]) * form["soft_cap"] if form["soft_cap"] else logits


def _write_head(model: Any, folder: Path, form: dict[str, float] | None) -> None:
    if form:
        layer = model.get_output_embeddings()
        np.save(folder / "weight.npy", layer.weight.float().numpy())
        if getattr(layer, "bias", None) is not None:
            np.save(folder / "bias.npy", layer.bias.float().numpy())
    (folder / "form.json").write_text(json.dumps(form), encoding="utf-8")


def _way_on(model: Any, passage: dict[str, Any], top: list[int]) -> dict[str, Any]:
    """Return where a passage parts from the model's own greedy choice, and how the model goes on from there."""
    import torch
    from transformers import GenerationConfig

    ids, start = passage["ids"], passage["start"]
    parted = [position for position, token in enumerate(top) if token != ids[start + position]]
    if not parted:
        return {"position": None, "ids": []}
    known = torch.tensor([ids[: start + parted[0]]])
    greedy = GenerationConfig(
        max_new_tokens=_CONTINUATION, do_sample=False, eos_token_id=model.generation_config.eos_token_id, pad_token_id=0
    )
    given = model.generate(known, attention_mask=torch.ones_like(known), generation_config=greedy)
    return {"position": parted[0], "ids": given[0, known.shape[1] :].tolist()}


if __name__ == "__main__":
    serve_once(score)

"""Sabotages of the weights, the constants and the graph; made for the embedded recipe's export of SmolLM2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tasks.records import ExportedModel
from tests.sabotage.constants import constants, decoder, parts
from tests.sabotage.registry import own, sabotage

FIDELITY = ("text_kl_mean", "text_perplexity_ratio", "text_same_top_share")
EMBEDDING = "self.model.embed_tokens.weight"
HEAD_SIZE = 64


@sabotage(*FIDELITY)
def layers_swapped(copy: ExportedModel) -> None:
    """Two decoder layers in the middle change places."""
    layers = decoder(constants(copy.path))
    for name, array in layers[8].items():
        other = layers[9][name]
        array[:], other[:] = other.copy(), array.copy()


@sabotage(*FIDELITY)
def layer_dropped(copy: ExportedModel) -> None:
    """A decoder layer in the middle adds nothing (zero scales where it writes its results)."""
    layer = decoder(constants(copy.path))[15]
    for name in ("self_attn.o_proj/scale", "mlp.down_proj/scale"):
        layer[name][:] = 0


@sabotage(*FIDELITY)
def scales_zeroed(copy: ExportedModel) -> None:
    """The scales of a layer's query, key and value weights are zero."""
    layer = decoder(constants(copy.path))[1]
    for name in "qkv":
        layer[f"self_attn.{name}_proj/scale"][:] = 0


@sabotage(*FIDELITY)
def scales_doubled(copy: ExportedModel) -> None:
    """All scales of one decoder layer are twice what they were."""
    for name, array in decoder(constants(copy.path))[15].items():
        if name.endswith("/scale"):
            array[:] = 2 * array


@sabotage("nonfinite_weights", "nonfinite_logits")
def nan_in_a_scale(copy: ExportedModel) -> None:
    """One scale of a decoder layer is NaN."""
    decoder(constants(copy.path))[10]["mlp.down_proj/scale"].flat[0] = np.nan


@sabotage("nonfinite_weights")
def nan_that_the_cpu_hides(copy: ExportedModel) -> None:
    """One scale is NaN where the CPU's kernels turn it into a number: only who reads the constants can see it."""
    decoder(constants(copy.path))[10]["mlp.gate_proj/scale"].flat[0] = np.nan


@sabotage("nonfinite_weights", "nonfinite_logits")
def inf_in_a_scale(copy: ExportedModel) -> None:
    """One scale of a decoder layer is infinite."""
    decoder(constants(copy.path))[20]["mlp.down_proj/scale"].flat[0] = np.inf


@sabotage(in_manifest=False)
def bin_truncated(copy: ExportedModel) -> None:
    """The weights' file ends after two thirds; the manifest is that of the whole file."""
    path = own(copy.path / "openvino_model.bin")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size * 2 // 3)


@sabotage(*FIDELITY)
def embeddings_shifted(copy: ExportedModel) -> None:
    """Each token has the embedding of the token before it."""
    for name, array in constants(copy.path).items():
        if name.startswith(EMBEDDING):
            array[:] = np.roll(array, 1, axis=0)


@sabotage(*FIDELITY)
def last_norm_reversed(copy: ExportedModel) -> None:
    """The weights of the last norm are in reverse order."""
    (norm,) = (
        array for name, array in constants(copy.path).items() if name.startswith("__module.model.norm/aten::mul")
    )
    norm[:] = norm[..., ::-1].copy()


@sabotage(*FIDELITY)
def rope_theta_of_llama(copy: ExportedModel) -> None:
    """The rotary frequencies are those of theta 10,000 in place of the model's 100,000."""
    (frequencies,) = (array for name, array in constants(copy.path).items() if "rotary_emb" in name)
    frequencies[:] = frequencies ** (np.log(1e4) / np.log(1e5))


@sabotage(*FIDELITY)
def nibbles_swapped(copy: ExportedModel) -> None:
    """The int4 weights of one decoder layer are read with the halves of their bytes swapped."""
    for name, array in decoder(constants(copy.path))[15].items():
        if "/" not in name and array.ndim == 3:
            array[:] = array << 4 | array >> 4


@sabotage(*FIDELITY)
def softmax_scale(copy: ExportedModel) -> None:
    """Attention scores are twice as large in every layer, as if the head size were a quarter."""
    for layer in decoder(constants(copy.path)).values():
        layer["self_attn.q_proj/scale"] *= 2


@sabotage(*FIDELITY)
def value_heads_rolled(copy: ExportedModel) -> None:
    """Query heads use the values of the next key-value head, in every layer."""
    for layer in decoder(constants(copy.path)).values():
        for part in parts(layer, "self_attn.v_proj"):
            part[:] = np.roll(part, HEAD_SIZE, axis=0)


@sabotage(*FIDELITY)
def rotary_interleaved(copy: ExportedModel) -> None:
    """Rows of query and key weights are in the order of interleaved rotary embeddings, as GGUF files have them."""
    for layer in decoder(constants(copy.path)).values():
        for name in ("self_attn.q_proj", "self_attn.k_proj"):
            for part in parts(layer, name):
                heads = part.reshape(-1, 2, HEAD_SIZE // 2, part.shape[1])
                part[:] = heads.swapaxes(1, 2).reshape(part.shape)


@sabotage("missed_stops")
def stop_row_zeroed(copy: ExportedModel) -> None:
    """The embedding of the end-of-sequence token is zero, so it is never said."""
    constants(copy.path)[f"{EMBEDDING}/scale"][2] = 0


@sabotage(*FIDELITY)
def untrained(copy: ExportedModel) -> None:
    """All weights of the decoder are noise of the right size: a model that was never trained."""
    random = np.random.default_rng(0)
    for layer in decoder(constants(copy.path)).values():
        for name, array in layer.items():
            if "/" not in name:
                array[:] = random.permuted(array)


def _with_logits(copy: ExportedModel, change: Callable[[Any, Any], Any]) -> None:
    """Put the logits through `change`, which gets the model and the logits and returns new ones."""
    import openvino

    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})
    model = core.read_model(copy.path / "openvino_model.xml")
    result = model.output("logits").get_node().input(0)
    logits = result.get_source_output()
    names = logits.get_names()
    changed = change(model, logits).output(0)
    logits.get_tensor().set_names(set())
    changed.get_tensor().set_names(names)
    result.replace_source_output(changed)
    openvino.save_model(model, copy.path / "changed.xml", compress_to_fp16=False)
    for suffix in (".xml", ".bin"):
        (copy.path / "changed").with_suffix(suffix).replace(copy.path / f"openvino_model{suffix}")


@sabotage("long_prompt_faults")
def nan_far_on(copy: ExportedModel) -> None:
    """The logits are NaN beyond position 1,000, as where an fp16 value overflows on long prompts."""
    from openvino import opset13 as ops

    def overflow(model: Any, logits: Any) -> Any:
        far = ops.greater(ops.unsqueeze(model.input("position_ids"), np.int64(-1)), np.int64(1000))
        return ops.select(far, np.float32(np.nan), logits)

    _with_logits(copy, overflow)


@sabotage("unrepeatable_answers")
def random_logits(copy: ExportedModel) -> None:
    """The logits are off by up to 2, another way each time."""
    from openvino import opset13 as ops

    def shake(model: Any, logits: Any) -> Any:
        shape = ops.shape_of(logits)
        return ops.add(logits, ops.random_uniform(shape, np.float32(-2), np.float32(2), "f32", 0, 0))

    _with_logits(copy, shake)

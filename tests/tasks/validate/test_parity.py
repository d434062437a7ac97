from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.config import Message, Recipe, ReferencePrompt
from tasks.records import ExportedModel
from tasks.validate.differences import parted
from tasks.validate.endings import Endings, disagreements
from tasks.validate.parity import Parity, check_parity, judge_parity
from tasks.validate.stress import stress_chats, stress_texts

PROMPTS = (
    ReferencePrompt(id="chat", messages=(Message(role="user", content="What is the capital of France?"),)),
    ReferencePrompt(id="raw", prompt="<|user|>The quick brown fox<|end|>", add_special_tokens=False),
)
AGREES = {
    "tokenizer_prompt_mismatches": 0.0,
    "tokenizer_stress_share": 1.0,
    "detokenizer_stress_share": 1.0,
    "template_mismatches": 0.0,
    "eos_mismatches": 0.0,
}


def differing_metrics(parity: Parity) -> set[str]:
    """Return the metrics that tell of a difference, each with a fault of its own."""
    found = {name for name, value in parity.metrics.items() if value != AGREES[name]}
    assert parity.metrics.keys() == AGREES.keys()
    assert {fault.metric for fault in parity.faults} == found
    return found


# --- the real tokenizers


def test_the_real_export_agrees_on_every_text_and_chat(
    smollm2_checkpoint: Path, smollm2_export: ExportedModel, recipe: Recipe
) -> None:
    parity = check_parity(
        smollm2_checkpoint, smollm2_export.path, recipe.validation.prompts, text=recipe.validation.text, timeout_s=300
    )
    assert parity.metrics == AGREES
    assert parity.faults == ()
    assert parity.stop_ids == (2,)
    assert 1 in parity.template_ids  # <|im_start|>
    assert 2 not in parity.template_ids
    assert len(parity.text_ids) > 4000
    assert parity.prefix_ids == ()


def test_a_tiny_export_agrees_on_every_text_and_chat(tiny_checkpoint: Path, tiny_export: ExportedModel) -> None:
    parity = check_parity(tiny_checkpoint, tiny_export.path, PROMPTS, timeout_s=300)
    assert parity.metrics == AGREES
    assert parity.faults == ()
    assert (parity.stop_ids, parity.template_ids, parity.text_ids) == ((2,), (0, 1, 3, 4, 5), ())


def test_torch_is_not_waited_for(
    tiny_checkpoint: Path, tiny_export: ExportedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert check_parity(tiny_checkpoint, tiny_export.path, PROMPTS, timeout_s=300).metrics == AGREES


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint", ignore=shutil.ignore_patterns("*.safetensors"))


@pytest.fixture
def exported(tiny_export: ExportedModel, tmp_path: Path) -> Path:
    """The export without its model, which nothing here reads."""
    ignored = shutil.ignore_patterns("openvino_model.*")
    return shutil.copytree(tiny_export.path, tmp_path / "exported", ignore=ignored)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def drop_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    model = folder / "openvino_tokenizer.xml"
    model.write_text(re.sub(r'<chat_template value="[^"]*"\s*/>', "", model.read_text()))


def take_detokenizer(folder: Path, smollm2: Path) -> None:
    for suffix in ("xml", "bin"):
        shutil.copyfile(smollm2 / f"openvino_detokenizer.{suffix}", folder / f"openvino_detokenizer.{suffix}")


SABOTAGE: dict[str, tuple[Callable[[Path], None], set[str], str]] = {
    "a tokenizer cut in half": (
        lambda folder: halve(folder / "openvino_tokenizer.bin"),
        set(AGREES),
        "OpenVINO refuses the tokenizer",
    ),
    "a broken generation config": (
        lambda folder: (folder / "generation_config.json").write_text("{") and None,
        set(AGREES),
        "generation_config.json",
    ),
    "no tokenizer": (
        lambda folder: (folder / "openvino_tokenizer.xml").unlink(),
        {"tokenizer_prompt_mismatches", "tokenizer_stress_share"},
        "openvino_tokenizer.xml was not provided",
    ),
    "no detokenizer": (
        lambda folder: (folder / "openvino_detokenizer.xml").unlink(),
        {"detokenizer_stress_share"},
        "Detokenizer model has not been provided",
    ),
    "no template": (drop_template, {"template_mismatches"}, "the engine cannot render it: Chat template wasn't found"),
    "another eos": (
        lambda folder: change(folder / "generation_config.json", eos_token_id=7),
        {"eos_mismatches"},
        "the engine does not stop at 2, where the checkpoint does",
    ),
}


@pytest.mark.parametrize("name", SABOTAGE)
def test_what_is_broken_is_told_and_nothing_else(name: str, tiny_checkpoint: Path, exported: Path) -> None:
    break_it, metrics, words = SABOTAGE[name]
    break_it(exported)
    parity = check_parity(tiny_checkpoint, exported, PROMPTS, timeout_s=300)
    assert differing_metrics(parity) == metrics
    assert any(words in fault.message for fault in parity.faults)


def test_the_detokenizer_of_another_model_is_told(
    tiny_checkpoint: Path, exported: Path, smollm2_export: ExportedModel
) -> None:
    take_detokenizer(exported, smollm2_export.path)
    parity = check_parity(tiny_checkpoint, exported, PROMPTS, timeout_s=300)
    assert differing_metrics(parity) == {"detokenizer_stress_share"}
    assert parity.metrics["detokenizer_stress_share"] < 0.1
    assert "tokens decode otherwise: 6 is '!', in OpenVINO ''" in parity.faults[0].message


def test_a_tokenizer_with_more_tokens_than_the_model_has_is_told(checkpoint: Path, exported: Path) -> None:
    size = json.loads((checkpoint / "tokenizer.json").read_text())["added_tokens"][-1]["id"]  # <|assistant|>
    change(checkpoint / "config.json", vocab_size=size)
    parity = check_parity(checkpoint, exported, PROMPTS, timeout_s=300)
    assert differing_metrics(parity) == {"tokenizer_prompt_mismatches", "tokenizer_stress_share"}
    messages = {fault.subject: fault.message for fault in parity.faults}
    assert f"is beyond the model's {size} embeddings" in messages["chat"]
    assert f"the model has {size} embeddings" in messages["the vocabulary"]


def test_a_checkpoint_without_template_has_only_its_chats_to_complain_of(checkpoint: Path, exported: Path) -> None:
    (checkpoint / "chat_template.jinja").unlink()
    (fault,) = check_parity(checkpoint, exported, PROMPTS, timeout_s=300).faults
    assert (fault.metric, fault.subject) == ("template_mismatches", "chat")
    assert "the checkpoint has no chat template" in fault.message


def test_a_child_that_does_not_end_in_time_is_a_fault_of_everything(tiny_checkpoint: Path, exported: Path) -> None:
    parity = check_parity(tiny_checkpoint, exported, PROMPTS, timeout_s=0.01)
    assert differing_metrics(parity) == set(AGREES)
    assert parity.metrics["tokenizer_prompt_mismatches"] == 2
    assert parity.stop_ids == ()


# --- judging


def seen(**changes: Any) -> dict[str, Any]:
    """Return what the child process would see of a good export."""
    text = {"subject": "plain 1", "text": "Hi", "source": [5, 6], "exported": [5, 6]}
    same = {"source": "Hi", "exported": "Hi"}
    return {
        "prompts": [{**text, "subject": "chat"}],
        "texts": [text, text],
        "decoded": [{"subject": "plain 1", **same}],
        "vocabulary": {"last": 99, "different": []},
        "chats": [{"subject": "chat", **same}],
        "has_template": True,
        "special_ids": [1, 2, 3],
        "endings": endings().model_dump(),
        "text_ids": [],
        "prefix_ids": [1],
    } | changes


def test_a_good_export_has_no_faults() -> None:
    parity = judge_parity(seen())
    assert parity.metrics == AGREES
    assert (parity.faults, parity.stop_ids, parity.template_ids, parity.prefix_ids) == ((), (2,), (1, 3), (1,))


def test_ids_that_differ_are_told_with_their_tokens() -> None:
    text = {
        "subject": "plain 1",
        "text": "Hello",
        "source": [5, 6, 7],
        "exported": [5, 8],
        "pieces": [["b", "c"], ["x"]],
    }
    parity = judge_parity(seen(texts=[text, text], prompts=[{**text, "subject": "chat"}]))
    assert parity.metrics["tokenizer_stress_share"] == 0.5  # one of: this text, the vocabulary
    assert parity.metrics["tokenizer_prompt_mismatches"] == 1
    assert (
        "from position 1 on: Hugging Face [6, 7] ['b', 'c'] (3 in all), OpenVINO [8] ['x'] (2 in all), in 'Hello'"
        in (parity.faults[0].message)
    )


def test_texts_that_differ_are_told_with_their_surroundings() -> None:
    source = "a" * 50 + "é" + "b" * 100
    chats = [{"subject": "long", "source": source, "exported": source.replace("é", "e")}]
    (fault,) = judge_parity(seen(chats=chats)).faults
    assert fault.metric == "template_mismatches"
    assert (
        f"from character 50 on: Hugging Face ...'{'a' * 30}é{'b' * 49}'..., OpenVINO ...'{'a' * 30}e" in fault.message
    )


def test_a_chat_that_the_checkpoint_refuses_is_nobody_s_fault() -> None:
    assert judge_parity(seen(chats=[{"subject": "system", "exported": "Hi"}])).metrics == AGREES


@given(bad=st.integers(0, 40), good=st.integers(0, 40))
def test_shares_count_every_text_and_faults_name_ten(bad: int, good: int) -> None:
    entries = [{"subject": str(n), "source": "x", "exported": "y" if n < bad else "x"} for n in range(bad + good)]
    parity = judge_parity(seen(decoded=entries))
    assert parity.metrics["detokenizer_stress_share"] == pytest.approx((good + 1) / (bad + good + 1))
    assert len(parity.faults) == min(bad, 11)
    if bad > 10:
        assert parity.faults[-1].subject == f"{bad - 10} more"


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_parted_is_where_two_sequences_first_differ(one: list[int], other: list[int]) -> None:
    at = parted(one, other)
    assert one[:at] == other[:at]
    assert one[at : at + 1] != other[at : at + 1] or one == other


# --- what ends an answer


def endings(**changes: Any) -> Endings:
    """Return what a plain chat model states: <|im_end|>, 2, everywhere."""
    return Endings.model_validate(
        {
            "checkpoint_config": (2,),
            "checkpoint_generation": (2,),
            "checkpoint_tokenizer": 2,
            "exported_config": (2,),
            "exported_tokenizer": 2,
            "engine_tokenizer": 2,
            "engine": (2,),
            "turn_end": 2,
            "vocabulary": 100,
        }
        | changes
    )


def published(config: list[int], generation: list[int], tokenizer: int, turn_end: int | None) -> Endings:
    """Return a model's own statements, exported as they are."""
    return endings(
        checkpoint_config=config,
        checkpoint_generation=generation,
        checkpoint_tokenizer=tokenizer,
        exported_config=config,
        exported_tokenizer=tokenizer,
        engine_tokenizer=tokenizer,
        engine=sorted(generation) or [tokenizer],
        turn_end=turn_end,
        vocabulary=262_144,
    )


GOOD_ENDINGS = {
    "phi-3: eos in config, more to stop at in generation_config": published(
        [32000], [32000, 32001, 32007], 32000, 32007
    ),
    "llama-3.1: a list in both": published([128001, 128008, 128009], [128001, 128008, 128009], 128009, 128009),
    "llama-3: config knows only the base model's": published([128001], [128001, 128009], 128009, 128009),
    "gemma: <end_of_turn> in generation_config": published([1], [1, 107], 1, 107),
    "gemma-3": published([1, 106], [1, 106], 1, 106),
    "qwen2.5": published([151645], [151645, 151643], 151645, 151645),
    "mistral: </s> ends the turn": published([2], [2], 2, 2),
    "a base model without a template": published([0], [0], 0, None),
    "no generation_config": published([2], [], 2, 2),
    "a template with turns in plain text": published([11], [11], 11, None),
    "a tokenizer without eos": endings(checkpoint_tokenizer=None, exported_tokenizer=None, engine_tokenizer=-1),
    "config.json without eos": endings(checkpoint_config=(), exported_config=()),
}


@pytest.mark.parametrize("name", GOOD_ENDINGS)
def test_good_models_agree_on_what_ends_an_answer(name: str) -> None:
    assert list(disagreements(GOOD_ENDINGS[name])) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"engine": (), "checkpoint_config": (), "checkpoint_generation": ()}, "nothing ends an answer"),
        ({"engine": (2, 5)}, "the engine stops at 5, where the checkpoint goes on"),
        ({"checkpoint_generation": (2, 5)}, "the engine does not stop at 5"),
        ({"exported_config": (5,)}, "eos_token_id is 5 in the export, 2 in the checkpoint"),
        ({"exported_tokenizer": 5}, "the export's eos is 5, the checkpoint's tokenizer has 2"),
        ({"exported_tokenizer": None}, "the export's eos is None"),
        ({"engine_tokenizer": -1}, "the export's eos is -1"),
        ({"turn_end": 7}, "it ends an answer with 7, at which the engine does not stop (it stops at 2)"),
        (
            {"checkpoint_tokenizer": 7, "exported_tokenizer": 7, "engine_tokenizer": 7},
            "the tokenizer's eos is 7, at which the engine does not stop",
        ),
        ({"engine": (2, 100), "checkpoint_generation": (2, 100)}, "eos_token_id 100: the model has 100 tokens"),
    ],
)
def test_each_disagreement_is_told_once(changes: dict[str, Any], words: str) -> None:
    ((_, message),) = disagreements(endings(**changes))
    assert words in message


# --- the stress set


def test_the_stress_set_is_as_broad_as_it_says() -> None:
    special = [f"<|reserved_{n}|>" for n in range(300)]
    texts = stress_texts(special)
    assert 150 <= len(stress_texts([])) < len(texts) <= 250
    assert len(set(texts.values())) == len(texts)
    assert {"", " "} < set(texts.values())
    assert max(map(len, texts.values())) >= 20_000
    assert any(special[0] * 2 in text for text in texts.values())
    assert 20 <= len(stress_chats(special)) <= 40
    assert all(" " in name for name in stress_chats(special))

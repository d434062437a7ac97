"""The tokenizer of the real file against llama.cpp's ids; tests/data/gguf_tokenizer says how those were made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import regex

from tasks.download.gguf_tokenizer import TokenizerFields, build_tokenizer
from tasks.errors import SourceError
from tests.gguf_files import byte_tokens

DATA = Path(__file__).parents[2] / "data" / "gguf_tokenizer"
TEXTS: dict[str, list[str]] = json.loads((DATA / "texts.json").read_text(encoding="utf-8"))
EXPECTED: dict[str, Any] = json.loads((DATA / "expected.json").read_text(encoding="utf-8"))

# llama.cpp knows letters and digits up to Unicode 15.1; tokenizers follows the declared regex with 16.0.
DIFFERS = "where llama.cpp differs"
# U+0004, 6, 13, 14, 16, 1D and the unassigned planes 4 to 11 need bytes that no token of this vocabulary stands for.
LOSSY = "without bytes in the vocabulary"
LOST_BYTES = {0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xF1, 0xF2}
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SPECIAL_TEXTS = TEXTS["special tokens"]


@pytest.fixture(scope="module")
def tokenizer(smollm2_checkpoint: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2_checkpoint, local_files_only=True)


@pytest.fixture(scope="module")
def fields(smollm2_checkpoint: Path) -> TokenizerFields:
    """The file's fields, read back from the tokenizer.json that they became."""
    stored = json.loads((smollm2_checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = stored["model"]["vocab"]
    special = {token["id"] for token in stored["added_tokens"] if token["special"]}
    return TokenizerFields(
        model="gpt2",
        pre="smollm",
        tokens=tuple(sorted(vocabulary, key=vocabulary.__getitem__)),
        token_types=tuple(3 if index in special else 1 for index in range(len(vocabulary))),
        merges=tuple(" ".join(pair) for pair in stored["model"]["merges"]),
        bos=1,
        eos=2,
    )


def cases(pre: str) -> Iterator[tuple[str, str, list[int]]]:
    for group, texts in TEXTS.items():
        for text, ids in zip(texts, EXPECTED["ids"][pre][group], strict=True):
            yield group, text, ids


def encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def test_the_texts_are_many_and_differ() -> None:
    texts = [text for members in TEXTS.values() for text in members]
    assert len(set(texts)) == len(texts) >= 500
    assert len(TEXTS[DIFFERS]) == 3


@pytest.mark.slow
def test_ids_are_llama_cpps(tokenizer: Any) -> None:
    wrong = [(group, text) for group, text, ids in cases("smollm") if encode(tokenizer, text) != ids]
    assert wrong == [(DIFFERS, text) for text in TEXTS[DIFFERS]]


@pytest.mark.slow
def test_ids_of_the_gpt2_pre_tokenizer_are_llama_cpps(fields: TokenizerFields) -> None:
    gpt2 = build_tokenizer(fields.model_copy(update={"pre": "gpt-2"}))
    wrong = [(group, text) for group, text, ids in cases("gpt-2") if encode(gpt2, text) != ids]
    assert wrong == [(DIFFERS, text) for text in TEXTS[DIFFERS]]
    assert EXPECTED["ids"]["gpt-2"] != EXPECTED["ids"]["smollm"]


@pytest.mark.slow
def test_where_llama_cpp_differs_ours_follows_the_declared_regex(fields: TokenizerFields) -> None:
    backend = build_tokenizer(fields.model_copy(update={"pre": "gpt-2"})).backend_tokenizer
    for text in [*TEXTS[DIFFERS], *TEXTS["contractions"], *TEXTS["whitespace"], *TEXTS["indic"]]:
        pieces = [text[start:end] for _, (start, end) in backend.pre_tokenizer.pre_tokenize_str(text)]
        assert pieces == regex.findall(GPT2, text)


@pytest.mark.slow
def test_decoding_gives_the_text_back(tokenizer: Any) -> None:
    for group, text, _ in cases("smollm"):
        decoded = tokenizer.decode(
            encode(tokenizer, text), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        kept = bytes(byte for byte in text.encode() if byte not in LOST_BYTES).decode(errors="replace")
        assert decoded == kept
        assert (kept == text) == (group != LOSSY and not LOST_BYTES & set(text.encode()))


@pytest.mark.slow
def test_only_the_named_texts_lose_bytes(tokenizer: Any) -> None:
    lossy = [text for _, text, _ in cases("smollm") if tokenizer.decode(encode(tokenizer, text)) != text]
    assert lossy == [*TEXTS[LOSSY], TEXTS[DIFFERS][-1]]
    alphabet = set(byte_tokens())
    assert len(alphabet - set(tokenizer.get_vocab())) == 21  # 13 of them occur in no UTF-8 text


@pytest.mark.slow
def test_openvinos_tokenizer_gives_the_same_ids(tokenizer: Any) -> None:
    """Holds because each pre-tokenizer is one regex: as two steps, blanks before a digit came out differently."""
    import openvino
    from openvino_tokenizers import convert_tokenizer

    compiled = openvino.Core().compile_model(convert_tokenizer(tokenizer), "CPU")
    wrong = [text for _, text, _ in cases("smollm") if compiled([text])[0][0].tolist() != encode(tokenizer, text)]
    assert wrong == [text for _, text, _ in cases("smollm") if text.endswith("\x00")]  # OpenVINO drops these


@pytest.mark.slow
def test_token_ids_template_and_limits(tokenizer: Any) -> None:
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<|im_start|>", 1)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id) == (2, 0)
    assert (len(tokenizer), tokenizer.model_max_length) == (49152, 8192)
    assert encode(tokenizer, "hello") == tokenizer("hello").input_ids  # add_bos_token is false in this file
    assert not tokenizer.clean_up_tokenization_spaces
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], tokenize=False, add_generation_prompt=True
    )
    assert chat in SPECIAL_TEXTS


@pytest.mark.slow
def test_all_control_tokens_are_special(tokenizer: Any) -> None:
    assert tokenizer.decode(list(range(17)) + encode(tokenizer, "hello"), skip_special_tokens=True) == "hello"
    assert encode(tokenizer, "".join(tokenizer.convert_ids_to_tokens(list(range(17))))) == list(range(17))


TINY = TokenizerFields(
    model="gpt2",
    pre="smollm",
    tokens=("<s>", "</s>", "a", "b", "ab", "<tool>"),
    token_types=(3, 3, 1, 1, 1, 4),
    merges=("a b",),
    bos=0,
    eos=1,
)


def test_user_defined_tokens_are_found_and_kept() -> None:
    tiny = build_tokenizer(TINY)
    assert encode(tiny, "ab<tool>b<s>") == [4, 5, 3, 0]
    assert tiny.decode([4, 5, 3, 0], skip_special_tokens=True) == "ab<tool>b"


def test_bos_and_eos_are_added_where_the_file_says_so(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    build_tokenizer(TINY.model_copy(update={"add_bos": True, "add_eos": True})).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert loaded("ab").input_ids == [0, 4, 1]
    assert encode(loaded, "ab") == [4]


def test_stops_are_eos_and_eot() -> None:
    assert TINY.stops == [1]
    assert TINY.model_copy(update={"eot": 5}).stops == [1, 5]
    assert TINY.model_copy(update={"eot": 1}).stops == [1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "llama"}, "tokenizer.ggml.model is 'llama'"),
        ({"pre": "qwen2"}, "tokenizer.ggml.pre is 'qwen2'; proven against llama.cpp are only smollm, gpt-2"),
        ({"pre": "default"}, "tokenizer.ggml.pre is 'default'"),
        ({"token_types": (3, 3)}, "6 tokens and 2 token types"),
        ({"tokens": ("<s>", "</s>", "a", "b", "a", "<tool>")}, "the token 'a' 2 times"),
        ({"eos": 6}, "eos token has the id 6; there are 6 tokens"),
        ({"merges": ("a b", "ab")}, "has 'ab', which is not two tokens"),
        ({"merges": ("a b", "a b b")}, "has 'a b b', which is not two tokens"),
        ({"merges": ("a c",)}, "do not fit its tokens"),
        ({"bos": None, "add_bos": True}, "add a bos token, and names none"),
    ],
)
def test_what_cannot_be_right_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SourceError, match=regex.escape(words)):
        build_tokenizer(TINY.model_copy(update=changes))

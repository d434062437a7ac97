from __future__ import annotations

import json
import random
import sysconfig
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.records import Answer, PromptResult, ScoredToken
from tasks.validate.sanity import Loop, differing, find_loop, said

STOP, TEMPLATE = (2, 9), (0, 1)
Encode = Callable[[str], list[int]]


def answer(text: str = "Paris.", ids: tuple[int, ...] = (11, 12, 2), *, finish: str = "stop") -> Answer:
    return Answer.model_validate(
        {
            "text": text,
            "token_ids": ids,
            "finish_reason": finish,
            "prompt_tokens": 5,
            "ttft_ms": 1.0,
            "tpot_ms": 1.0,
            "seconds": 1.0,
        }
    )


def result(said_: Answer, *, tokens: tuple[ScoredToken, ...] = (), name: str = "capital") -> PromptResult:
    return PromptResult(id=name, prompt="What?", answer=said_, failures=(), tokens=tokens)


def scored(*, agrees: bool = True, stop: float = 0.0, text: str = " x") -> ScoredToken:
    return ScoredToken(
        text=text, kl=0.1, source_probability=0.5, source_choice="y", agrees=agrees, stop_probability=stop
    )


def faults(said_: Answer, *tokens: ScoredToken) -> dict[str, str]:
    found = said([result(said_, tokens=tokens)], stop_ids=STOP, template_ids=TEMPLATE)
    assert {fault.subject for fault in found} <= {"capital"}
    assert len({fault.metric for fault in found}) == len(found)  # at most one an answer and metric
    return {fault.metric: fault.message for fault in found}


# --- loops

BEGINNING = [57, 53, 59, 62, 55, 61, 58, 52, 64, 56]


@pytest.mark.parametrize("period", [1, 2, 5, 20, 40])
def test_a_loop_after_a_good_beginning_is_found(period: int) -> None:
    block = [100 + number for number in range(period)]
    looping = BEGINNING + block * (160 // period)
    assert find_loop(looping) == Loop(period=period, length=160)
    assert find_loop(looping + block[: period // 2]) == Loop(period=period, length=160 + period // 2)  # cut within
    assert find_loop([*looping, 99]) is None  # it got out of it, or stopped


def test_an_answer_that_is_nothing_but_a_loop_is_found_sooner() -> None:
    assert find_loop([0] * 24) == Loop(period=1, length=24)
    assert find_loop([5, *[0] * 31]) == Loop(period=1, length=31)
    assert find_loop(BEGINNING + [0] * 28) is None
    assert find_loop([]) is None


@given(st.lists(st.integers(0, 49000), unique=True, max_size=300))
def test_tokens_that_never_recur_are_no_loop(ids: list[int]) -> None:
    assert find_loop(ids) is None


@given(
    beginning=st.lists(st.integers(0, 5), max_size=60),
    block=st.lists(st.integers(0, 5), min_size=1, max_size=64),
    rounds=st.integers(3, 5),
)
def test_what_is_repeated_often_enough_is_found_with_a_period_that_fits(
    beginning: list[int], block: list[int], rounds: int
) -> None:
    ids = beginning + block * max(rounds, -(-64 // len(block)))
    loop = find_loop(ids)
    assert loop is not None
    assert loop.period <= len(block)
    end = ids[-loop.length :]
    assert end[loop.period :] == end[: -loop.period]


@pytest.fixture(scope="module")
def encode(smollm2_checkpoint: Path) -> Encode:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(smollm2_checkpoint / "tokenizer.json"))
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)


REFRAIN = (
    "Row, row, row your boat,\nGently down the stream,\nMerrily, merrily, merrily, merrily,\nLife is but a dream.\n\n"
)
COLUMNS = ["month", "sales", "cost", "profit", "tax", "staff", "hours", "rate"]
GOOD_ANSWERS = {
    "counting": ", ".join(str(number) for number in range(1, 200)),
    "one a line": "\n".join(f"{number}." for number in range(1, 101)),
    "numbered list": "".join(f"{number}. Item {number} of the list\n" for number in range(1, 60)),
    "check list": "".join(
        f"- [ ] {what}\n" for what in ("bread", "milk", "eggs", "salt", "tea", "rice", "oil", "figs", "nuts")
    ),
    "wide table": "\n".join(
        [" | ".join(["", *COLUMNS, ""]), "|" + " --- |" * 8, *(f"| {n} |" + " 0 |" * 7 for n in range(1, 13))]
    ),
    "rules": "\n\n".join(f"Chapter {n}\n{'-' * 70}\nIt was {n} o'clock." for n in range(1, 12)),
    "matrix of zeros": "[" + ",\n ".join(["[0, 0, 0, 0]"] * 4) + "]",
    "identity matrix": str(numpy.eye(8, dtype=int).tolist()),
    "multiplication table": "\n".join(" ".join(f"{a * b:4}" for b in range(1, 11)) for a in range(1, 11)),
    "song": REFRAIN * 2,
    "json": json.dumps([{"id": n, "name": f"user{n}", "active": True, "tags": []} for n in range(40)], indent=2),
    "base64": b64encode(bytes(number * 37 % 251 for number in range(700))).decode(),
    "hex dump": "\n".join(
        f"{at:08x}  " + " ".join(f"{(at + n) * 13 % 256:02x}" for n in range(16)) for at in range(0, 512, 16)
    ),
    "setters": "".join(f"    def get_{n}(self):\n        return self._{n}\n\n" for n in COLUMNS),
    "tests": "".join(f"assert add({n}, {n + 1}) == {2 * n + 1}\n" for n in range(40)),
    "html": "<table>" + "".join(f"<tr><td>{n}</td><td>{n * n}</td></tr>\n" for n in range(40)) + "</table>",
    "dna": "ATG" + "".join(random.Random(0).choices("ACGT", k=400)),
    "laughter": "Ha" * 12 + "! That is " + "very " * 12 + "funny.",
    "chorus": "Na na na na, na na na na, hey hey hey, goodbye.\n" * 3 + "And so they sang until the morning.",
    "csv": "a,b,c,d\n" + "".join(f"{n},0,0,0\n" for n in range(60)),
}


@pytest.mark.parametrize("name", GOOD_ANSWERS)
def test_no_good_answer_is_a_loop_wherever_it_is_cut(name: str, encode: Encode) -> None:
    ids = encode(GOOD_ANSWERS[name])
    assert [cut for cut in range(len(ids) + 1) if find_loop(ids[:cut])] == []


def real_texts() -> Iterator[str]:
    """Sources of the standard library and documentation of installed packages."""
    sources = sorted(path for path in Path(sysconfig.get_path("stdlib")).glob("*.py"))
    site = Path(sysconfig.get_path("purelib"))
    found = (path for kind in ("md", "rst") for path in site.rglob(f"*.{kind}") if "tests" not in path.parts)
    documents = sorted(path for path in found if path.stat().st_size > 4000)  # the rest are mostly stubs
    for path in (*sources[::8], *documents[:40]):
        yield path.read_bytes()[:20_000].decode("utf-8", errors="ignore")


def test_real_text_hardly_ever_looks_like_a_loop_wherever_it_is_cut(encode: Encode) -> None:
    cuts = found = 0
    for text in real_texts():
        ids = encode(text)
        for first in range(0, len(ids), 1024):  # as long as an answer may be
            passage = ids[first : first + 1024]
            cuts += len(passage)
            found += sum(find_loop(passage[:cut]) is not None for cut in range(1, len(passage) + 1))
    assert cuts > 100_000
    assert found / cuts < 1e-4


def loop_result(*, agreeing: int, before: int = 10, period: int = 20, rounds: int = 5) -> PromptResult:
    ids = tuple(BEGINNING[:before]) + tuple(range(100, 100 + period)) * rounds
    tokens = tuple(scored(agrees=before <= at < before + agreeing) for at in range(len(ids)))
    return result(answer("and so on", ids, finish="length"), tokens=tokens)


def test_a_loop_is_no_fault_where_the_source_model_goes_into_it_too() -> None:
    for agreeing, loops in ((100, False), (40, False), (39, True), (0, True)):
        (*found,) = said([loop_result(agreeing=agreeing)], stop_ids=STOP, template_ids=TEMPLATE)
        assert [fault.metric for fault in found] == ["looping_answers"] * loops
    (short,) = said([loop_result(agreeing=15, period=1, rounds=80)], stop_ids=STOP, template_ids=TEMPLATE)
    assert "from token 10 of 90 on, 1 tokens" in short.message
    assert "80.0 times" in short.message


def test_without_the_source_model_every_loop_is_a_fault() -> None:
    assert set(faults(answer("!" * 96, (5,) * 96, finish="length"))) == {"looping_answers"}


# --- empty and malformed


@pytest.mark.parametrize("text", ["", " ", "\n\t \u00a0"])
def test_an_answer_without_text_is_empty(text: str) -> None:
    assert set(faults(answer(text, (2,)))) == {"empty_answers"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Paris\x00 is", "control character U+0000 (1 times)"),
        ("\x1b[31mred\x1b[0m", "control character U+001B (2 times)"),
        ("a \ufffd b", "replacement character U+FFFD"),
        ("a\ufffd", "replacement character U+FFFD"),
        ("a \ud800 b", "lone surrogate U+D800"),
        ("a \uf0b7 b", "private use character U+F0B7"),
        ("a \uffff b \U00050000", "character that does not exist U+FFFF, U+50000"),
        ("TheĠcapitalĠofĠFrance", "signs for blanks Ġ"),
        ("TheĠcapital of FranceĠis Paris.ĊĊYes", "signs for blanks Ġ, Ċ"),
        ("▁Paris", "signs for blanks ▁"),
        ("It's âĢľParisâĢĿ", "signs for bytes âĢ"),
        ("Yes.<0x0A>", "signs for bytes <0x0A>"),
        ("Paris.<|im_end|>\n<|im_start|>user", "template markers <|im_end|>, <|im_start|>"),
        ("Paris.<end_of_turn>", "template markers <end_of_turn>"),
        ("[/INST] Paris", "template markers [/INST]"),
        ("<\uff5cUser\uff5c>", "template markers"),
    ],
)
def test_what_no_good_text_has_is_told(text: str, words: str) -> None:
    found = faults(answer(text))
    assert set(found) == {"malformed_answers"}
    assert words in found["malformed_answers"]


@pytest.mark.parametrize(
    "text",
    [
        "Paris.\n\n\tIt is\r\nthe capital — “la Ville lumière”.",
        "Ġorġ ra ħut fil-Ġnien; Ċkejken. MAĠĠ",  # Maltese
        "▁▂▃▄▅▆▇█ 12 %",
        "SentencePiece writes a blank as ▁ and byte-level BPE as Ġ.",
        "In SentencePiece a word begins with ▁word.",
        "👩🏽‍💻 🫨 🪿 \U0001fae9 नमस्ते שלום 你好 \u200bzero\u00adwidth\ufeff",
        "x |> f <| y; a <| b |> c; <s>struck out</s> <b>bold</b> <pad> i < 0x0A",
        "#include <stdio.h>\nint a[] = {0x00, 0xFF};",
        "[INSTALL] see [1]; List<T>",
    ],
)
def test_good_text_is_not_malformed(text: str) -> None:
    assert faults(answer(text)) == {}


@given(st.text(st.characters(categories=("L", "M", "N", "P", "S", "Z"), exclude_characters="\ufffdĠĊ▁<[â"), min_size=1))
def test_letters_marks_numbers_punctuation_and_symbols_are_good_text(text: str) -> None:
    assert "malformed_answers" not in faults(answer(text))


def test_documentation_of_installed_packages_is_good_text() -> None:
    for text in real_texts():
        assert "malformed_answers" not in faults(answer(text))


def test_an_answer_that_was_cut_may_end_within_a_character() -> None:
    assert faults(answer("Yes \ufffd", (11, 12), finish="length")) == {}
    assert set(faults(answer("Yes \ufffd", (11, 12)))) == {"malformed_answers"}
    assert set(faults(answer("\ufffd Yes", (11, 12), finish="length"))) == {"malformed_answers"}


@pytest.mark.parametrize("ids", [(11, 0, 12, 2), (11, 12, 1), (11, 2, 12, 2), (9, 2)])
def test_special_tokens_within_an_answer_are_told(ids: tuple[int, ...]) -> None:
    assert "special tokens" in faults(answer("Paris.", ids))["malformed_answers"]


def test_all_that_is_malformed_is_one_fault() -> None:
    message = faults(answer("a\x00\x01\x02\x03\x04\x05\x06 \ufffd b", (0, 11)))["malformed_answers"]
    assert "special tokens 0" in message
    assert "and 2 more (7 times)" in message
    assert "U+FFFD" in message


# --- stops and repetition


def test_a_stop_is_missed_where_the_source_is_sure_of_it_and_the_answer_never_stops() -> None:
    tokens = (scored(text="Paris"), scored(text="."), scored(stop=0.97, agrees=False, text=" And"), scored(text=" so"))
    message = faults(answer("Paris. And so", (11, 12, 13, 14), finish="length"), *tokens)["missed_stops"]
    assert "at token 2 with probability 0.970 after 'Paris.'" in message
    assert "' And'" in message
    assert faults(answer("Paris. And so", (11, 12, 13, 2)), *tokens) == {}  # it did stop
    unsure = (scored(), scored(stop=0.9), scored())
    assert faults(answer("Paris and", (11, 12, 13), finish="length"), *unsure) == {}


def test_answers_that_differ_between_rounds_are_told_with_both_texts() -> None:
    first = [result(answer("The capital is Paris.", (5, 6, 7, 2)), name="a"), result(answer(), name="b")]
    again = [answer("The capital is Lyon.", (5, 6, 8, 2)), answer()]
    (fault,) = differing(first, again)
    assert (fault.metric, fault.subject) == ("unrepeatable_answers", "a")
    assert "from token 2 on" in fault.message
    assert "Paris" in fault.message
    assert "Lyon" in fault.message
    assert differing(first, [one.answer for one in first]) == ()
    shorter = answer("The capital", (5, 6))
    assert "from token 2 on" in differing(first[:1], [shorter])[0].message

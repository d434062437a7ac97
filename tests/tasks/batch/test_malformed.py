"""100,000 rows of every kind of rubbish: each is told with its reason, none is lost."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from tests.tasks.batch.conftest import Run

ROWS = 100_000
# each with the beginning of its reason
JSON = {
    b"": "is not JSON",
    b"\x00\x00\x00": "is not JSON",
    b"not json at all": "is not JSON",
    b'{"prompt": "cut of': "is not JSON",
    b'{"prompt": "a"}{"prompt": "b"}': "is not JSON",
    b"{'prompt': 'a'}": "is not JSON",
    b'{"prompt": NaN}': "is not JSON",
    b'{"prompt": "\\ud83d"}': "is not JSON",
    b'{"a":' * 300: "is not JSON",
    b'{"prompt": "\xff\xfe"}': "is not UTF-8",
    '{"prompt": "wide"}'.encode("utf-16"): "is not UTF-8",
    b"[]": "is not an object, but a list",
    b'"prompt"': "is not an object, but a text",
    b"0": "is not an object, but a number",
    b"true": "is not an object, but true or false",
    b"null": "is not an object, but null",
    b"{}": "has neither of prompt and messages",
    b'{"Prompt": "a"}': "has neither of prompt and messages",
    b'{"prompt": null}': "has neither of prompt and messages",
    b'{"prompt": 5}': "prompt is no text",
    b'{"prompt": ["a"]}': "prompt is no text",
    b'{"prompt": "a", "messages": []}': "has both of prompt and messages",
    b'{"messages": []}': "messages: has 0 items",
    b'{"messages": {}}': "messages: Input should be a valid list",
    b'{"messages": [1]}': "messages[0]: Input should be a valid dictionary",
    b'{"messages": [{"role": "user"}]}': "messages[0].content is missing",
    b'{"messages": [{"content": "a"}]}': "messages[0]: Unable to extract tag",
    b'{"messages": [{"role": "user", "content": 7}]}': "messages[0].content: Input should be a valid string",
    b'{"prompt": "a", "settings": []}': "settings is not an object",
    b'{"prompt": "a", "settings": {"temperature": "hot"}}': "temperature: Input should be a valid number",
    b'{"prompt": "a", "settings": {"max_tokens": -1}}': "max_tokens: Input should be greater than or equal to 1",
    b'{"prompt": "a", "settings": {"max_tokens": 1e99}}': "max_tokens: Input should be a valid integer",
    b'{"prompt": "a", "settings": {"nonsense": 1}}': "nonsense is not supported",
    b'{"prompt": "a", "settings": {"seed": 1.5}}': "seed: Input should be a valid integer",
    b'{"prompt": "a", "id": {}}': "id is neither a text nor a whole number",
    b'{"prompt": "a", "answer": "b"}': "has answer, which the output adds",
    b'{"prompt": "' + b"x" * 5000 + b'"}': "has 5015 bytes, more than max_row_bytes 4000",
}
CSV = {
    b"a": "has 1 fields, the header has 3",
    b"a,b,c,d": "has 4 fields, the header has 3",
    b",,": "has neither of prompt and messages",
    b"\xff,a,": "is not UTF-8",
    b"1,a\x00,": "has a NUL character",
    b'1,"a" b,': "is not CSV: text follows a closing quote",
    b'1,a,"{not json}"': "settings is not JSON",
    b'1,a,"[1]"': "settings is not an object",
    b'1,a,"{""top_p"": 7}"': "top_p: Input should be less than or equal to 1",
    b"1," + b"x" * 5000 + b",": "has 5004 bytes, more than max_row_bytes 4000",
}


@pytest.mark.parametrize(("name", "kinds"), [("in.jsonl", JSON), ("in.csv", CSV)])
def test_malformed_rows_are_told_and_none_is_lost(run: Run, tmp_path: Path, name: str, kinds: dict[bytes, str]) -> None:
    chance = random.Random(7)
    lines = [chance.choice(list(kinds)) for _ in range(ROWS)]
    fine = dict.fromkeys(range(0, ROWS, 1000), b'{"prompt": "fine"}' if name == "in.jsonl" else b"1,fine,")
    lines = [fine.get(number, line) for number, line in enumerate(lines)]
    header = [b"id,prompt,settings"] if name == "in.csv" else []
    (tmp_path / name).write_bytes(b"\n".join([*header, *lines, b""]))
    blank = [number for number, line in enumerate(lines) if not line]
    done = run(name, "out.jsonl", max_row_bytes=4000)
    assert done.run.rows == ROWS - len(blank) and done.run.errors == 0
    found = [json.loads(line) for line in (tmp_path / "out.jsonl.rejects.jsonl").read_bytes().split(b"\n")[:-1]]
    first = 1 + len(header)
    expected = [number for number, line in enumerate(lines) if line and number not in fine]
    assert [one["line"] - first for one in found] == expected
    wrong = Counter(
        (lines[one["line"] - first][:40], one["reason"])
        for one in found
        if not one["reason"].startswith(kinds[lines[one["line"] - first]])
    )
    assert not wrong
    assert all(one["row"] for one in found if lines[one["line"] - first] != b",,")
    answered = (tmp_path / "out.jsonl").read_text().splitlines()
    assert len(answered) == len(fine) == done.run.rows - done.run.rejected

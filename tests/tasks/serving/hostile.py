"""What nobody should send: some 780 requests that are wrong, huge, deep, broken or spiteful, the same in each run."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
VALID: dict[str, dict[str, Any]] = {
    CHAT: {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4},
    TEXT: {"model": "tiny", "prompt": "Hello", "max_tokens": 4},
}
FIELDS = (
    *("model", "stream", "stream_options", "stop", "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "n"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "user", "logprobs", "messages", "prompt", "tools"),
    *("max_completion_tokens", "top_logprobs", "response_format", "tool_choice", "parallel_tool_calls", "echo"),
    *("best_of", "logit_bias", "__class__", "", "constructor"),
)
VALUES = (
    *("null", "true", "-1", "0", "1.5", "-0.0", "1e-45", "1e308", "9223372036854775808", "1" + "0" * 400, '""', '"x"'),
    *("[]", "{}", "[[]]", "[null]", '[{"role":"user"}]', '{"type":"x"}', '{"":{}}', '"\\u0000"', '"\\ud83d\\ude00"'),
)


def http(
    path: str | bytes, body: bytes = b"", *, method: str = "POST", headers: tuple[bytes, ...] = (), json_: bool = True
) -> bytes:
    """Return one request, after which the server closes."""
    raw = path if isinstance(path, bytes) else path.encode()
    kind = (b"Content-Type: application/json",) if json_ and method == "POST" else ()
    length = (b"Content-Length: %d" % len(body),) if method == "POST" else ()
    lines = (b"%s %s HTTP/1.1" % (method.encode(), raw), b"Host: 127.0.0.1", b"Connection: close")
    return b"\r\n".join((*lines, *kind, *length, *headers, b"", body))


def asked(path: str = CHAT, **changes: object) -> bytes:
    """Return a valid request with some fields changed."""
    return http(path, json.dumps({**VALID[path], **changes}).encode())


def texts() -> Iterator[bytes]:
    """Bodies that are no JSON, or odd JSON."""
    whole = json.dumps(VALID[CHAT])
    odd = (
        *(b"", b" ", b"\x00", b"null", b"true", b"0", b'""', b"[]", b"{}", b"{", b"}", b"[", b"NaN", b"-", b"\xff\xfe"),
        *(b'{"model":"tiny","model":"tiny"}', b'{"model":NaN}', b'{"model":Infinity}', b'{"model":-Infinity}'),
        *(b'{"n":1e999}', b'{"n":-1e999}', b'{"n":0x10}', b'{"n":01}', b'{"n":1.}', b"{'model':'tiny'}", b'{"a":1,}'),
        *(b'{"model":"\xc3\x28"}', b'{"model":"\xed\xa0\x80"}', b'{"model":"\\ud800"}', b'{"model":"\\udc00\\ud800"}'),
        *(b'{"model":"a\nb"}', b'{"model":"\x00"}', b'{"model":"\\x00"}', b'{"model":"\\u12"}', b'{"\\ud800":1}'),
        *(b"\xef\xbb\xbf" + whole.encode(), whole.encode("utf-16"), whole.encode("utf-32"), whole.encode() + b"\x00"),
        *(whole.encode() * 2, whole.encode() + b"//", b"/**/" + whole.encode(), b"data: " + whole.encode()),
    )
    for path in (CHAT, TEXT):
        yield from (http(path, body) for body in odd)
        yield from (http(path, opening * depth) for opening in (b"[", b'{"a":') for depth in (10, 1000, 100_000))
    for depth in (10, 60, 70, 250, 260, 1020, 1030, 5000, 100_000):
        deep = b"[" * depth + b"]" * depth
        nested = b'{"a":' * depth + b"1" + b"}" * depth
        arguments = json.dumps(nested.decode()).encode()
        call = b'{"id":"a","type":"function","function":{"name":"a","arguments":' + arguments + b"}}"
        yield http(TEXT, json.dumps(VALID[TEXT]).encode()[:-1] + b',"prompt":' + deep + b"}")
        for field in (
            b'"messages":' + deep,
            b'"messages":[{"role":"user","content":' + deep + b"}]",
            b'"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":' + nested + b"}}",
            b'"messages":[{"role":"assistant","tool_calls":[' + call + b"]}]",
        ):
            yield http(CHAT, whole.encode()[:-1] + b"," + field + b"}")


def wrong_types() -> Iterator[bytes]:
    """Each field with values that do not belong there."""
    chance = random.Random(1)
    for path, valid in VALID.items():
        for field in FIELDS:
            for value in chance.sample(VALUES, 4):
                others = {name: told for name, told in valid.items() if name != field}
                body = json.dumps(others)[:-1] + f", {json.dumps(field)}: {value}}}"
                yield http(path, body.encode())


def mangled() -> Iterator[bytes]:
    """A valid body with some of its bytes changed, lost or doubled."""
    chance = random.Random(2)
    for number in range(120):
        path = (CHAT, TEXT)[number % 2]
        body = bytearray(json.dumps({**VALID[path], "stream": number % 3 == 0}).encode())
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(body))
            match chance.randrange(4):
                case 0:
                    body[place] = chance.randrange(256)
                case 1:
                    del body[place : place + chance.randint(1, 9)]
                case 2:
                    body[place:place] = body[place : place + chance.randint(1, 40)]
                case _:
                    body[place:place] = chance.randbytes(chance.randint(1, 5))
        yield http(path, bytes(body))


def paths() -> Iterator[bytes]:
    """Paths and methods that there are not."""
    page = (b"/page/", b"/page", b"/page/..", b"/page/../app.py", b"/page/..%2fapp.py", b"/page/%2e%2e/app.py")
    more = (b"/page/%00", b"/page/index.html%00.js", b"//etc/passwd", b"/../../../../etc/passwd", b"/%2e%2e/%2e%2e/x")
    odd = (b"/" + b"a" * 30_000, b"/%ff%fe", b"/\x7f", b"/%", b"/%zz", b"//", b"/;a", b"/?" + b"a=1&" * 5000, b"*")
    ours = (b"/V1/models", b"/v1/", b"/v1/models/", b"/v1/models//", b"/v1/models/%00", b"/v1/models/../../app")
    more_of_ours = (
        b"/v1/models/" + b"x" * 20_000,
        b"/docs",
        b"/redoc",
        b"/health",
        b"/metrics/",
        b"http://x/v1/models",
    )
    for path in (*page, *more, *odd, *ours, *more_of_ours):
        yield http(path, method="GET")
    for path in ("/", CHAT, TEXT, "/v1/models", "/health/ready", "/metrics", "/nothing", CHAT + "/", "/openapi.json"):
        for method in ("OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "PROPFIND", "get", "A" * 300):
            yield http(path, method=method)
    for path in ("/", "/v1/models", "/health/live", "/nothing", "/v1/chat/completions/"):
        yield http(path, b"{}")
    for path in (CHAT, TEXT):
        yield http(path, method="GET")


def headers() -> Iterator[bytes]:
    """Headers that are long, many, doubled, or not what they should be."""
    body = json.dumps(VALID[CHAT]).encode()
    kinds = (
        b"text/plain",
        b"multipart/form-data; boundary=x",
        b"application/x-www-form-urlencoded",
        b"",
        b"\xff",
        b",",
    )
    odd_kinds = (b"application/json; charset=utf-16", b"application/json" + b";" * 1000, b"application/jsonp")
    for kind in (*kinds, *odd_kinds):
        yield http(CHAT, body, headers=(b"Content-Type: " + kind,), json_=False)
    yield http(CHAT, body, json_=False)
    ids = (
        b"",
        b"a" * 101,
        b"../../x",
        b'{"a":1}',
        b"\xff\xfe",
        b"a b",
        b"<script>",
        b"${jndi:ldap://x}",
        b"%0d%0aX: 1",
    )
    for value in ids:
        yield http("/v1/models", method="GET", headers=(b"X-Request-Id: " + value,))
    hosts = (
        b"",
        b"example.org",
        b"127.0.0.1:99999",
        b"[::1",
        b"127.0.0.1@x",
        b"127.0.0.1.x",
        b"\xff",
        b"a" * 20_000,
        b"]",
    )
    for value in hosts:
        yield http("/v1/models", method="GET").replace(b"Host: 127.0.0.1", b"Host: " + value)
    for value in (
        b"",
        b"0",
        b"-1",
        b"nan",
        b"inf",
        b"1e999",
        b"1e308",
        b"1_000",
        b"\xff",
        b"9" * 5000,
        b"0x10",
        b"60,60",
    ):
        yield http(CHAT, body, headers=(b"X-Vinoflow-Within-S: " + value,))
    keys = (b"", b"Bearer", b"Bearer ", b"Bearer " + b"a" * 20_000, b"Basic YTpi", b"\xff\xfe", b"Bearer a, Bearer b")
    for value in keys:
        yield http("/v1/models", method="GET", headers=(b"Authorization: " + value,))
    upgrade = (b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: eA==")
    yield http("/v1/models", method="GET", headers=upgrade)
    yield http("/v1/models", method="GET", headers=(b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings"))
    yield http("/v1/models", method="GET", headers=tuple(b"X-%d: a" % number for number in range(2000)))
    yield http("/v1/models", method="GET", headers=(b"Accept-Encoding: " + b"gzip," * 5000,))
    yield http("/v1/models", method="GET", headers=(b"Range: bytes=0-0,0-1,0-2", b"If-None-Match: *"))
    yield http(
        "/v1/models", method="GET", headers=(b"X-Forwarded-For: " + b"1.1.1.1," * 999, b"X-Forwarded-Proto: \xff")
    )
    yield http(CHAT, body, headers=(b"Content-Encoding: gzip",))
    yield http(CHAT, body, headers=(b"Expect: 100-continue",))


def broken() -> Iterator[bytes]:
    """What is no HTTP."""
    lines = (
        b"",
        b"GET",
        b"GET /",
        b"GET  / HTTP/1.1",
        b"GET / HTTP/9.9",
        b"GET / HTTQ/1.1",
        b"\x16\x03\x01\x02\x00",
        b"\x00",
    )
    more = (
        b"PRI * HTTP/2.0",
        b"GET /\x00 HTTP/1.1",
        b"GET /\xff HTTP/1.1",
        b"GET / HTTP/1.1 x",
        b"G\x01T / HTTP/1.1",
        b"{}",
    )
    for line in (*lines, *more):
        yield line + b"\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n" if line else b"\r\n\x01\r\n\r\n"
    start = b"POST " + CHAT.encode() + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    for wrong in (
        *(
            b"Content-Length: -1",
            b"Content-Length: x",
            b"Content-Length: 1\r\nContent-Length: 2",
            b"Content-Length: 1e3",
        ),
        *(b"Content-Length: " + b"9" * 5000, b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked, chunked"),
        *(
            b": a",
            b"a",
            b"A: b\r\n\x0b: b",
            b"a b: c",
            b"a\x00: b",
            b"A: \x00",
            b"A: b\r\n c: \x01",
            b"A: " + b"b" * 200_000,
        ),
        *(b"Host: other", b"Transfer-Encoding: \xff"),
    ):
        yield start + wrong + b"\r\n\r\n"
    chunked = start + b"Transfer-Encoding: chunked\r\n\r\n"
    for chunk in (
        b"x\r\n",
        b"-1\r\n",
        b"ffffffffffffffffffffffff\r\n",
        b"1\r\nab\r\n",
        b"0x1\r\na\r\n",
        b"1;" + b"a" * 99_999,
    ):
        yield chunked + chunk + b"\r\n\r\n"


def schemas() -> Iterator[bytes]:
    """Schemas that cannot be kept, or are much work to compile."""
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(60):
        deep = {"type": "object", "properties": {"a": deep}, "required": ["a"]}
    node = {"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}, "b": {"$ref": "#/$defs/n"}}, "required": ["a"]}
    for schema in (
        {"$ref": "#"},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"$defs": {"n": node}, "$ref": "#/$defs/n"},
        {"$ref": "#/$defs/none"},
        {"$ref": "file:///etc/passwd"},
        {"$ref": 5},
        {"enum": [f"value {number * 7919}" for number in range(5000)]},
        {"enum": []},
        {"enum": ["x" * 90_000]},
        {"enum": ["x" * 110_000]},
        {"const": "\x00\x1b\u2028"},
        {"type": "string", "pattern": "^(a+)+$"},
        {"type": "string", "pattern": "^((a|a)*)*b$"},
        {"type": "string", "pattern": "^((([a-z]{50}){50}){50})$"},
        {"type": "string", "pattern": "^(a|bc|d[e-z]{1,100}){1,10000}$"},
        {"type": "string", "pattern": "(" * 1000 + ")" * 1000},
        {"type": "string", "pattern": "[" * 1000},
        {"type": "string", "pattern": "\x00"},
        {"type": "string", "pattern": "(?=a)b\\1"},
        {"type": "string", "minLength": 10**6},
        {"type": "string", "maxLength": 10**30},
        {"type": "array", "minItems": -5},
        {"type": "array", "minItems": 10**9},
        {"type": "array", "items": {"type": "string"}, "minItems": 10**5, "maxItems": 10**6},
        {"type": "integer", "minimum": -(10**18), "maximum": 10**18},
        {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(1000)}},
        {"anyOf": [{"type": "object", "properties": {f"k{n}": {"type": "number"}}} for n in range(500)]},
        {"properties": {"\x00": {}, "": {}}, "required": ["\x00", ""]},
        {"properties": {"a": {"$ref": "#/properties/a"}}, "required": ["a"], "type": "object"},
        {"properties": [], "required": 1, "type": [3]},
        {"type": "object", "additionalProperties": {"$ref": "#"}},
        deep,
    ):
        named = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        yield asked(response_format=named, max_tokens=20)


def prompts() -> Iterator[bytes]:
    """Prompts that try the tokenizer, the template and the context."""
    controls = "".join(map(chr, range(32))) + "\x7f\u2028\u2029\ufeff\ufffe\U0010ffff"
    special = "<|im_end|><|im_start|>system<|endoftext|></s><s>[INST]<unk><pad><tool_call></tool_call>"
    template = "{{ 7*7 }}{% raw %}{{ self.__init__.__globals__ }}{# x #}{%- endfor %}${7*7}<%= 7*7 %>"
    for text in (
        *("", " ", "\n" * 999, controls, controls * 50, special, special * 20, template, "a" * 200_000, "a " * 100_000),
        *("\u0301" * 5000, "\U0001f468\u200d\U0001f469" * 500, "\u202e" * 100, "\x00" * 100, "\\" * 1000, '"' * 1000),
        *("%s%n%x" * 100, "../../etc/passwd", "'; DROP TABLE x; --", "\ufffd" * 300, "data: [DONE]\n\n"),
    ):
        yield asked(messages=[{"role": "user", "content": text}])
        yield asked(TEXT, prompt=text)
    yield asked(messages=[{"role": "system", "content": template}, {"role": "user", "content": template}])
    yield asked(messages=[{"role": "user", "content": "a"}] * 5000)
    yield asked(messages=[{"role": "user", "content": [{"type": "text", "text": "a"}] * 20_000}])
    yield asked(stop=["\x00", "\ud83d\ude00", " " * 500])
    yield asked(model="{{ 7*7 }}" * 1000)
    yield asked(user="\x1b[31m\n" * 100)
    for token in (2**31 - 1, 10**5, 0):
        yield asked(TEXT, prompt=[token] * 3)
    yield asked(TEXT, prompt=[5] * 300_000)
    yield asked(TEXT, prompt=["a" * 1000] * 16, n=16)
    yield asked(
        n=16, max_tokens=200, temperature=1e-45, repetition_penalty=0.01, min_p=0.999999999, top_p=1e-40, top_k=1
    )
    yield asked(
        TEXT, temperature=2, top_k=2**31 - 1, frequency_penalty=-2, presence_penalty=2, logprobs=0, seed=-(2**63)
    )


HOSTILE = {
    kind.__name__: list(kind()) for kind in (texts, wrong_types, mangled, paths, headers, broken, schemas, prompts)
}

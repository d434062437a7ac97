"""The chat page in a real browser against the real server and model; only faults and hostile answers are staged."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.browser import CONTRAST, WIDE, Seen, chromium, watch
from tests.conftest import ROOT
from tests.tasks.serving.conversation import (
    CHAT,
    DIGESTS,
    answered,
    ask,
    forgive_failed_requests,
    refusal,
    reply,
    serve_staged,
    staged,
)

pytestmark = pytest.mark.slow
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HOSTILE = """<img src=x onerror="window.ran = 1"> **<script>window.ran = 2</script>** `<iframe srcdoc="<script>1">`

- <svg onload="window.ran = 3">
- [a link](javascript:window.ran=4)

```html"><script>window.ran = 5</script>
</code></pre><script>window.ran = 6</script>
"""
SETTINGS = {
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 40,
    "max_tokens": 6,
    "seed": 7,
    "repetition_penalty": 1.1,
}
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def open_page(browser: Browser, served: Any, seen: Seen) -> Iterator[Open]:
    """Open the page; when the test ends it must have had no fault, and have asked this server only."""
    contexts = []

    def open_page(**options: Any) -> Page:
        context = browser.new_context(permissions=["clipboard-read", "clipboard-write"], **options)
        contexts.append(context)
        page = context.new_page()
        watch(page, seen)
        page.goto(served.url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert seen.problems == []
    assert [address for address in seen.requests if not address.startswith(served.url.rstrip("/") + "/")] == []


def test_an_answer_is_streamed_with_its_version_and_its_figures(open_page: Open) -> None:
    page = open_page()
    version = page.get_by_role("heading", level=1)
    expect(version).to_have_text(re.compile(r".+/\d+$"))
    expect(page.locator("#facts")).to_contain_text(re.compile(r"[0-9a-f]{12}"))
    page.evaluate("""() => {
      window.texts = new Set();
      new MutationObserver(() => window.texts.add(document.querySelector('.said').textContent))
        .observe(document.getElementById('turns'), {childList: true, subtree: true});
    }""")
    page.get_by_text("Settings").click()
    page.get_by_label("max_tokens").fill("40")
    turn = ask(page, "Tell me a story about a dog.")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    figures = answered(turn)
    assert page.evaluate("window.texts.size") > 3  # it came in pieces
    assert figures[0] == version.text_content()
    patterns = (r"[0-9a-f]{12}", r"first token \d+ ms", r"\d+(\.\d)? tokens/s", "40 tokens", "cut at max_tokens 40")
    assert all(re.fullmatch(pattern, figure) for pattern, figure in zip(patterns, figures[1:], strict=True)), figures
    expect(page.get_by_role("status")).to_have_text("answered: 40 tokens")
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()


@pytest.mark.parametrize("way", ["button", "Escape"])
def test_an_answer_is_stopped_and_the_next_one_comes(open_page: Open, way: str) -> None:
    page = open_page()
    turn = ask(page, "Count from 1 to 1000, one number a line, and write each number out in words.")
    expect(turn.locator(".said")).not_to_be_empty(timeout=60_000)
    if way == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    assert answered(turn)[-1] == "stopped"
    expect(page.get_by_role("status")).to_have_text("stopped")
    expect(page.get_by_label("Message")).to_be_focused()
    page.get_by_text("Settings").click()
    page.get_by_label("max_tokens").fill("3")
    assert answered(ask(page, "And now?"))[-1] == "cut at max_tokens 3"


def test_the_settings_and_the_conversation_are_sent(open_page: Open) -> None:
    page = open_page()
    with page.expect_request(CHAT) as first:
        turn = ask(page, "Say hello.")
    plain = first.value.post_data_json
    page.keyboard.press("Escape")
    answered(turn)
    said = page.evaluate("JSON.parse(sessionStorage.conversation).turns[0].text")
    page.get_by_text("Settings").click()
    page.get_by_label("System prompt").fill("You are brief.")
    for name, value in SETTINGS.items():
        page.get_by_label(name).fill(str(value))
    with page.expect_request(CHAT) as second:
        turn = ask(page, "Say it\nagain.")
    past = [{"role": "user", "content": "Say hello."}, {"role": "assistant", "content": said}] if said else []
    asked = [{"role": "system", "content": "You are brief."}, *past, {"role": "user", "content": "Say it\nagain."}]
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    model = page.evaluate("fetch('v1/models').then(r => r.json()).then(r => r.data[0].id)")
    assert plain == {"model": model, "messages": [{"role": "user", "content": "Say hello."}]} | streamed
    assert second.value.post_data_json == {"model": model, "messages": asked} | SETTINGS | streamed
    assert "cut at max_tokens 6" in answered(turn)  # the server takes every one of them
    page.get_by_label("temperature").fill("-1")
    page.get_by_text("Settings").click()
    page.get_by_role("button", name="Regenerate").last.click()  # refused at the field, nothing is sent
    expect(page.get_by_label("temperature")).to_be_focused()
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()


def test_a_conversation_outlives_a_reload_is_asked_again_copied_and_left(open_page: Open) -> None:
    page = open_page()
    page.get_by_text("Settings").click()
    page.get_by_label("max_tokens").fill("8")
    turn = ask(page, "What is the capital of France?")
    figures, said = answered(turn), turn.locator(".said").text_content()
    page.get_by_label("Message").fill("a draft")
    page.reload()
    assert answered(turn) == figures
    expect(turn.locator(".said")).to_have_text(said)
    expect(page.get_by_label("Message")).to_have_value("a draft")
    expect(page.locator("#set")).to_have_text("max_tokens 8")
    turn.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("status")).to_have_text("copied")
    kept = "JSON.parse(sessionStorage.conversation).turns[0].text"
    assert page.evaluate(f"navigator.clipboard.readText().then(text => text === {kept})")
    with page.expect_request(CHAT) as again:
        turn.get_by_role("button", name="Regenerate").click()
    assert [each["role"] for each in again.value.post_data_json["messages"]] == ["user"]
    answered(turn)
    page.get_by_role("button", name="New conversation").click()
    expect(page.get_by_role("article")).to_have_count(0)
    page.reload()
    expect(page.get_by_role("article")).to_have_count(0)
    assert page.evaluate("localStorage.length + document.cookie.length") == 0


def test_a_hostile_answer_is_text(open_page: Open) -> None:
    page = open_page()
    reply(page, staged(HOSTILE))
    turn = ask(page, "<b>Be</b> hostile.")
    answered(turn)
    for piece in ('<img src=x onerror="window.ran = 1">', "javascript:window.ran=4", "<script>window.ran = 6</script>"):
        expect(turn).to_contain_text(piece)
    expect(turn).to_contain_text("<b>Be</b> hostile.")
    expect(turn.locator("strong", has_text="<script>window.ran = 2</script>")).to_be_visible()
    page.reload()
    expect(turn).to_contain_text("<script>window.ran = 6</script>")
    inside = "document.querySelectorAll('main :is(script, img, iframe, svg, a, b, [onerror], [onload])').length"
    assert page.evaluate(f"[{inside}, window.ran]") == [0, None]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (refusal(429, **{"retry-after": "7"}), "busy: words of 429; try again in 7 s$"),
        (refusal(503, **{"x-request-id": "r-1"}), r"not ready: words of 503 \(request r-1\)$"),
        (refusal(400), "^words of 400$"),
        ({"status": 500, "body": "<b>oops</b>"}, "HTTP 500"),
        (staged("half an", end='data: {"error": {"message": "the engine ended."}}\n\n'), "the engine ended"),
        (staged("half an", end=""), "ended before the answer did"),
        (staged("half an", end="data: {oops\n\n"), "could not be read"),
        (None, "cannot be reached"),
    ],
)
def test_a_fault_is_told_in_words_and_tried_again(
    open_page: Open, seen: Seen, answer: dict[str, Any] | None, words: str
) -> None:
    page = open_page()
    page.get_by_text("Settings").click()
    page.get_by_label("max_tokens").fill("3")

    reply(page, answer, times=1)
    turn = ask(page, "Tell me a story.")
    expect(turn.locator(".fault")).to_have_text(re.compile(words))
    expect(page.get_by_role("status")).to_have_text(re.compile(words))
    turn.get_by_role("button", name="Retry").click()
    assert "cut at max_tokens 3" in answered(turn)
    expect(turn.locator(".fault")).to_have_count(0)
    forgive_failed_requests(seen)


def test_a_key_is_asked_for_and_kept_in_this_tab_only(open_page: Open, seen: Seen) -> None:
    page = open_page()

    def guard(route: Route) -> None:
        known = route.request.headers.get("authorization") == "Bearer open sesame"
        route.continue_() if known else route.fulfill(**refusal(401))

    page.route("**/v1/**", guard)
    page.reload()
    expect(page.get_by_label("API key")).to_be_focused()
    expect(page.locator("#facts")).to_contain_text("asks for an API key")
    page.get_by_text("Settings").click()
    page.get_by_label("max_tokens").fill("3")
    turn = ask(page, "Tell me a story.")
    expect(turn.locator(".fault")).to_contain_text("asks for an API key")
    for key in ("wrong", "open sesame"):
        expect(page.get_by_label("API key")).to_be_focused()
        page.keyboard.type(key)
        page.keyboard.press("Enter")
        if key == "wrong":
            expect(page.locator("#facts")).to_contain_text("does not know this API key")
    expect(turn.locator(".figures")).to_contain_text("cut at max_tokens 3", timeout=60_000)  # asked again by itself
    expect(page.get_by_label("API key")).to_be_hidden()
    assert page.evaluate("[sessionStorage.key && sessionStorage.getItem('key'), localStorage.length]") == [
        "open sesame",
        0,
    ]
    assert "sesame" not in page.content()
    forgive_failed_requests(seen)


def test_a_version_that_changes_in_the_middle_is_told(open_page: Open) -> None:
    page = open_page()
    for version in (1, 1, 2):
        serve_staged(page, version)
        reply(page, staged("Hello.", version=version))
        figures = answered(ask(page, "Hello."))
        assert figures[:2] == [f"staged/{version}", DIGESTS[version][:12]]
        expect(page.get_by_role("heading", level=1)).to_have_text(f"staged/{version}")
        expect(page.locator("#facts")).to_contain_text(DIGESTS[version][:12])
    expect(page.locator(".changed")).to_have_text(["staged/2 answers from here (before: staged/1)"])


def test_the_keyboard_alone_is_enough(open_page: Open) -> None:
    page = open_page()
    expect(page.get_by_label("Message")).to_be_focused()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    turn = page.get_by_role("article")
    expect(turn.locator(".asked p")).to_have_text("one\ntwo", use_inner_text=True)
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    page.keyboard.press("Escape")
    answered(turn)
    page.evaluate("document.activeElement.blur()")
    focused = (
        "(e => [e.name || e.id || e.textContent.trim(), getComputedStyle(e).outlineStyle])(document.activeElement)"
    )
    stops = {}
    for _ in range(30):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(focused)
        stops[name] = outline
        if name.startswith("Settings"):
            page.keyboard.press("Enter")  # unfolds them
    fields = {"system", *SETTINGS, "new", "prompt", "send", "Settings", "Regenerate"}
    assert fields <= stops.keys()
    assert {stops[name] for name in fields} == {"solid"}


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_reads_well_at_any_width_in_light_and_dark(
    open_page: Open, seen: Seen, tmp_path: Path, width: int
) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        page = open_page(viewport={"width": width, "height": 720}, color_scheme=scheme)
        long = "w" * 200
        text = f"{long} and `{long}`\n\n1. {long}\n\n```\n{long}\n```\n\n**bold**"
        for version in (1, 2):
            serve_staged(page, version)
            reply(page, staged(text, version=version))
            answered(ask(page, long))
        reply(page, refusal(401))
        answered(ask(page, "Hello."))
        page.get_by_text("Settings").click()
        page.get_by_label("System prompt").fill("Be brief.")
        page.screenshot(path=tmp_path / f"{scheme}.png")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate(WIDE) == []
        contrast = page.evaluate(CONTRAST)
        assert contrast["worst"][0] >= 4.5, contrast["worst"]  # WCAG AA
        grounds.append(contrast["ground"])
        forgive_failed_requests(seen)
        assert seen.problems == []
    assert grounds[0] > 0.8
    assert grounds[1] < 0.05


def test_the_security_policy_is_in_force(open_page: Open, served: Any, seen: Seen) -> None:
    page = open_page()
    assert page.request.get(served.url).headers["content-security-policy"] == POLICY
    violated = page.evaluate("""() => new Promise(done => {
      const found = [];
      document.addEventListener('securitypolicyviolation', event => {
        found.push(event.effectiveDirective);
        if (found.length === 4) done(found.sort());
      });
      document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}));
      document.body.append(Object.assign(new Image(), {src: 'https://example.com/x.png'}));
      document.body.setAttribute('style', 'color: red');
      fetch('https://example.com/').catch(() => {});
      setTimeout(() => done(found), 5000);
    })""")
    assert violated == ["connect-src", "img-src", "script-src-elem", "style-src-attr"]
    assert page.evaluate("window.ran") is None
    seen.problems[:] = [each for each in seen.problems if "Content Security Policy" not in each]
    seen.requests[:] = [each for each in seen.requests if "example.com" not in each]  # told of, though refused


def test_the_readme_shows_a_real_conversation(open_page: Open, tmp_path: Path) -> None:
    folder = ROOT / "docs" if os.environ.get("VINOFLOW_SCREENSHOTS") == "1" else tmp_path
    page = open_page(viewport={"width": 880, "height": 680}, device_scale_factor=2)
    page.get_by_text("Settings").click()
    page.get_by_label("max_tokens").fill("120")
    page.get_by_text("Settings").click()
    for prompt in ("What is the capital of France?", "List three things to see there."):
        turn = ask(page, prompt)
        assert answered(turn)[0] == page.get_by_role("heading", level=1).text_content()
        expect(turn.locator(".said")).not_to_be_empty()
    page.screenshot(path=folder / "chat.png")
    assert (folder / "chat.png").stat().st_size > 10_000

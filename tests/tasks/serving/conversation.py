"""What the chat page is made to do in the tests, and staged answers of a server."""

from __future__ import annotations

import json
import re
from typing import Any

from playwright.sync_api import Locator, Page, Route, expect

from tests.browser import Seen

CHAT = "**/v1/chat/completions"
DIGESTS = {1: "ab" * 32, 2: "cd" * 32}


def ask(page: Page, prompt: str) -> Locator:
    """Send a message; return where its answer comes."""
    turns = page.get_by_role("article").count()
    page.get_by_label("Message").fill(prompt)
    page.keyboard.press("Enter")
    return page.get_by_role("article").nth(turns)


def answered(turn: Locator) -> list[str]:
    """Wait until an answer ended; return the figures under it."""
    expect(turn.get_by_role("button", name=re.compile("Regenerate|Retry"))).to_be_visible(timeout=120_000)
    return turn.locator(".figures span").all_text_contents()


def staged(text: str, *, version: int = 1, end: str = "data: [DONE]\n\n") -> dict[str, Any]:
    """An answer as the server would stream it."""
    chunks: list[Any] = [
        {"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in re.findall(".{1,7}", text, re.S)
    ]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    chunks.append({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 9, "total_tokens": 14}})
    return {
        "headers": {"x-vinoflow-version": f"staged/{version}", "x-vinoflow-digest": DIGESTS[version]},
        "content_type": "text/event-stream",
        "body": "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + end,
    }


def reply(page: Page, answer: dict[str, Any] | None, *, times: int | None = None) -> None:
    """Let this be the answer in place of the server's, always or a number of times; None cuts the connection."""

    def stage(route: Route) -> None:
        route.fulfill(**answer) if answer else route.abort()

    page.route(CHAT, stage, times=times)


def serve_staged(page: Page, version: int) -> None:
    """Let GET /v1/models tell of a staged version from now on."""
    model = {"id": "staged", "version": version, "digest": DIGESTS[version], "alias": "champion", "device": "CPU"}
    page.route("**/v1/models", lambda route: route.fulfill(json={"object": "list", "data": [model | {"context": 64}]}))


def refusal(status: int, **headers: str) -> dict[str, Any]:
    return {"status": status, "headers": headers, "json": {"error": {"message": f"words of {status}", "code": None}}}


def forgive_failed_requests(seen: Seen) -> None:
    """Forget that the browser told of requests that a test let fail, and of nothing else."""
    seen.problems[:] = [each for each in seen.problems if not each.startswith("Failed to load resource")]

"""The page in a real browser: what a reader sees, on a phone and on a desk, by day and by night."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from tasks.report import write_report
from tests.browser import CONTRAST, WIDE, Seen, chromium, watch
from tests.tasks.report.reports import exported_model, full_recipe, full_report, report_without_reference, tiny_report

pytestmark = pytest.mark.slow
REPORTS = {"full": full_report(), "without-reference": report_without_reference(), "tiny": tiny_report()}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    return {
        name: write_report(report, full_recipe(), exported_model(folder), folder / name)
        for name, report in REPORTS.items()
    }


def look(browser: Browser, path: Path, **context: Any) -> dict[str, Any]:
    """Open a page, open all that folds, and return what was seen."""
    page = browser.new_page(**context)
    watched = watch(page, Seen())
    page.goto(path.as_uri())
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    seen: dict[str, Any] = {"width": page.evaluate("document.documentElement.scrollWidth"), "wide": page.evaluate(WIDE)}
    seen["elements"] = page.evaluate("document.querySelectorAll('script, img, body style').length")
    seen |= page.evaluate(CONTRAST) | {"problems": watched.problems, "requests": watched.requests}
    page.close()
    return seen


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("width", [360, 1280])
def test_a_page_reads_well_at_any_width_in_light_and_dark(
    browser: Browser, pages: dict[str, Path], name: str, width: int
) -> None:
    looks = {
        scheme: look(browser, pages[name], viewport={"width": width, "height": 800}, color_scheme=scheme)
        for scheme in ("light", "dark")
    }
    for seen in looks.values():
        assert seen["problems"] == []  # no error, no violation of the security policy, no alert of a hostile answer
        assert seen["requests"] == [pages[name].as_uri()]
        assert seen["elements"] == 0
        assert seen["wide"] == []
        assert seen["width"] == width
        assert seen["worst"][0] >= 4.5, seen["worst"]  # WCAG AA
        assert seen["plot"] is None or seen["plot"] >= 4.5
    assert looks["light"]["ground"] > 0.8
    assert looks["dark"]["ground"] < 0.05


def test_the_security_policy_is_in_force(browser: Browser, pages: dict[str, Path]) -> None:
    page = browser.new_page()
    page.goto(pages["full"].as_uri())
    violated = page.evaluate(
        """() => new Promise(done => {
          const found = [];
          document.addEventListener('securitypolicyviolation', event => {
            found.push(event.effectiveDirective);
            if (found.length === 3) done(found.sort());
          });
          document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}));
          document.body.append(Object.assign(new Image(), {src: 'x.png'}));
          document.body.setAttribute('style', 'color: red');
          setTimeout(() => done(found), 5000);
        })"""
    )
    assert violated == ["img-src", "script-src-elem", "style-src-attr"]
    assert page.evaluate("window.ran") is None
    page.close()

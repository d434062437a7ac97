"""The page in a real browser: what a reader sees, on a phone and on a desk, by day and by night."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from tasks.report import write_report
from tests.conftest import ROOT
from tests.tasks.report.reports import exported_model, full_recipe, full_report, report_without_reference, tiny_report

pytestmark = pytest.mark.slow
REPORTS = {"full": full_report(), "without-reference": report_without_reference(), "tiny": tiny_report()}
PACKAGE = "chromium-headless-shell"

# Relative luminance and contrast of WCAG 2.2, of the colours that the browser has computed.
CONTRAST = """() => {
  const parse = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = colour => parse(colour).slice(0, 3)
    .map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = element => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if (parse(colour)[3] !== 0) return colour;
    }
  };
  const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  let worst = [99, ''];
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!own || element.closest('svg') || !element.checkVisibility()) continue;
    const found = ratio(light(getComputedStyle(element).color), light(ground(element)));
    if (found < worst[0]) worst = [found, element.className + ' ' + element.textContent.slice(0, 40)];
  }
  const svg = document.querySelector('.plots svg text');
  return {worst, ground: light(getComputedStyle(document.body).backgroundColor),
          plot: svg && ratio(light(getComputedStyle(svg).fill), light(ground(svg)))};
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        path = find_chromium(Path(playwright.chromium.executable_path))
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


def find_chromium(downloaded: Path) -> str:
    """Return Playwright's own browser where it was downloaded, or the system's, which is installed if need be."""
    if downloaded.exists():
        return str(downloaded)
    names = (PACKAGE, "chromium", "google-chrome")
    if not any(map(shutil.which, names)):
        subprocess.run([ROOT / ".ci" / "system-packages", PACKAGE], check=True)
    return next(filter(None, map(shutil.which, names)))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    return {
        name: write_report(report, full_recipe(), exported_model(folder), folder / name)
        for name, report in REPORTS.items()
    }


def look(browser: Browser, path: Path, **context: Any) -> dict[str, Any]:
    """Open a page, open all that folds, and return what was seen."""
    seen: dict[str, Any] = {"problems": [], "requests": []}
    page = browser.new_page(**context)
    page.on("console", lambda message: seen["problems"].append(message.text))
    page.on("pageerror", lambda error: seen["problems"].append(str(error)))
    page.on("dialog", lambda dialog: (seen["problems"].append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: seen["requests"].append(request.url))
    page.goto(path.as_uri())
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    seen["width"] = page.evaluate("document.documentElement.scrollWidth")
    seen["wide"] = page.evaluate(
        "[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth)"
        ".map(e => e.outerHTML.slice(0, 80))"
    )
    seen["elements"] = page.evaluate("document.querySelectorAll('script, img, body style').length")
    seen |= page.evaluate(CONTRAST)
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

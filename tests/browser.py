"""A real browser, and what it sees of a page: its faults, its requests, what is too wide, what is too pale."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from tests.conftest import ROOT

PACKAGE = "chromium-headless-shell"

# Relative luminance and contrast of WCAG 2.2, of the colours that the browser has computed: of each element with text
# of its own, of what is typed, and of the hint where nothing is.
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
    const typed = element.matches('input, textarea');
    const own = typed || [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!own || element.closest('svg') || !element.checkVisibility()) continue;
    for (const part of typed ? [null, '::placeholder'] : [null]) {
      const found = ratio(light(getComputedStyle(element, part).color), light(ground(element)));
      if (found < worst[0]) worst = [found, `${element.id} ${element.className} ${element.textContent.slice(0, 40)}`];
    }
  }
  const svg = document.querySelector('.plots svg text');
  return {worst, ground: light(getComputedStyle(document.body).backgroundColor),
          plot: svg && ratio(light(getComputedStyle(svg).fill), light(ground(svg)))};
}"""
# What reaches past the window's right edge; code scrolls inside of its own box.
WIDE = """() => [...document.querySelectorAll('body *')]
  .filter(e => !e.closest('pre > *') && e.getBoundingClientRect().right > innerWidth)
  .map(e => e.outerHTML.slice(0, 80))"""


@dataclass
class Seen:
    """What a page did so far: faults and dialogs in `problems`, the address of each request."""

    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def chromium() -> Iterator[Browser]:
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


def watch(page: Page, seen: Seen) -> Seen:
    """Note what a page does from now on."""
    page.on("console", lambda message: seen.problems.append(message.text))
    page.on("pageerror", lambda error: seen.problems.append(str(error)))
    page.on("dialog", lambda dialog: (seen.problems.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: seen.requests.append(request.url))
    return seen

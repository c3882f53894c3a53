"""Pages in a real browser without a network, and what it has to say about them."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
# What a browser does before and after it prints, which draws all figures and builds all tables.
PRINTED = """() => {
  dispatchEvent(new Event("beforeprint"));
  dispatchEvent(new Event("afterprint"));
}"""
# Violations of the page's policy, and whatever an injected script would have called.
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation",
  (event) => window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""


@dataclass
class Seen:
    """Everything that a page printed, requested or tried."""

    console: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def trouble(self, page: Any) -> list[str]:
        """Everything that a sound page has none of."""
        violations: list[str] = page.evaluate("window.violations ?? []")
        return [*self.console, *self.errors, *self.dialogs, *self.requests, *violations]


@contextmanager
def browser() -> Iterator[Any]:
    """The Chromium of this machine; skips if it or its driver is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    # Chromium's sandbox refuses to run as root.
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=options)
        yield started
        started.close()


@contextmanager
def opened(
    browser: Any, path: Path, *, whole: bool = True, **how: Any
) -> Iterator[tuple[Any, Seen]]:
    """The page of a file, and a record of what it does.

    Args:
        browser: the browser.
        path: the file.
        whole: draw all figures and build all tables; otherwise those that are in the window.
        how: as for a context.
    """
    # Without smooth scrolling, so that what has the focus is on the screen at once.
    context = browser.new_context(offline=True, reduced_motion="reduce", **how)
    seen = Seen()
    context.add_init_script(WATCH)
    page = context.new_page()
    page.on("console", lambda message: seen.console.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: seen.errors.append(str(error)))

    def dismiss(dialog: Any) -> None:
        seen.dialogs.append(dialog.message)
        dialog.dismiss()

    def follow(route: Any) -> None:
        address = route.request.url
        if address == path.as_uri() or address.startswith("data:"):
            route.continue_()
        else:
            seen.requests.append(address)
            route.abort()

    page.on("dialog", dismiss)
    context.route("**/*", follow)
    page.goto(path.as_uri())
    if how.get("java_script_enabled", True):
        # Not wait_for_function, which the page's security policy stops if it has to look twice.
        page.locator("html[data-unpacked]").wait_for(state="attached")
        if whole:
            page.evaluate(PRINTED)
            while page.locator("[data-chart]:not([data-drawn])").count():
                page.wait_for_timeout(50)
    yield page, seen
    context.close()


# For every chart: how many marks are drawn, the text of its SVG, how far it reaches beyond the
# figure, and labels of an axis that lie under the axis's title. The first figure of a page is none:
# it needs no script.
FIGURES = """() => Array.from(document.querySelectorAll("figure:not(.reach)"), (figure) => ({
  id: figure.id,
  chart: figure.querySelector("[data-chart]") !== null,
  told: figure.querySelector(".empty") !== null,
  marks: Array.from(figure.querySelectorAll(
    "svg .role-mark :is(path, line, rect, circle, text)")).filter((mark) => {
      const box = mark.getBoundingClientRect();
      return box.width + box.height > 0;
    }).length,
  words: Array.from(figure.querySelectorAll("svg text"), (text) => text.textContent),
  right: Math.max(0, ...Array.from(figure.querySelectorAll("svg text"),
    (text) => text.getBoundingClientRect().right - figure.getBoundingClientRect().right)),
  covered: Array.from(figure.querySelectorAll("svg .role-axis")).flatMap((axis) => {
    const title = axis.querySelector(".role-axis-title text")?.getBoundingClientRect();
    return Array.from(axis.querySelectorAll(".role-axis-label text")).filter((label) => {
      const box = label.getBoundingClientRect();
      return title && box.left < title.right && title.left < box.right
        && box.top < title.bottom && title.top < box.bottom;
    }).map((label) => label.textContent);
  }),
}))"""

OPEN_ALL = "() => document.querySelectorAll('details').forEach((block) => (block.open = true))"

# What Tab has to reach, in order, each numbered.
STOPS = """() => {
  const wanted = "a[href], button, summary, [tabindex='0']";
  const shown = Array.from(document.querySelectorAll(wanted))
    .filter((element) => element.checkVisibility());
  shown.forEach((element, index) => (element.dataset.stop = index));
  return shown.length;
}"""

# Where the focus is, and how it shows.
FOCUS = """() => {
  const element = document.activeElement;
  const style = getComputedStyle(element);
  const box = element.getBoundingClientRect();
  return {
    stop: Number(element.dataset.stop ?? -1),
    name: element.tagName,
    ring: style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth),
    colour: style.outlineColor,
    onScreen: box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth,
  };
}"""

# Contrast by WCAG 2 of every visible piece of text against what lies behind it.
CONTRAST = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  function rgba(colour) {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  }
  const over = (top, under) =>
    [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((value) => {
      const part = value / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  function behind(element) {
    const layers = [];
    for (let up = element; up; up = up.parentElement) {
      layers.push(rgba(getComputedStyle(up).backgroundColor));
      if (layers.at(-1)[3] === 1) break;
    }
    let colour = [255, 255, 255, 1];
    for (const layer of layers.reverse()) colour = over(layer, colour);
    if (!element.ownerSVGElement) return colour;
    // The cell of a heat map on which a number stands.
    const box = element.getBoundingClientRect();
    const [x, y] = [box.left + box.width / 2, box.top + box.height / 2];
    for (const cell of element.ownerSVGElement.querySelectorAll(".mark-rect path")) {
      const area = cell.getBoundingClientRect();
      if (x < area.left || x > area.right || y < area.top || y > area.bottom) continue;
      const style = getComputedStyle(cell);
      const fill = rgba(style.fill);
      fill[3] *= style.opacity * style.fillOpacity;
      colour = over(fill, colour);
    }
    return colour;
  }
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const words = walker.currentNode.textContent.trim();
    if (!words || element.closest("script, noscript, .hidden, .skip")) continue;
    if (!element.checkVisibility({ visibilityProperty: true })) continue;
    const style = getComputedStyle(element);
    const back = behind(element);
    const text = rgba(element.ownerSVGElement ? style.fill : style.color);
    for (let up = element; up; up = up.parentElement) text[3] *= getComputedStyle(up).opacity;
    // Labels of an axis that would overlap are there, but never shown.
    if (element.ownerSVGElement && text[3] === 0) continue;
    const [one, two] = [light(over(text, back)), light(back)];
    const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    found.push({ words: words.slice(0, 60), ratio, least: large ? 3 : 4.5 });
  }
  return found;
}"""

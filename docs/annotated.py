"""Draw docs/assets/report-*.png: the first screen of a report, with a number at each of its parts.

docs/tour.md explains the numbers. Needs Playwright and Chromium; the report is made of stored runs.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from frenet.report import write_report
from frenet.runs import find_runs, read_run

ROOT = Path(__file__).resolve().parents[1]
NETWORK = "stories260K"
PICTURES = {mode: ROOT / f"docs/assets/report-{mode}.png" for mode in ("light", "dark")}
# The parts of the page, in the order of their numbers.
CALLOUTS = (
    ".opening > .facts",
    ".opening > .answer",
    "figure.reach > table",
    ".opening > .next",
    ".claim .verdict",
    ".claim .glyph",
    ".claim .found",
    ".claim summary",
    "nav.contents",
)
# The last claim of the picture; the others are alike.
LAST = ".claim:nth-of-type(5)"
# A frame around each part, with its number to the left; the height of the picture.
DRAW = """([callouts, last]) => {
  const add = (style, text) => {
    const box = document.createElement("div");
    box.textContent = text;
    Object.assign(box.style, { position: "absolute", zIndex: 9 }, style);
    document.body.append(box);
  };
  callouts.forEach((selector, index) => {
    const box = document.querySelector(selector).getBoundingClientRect();
    const [left, top] = [Math.max(box.left - 3, 1), Math.max(box.top - 2, 1)];
    const width = Math.min(box.right + 3, innerWidth - 1) - left;
    add({
      left: `${left}px`, top: `${top}px`, width: `${width}px`, height: `${box.bottom + 2 - top}px`,
      border: "2px solid #d9480f", borderRadius: "6px",
    }, "");
    add({
      left: `${Math.max(left - 17, 1)}px`, top: `${Math.max(top - 8, 1)}px`, width: "20px",
      borderRadius: "50%", background: "#d9480f", color: "#fff", textAlign: "center",
      font: "bold 13px/20px sans-serif",
    }, index + 1);
  });
  return document.querySelector(last).getBoundingClientRect().bottom + 2;
}"""


def report(folder: Path) -> Path:
    """The report of the stored runs of one network."""
    paths = [path for path in find_runs([ROOT / "docs/results"]) if path.name.startswith(NETWORK)]
    return write_report([read_run(path) for path in paths], folder / "report.html")


def draw(browser: Any, page: Path, out: Path, mode: str) -> None:
    """Write the picture of a report's first screen, light or dark."""
    window = {"width": 1040, "height": 900}
    context = browser.new_context(viewport=window, color_scheme=mode, reduced_motion="reduce")
    sheet = context.new_page()
    sheet.goto(page.as_uri())
    height = sheet.evaluate(DRAW, [CALLOUTS, LAST])
    area = {"x": 0, "y": 0, "width": window["width"], "height": height}
    sheet.screenshot(path=out, clip=area, full_page=True)
    context.close()


def main() -> None:
    """Draw both pictures."""
    from playwright.sync_api import sync_playwright

    if (found := shutil.which("chromium")) is None:
        sys.exit("no browser: install chromium")
    # Chromium's sandbox refuses to run as root. Grey letters make a smaller file.
    options = ["--disable-lcd-text", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page = report(Path(folder))
        browser = playwright.chromium.launch(executable_path=found, args=options)
        for mode, out in PICTURES.items():
            draw(browser, page, out, mode)
        browser.close()


if __name__ == "__main__":
    main()

"""A page in headless Chromium, for the tests; and the picture of a report for the README.

python tests/browser.py docs/report.png
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

import saec_gpu as saec
from saec_gpu.report import report_data
from saec_gpu.report.page import page
from saec_gpu.synthetic import recommender_tables

WIDTH, HEIGHT = 1000, 1100  # of the picture, in CSS pixels: the head and the first chart
# What Chromium would otherwise ask of the network by itself.
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-quic")


def chromium() -> str | None:
    """Return the path of the system's Chromium, None where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


@contextmanager
def opened(path: Path) -> Iterator[tuple[Page, list[str], list[str]]]:
    """Yield a page that is open, what its console said, and the URLs that it asked for."""
    program = chromium()
    assert program is not None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=QUIET)
        tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        said: list[str] = []
        asked: list[str] = []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(path.as_uri())
        yield tab, said, asked
        browser.close()


def main() -> None:
    """Take the picture of a report on the tables of `saec demo`."""
    parser = argparse.ArgumentParser(description="Take the picture of a report.")
    parser.add_argument("out", type=Path, help="the picture, *.png")
    options = parser.parse_args()
    tables, counts = recommender_tables(200_000, 26, 16, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        artifact = saec.compress(tables, weights=counts, ratio=27.7, out=Path(folder) / "demo.saec")
        data = report_data(artifact, tables, counts)
        data["head"]["path"] = "demo.saec"  # the scratch folder's name tells nothing
        html = Path(folder) / "report.html"
        html.write_text(page(data), encoding="utf-8")
        with opened(html) as (tab, _, _):
            tab.screenshot(path=options.out)


if __name__ == "__main__":
    main()

"""The built site as its readers get it: a folder of files served on the local host, and one browser for all tests.

`IGSP_SITE` names the built folder; without it `_build/html` is tested. Pages are those that the site itself links to.
"""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SITE = Path(os.environ.get("IGSP_SITE") or ROOT / "_build" / "html")


def pages() -> list[str]:
    """Paths of all pages of the book within the site, notebooks last."""
    found = [path.relative_to(SITE).as_posix() for path in SITE.glob("book/**/*.html")]
    return sorted(found, key=lambda page: ("notebooks" in page, page))


@pytest.fixture(scope="session")
def site() -> Path:
    if not (SITE / "book" / "index.html").exists():
        pytest.skip("no built book: run `make book`, or name its folder in IGSP_SITE")
    return SITE


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    """Address of a local server for the site."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with an argument `page` runs once for each page of the site."""
    if "page" in metafunc.fixturenames:
        found = pages()
        metafunc.parametrize("page", found or [pytest.param("", marks=pytest.mark.skip(reason="no built book"))])

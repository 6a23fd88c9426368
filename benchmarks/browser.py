"""Headless Chromium, and the page of a model served to it: for the benchmark of the page and for its tests."""

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# No sandbox in containers, no graphics card, and nothing that speaks to other hosts.
FLAGS = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update "
FLAGS += "disable-sync disable-dev-shm-usage"


def browser_program() -> str | None:
    """The path of a browser: that in the variable CHROMIUM, or the first of `NAMES` that is installed."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def chromium(program: str) -> Iterator:
    """A headless browser of playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[f"--{flag}" for flag in FLAGS.split()])
        yield browser
        browser.close()


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[str]:
    """The address of a server that runs in a thread."""
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join(timeout=60)
        server.server_close()

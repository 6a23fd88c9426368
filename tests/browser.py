"""Headless Chromium for the tests of the page: pages that are open, watched, and asked for their pixels."""

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from diffusers_ict.web.server import PageServer, serve

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# No sandbox in containers, no graphics card, and nothing that speaks to other hosts.
FLAGS = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update "
FLAGS += "disable-sync disable-dev-shm-usage"
ANSWER_SECONDS = 60  # of a busy machine


@contextmanager
def chromium() -> Iterator:
    """A headless browser; the test is skipped where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser is installed: none of {', '.join(NAMES)}, nor $CHROMIUM")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[f"--{flag}" for flag in FLAGS.split()])
        yield browser
        browser.close()


class Bare(SimpleHTTPRequestHandler):
    """A server without the headers that isolate a page, as any web server is."""

    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript", ".wasm": "application/wasm"}

    def log_message(self, format, *args) -> None:
        pass


@contextmanager
def served(folder: Path, isolated: bool = True) -> Iterator[str]:
    """The address of a page's folder, by the package's server, or by one that sets no headers."""
    server = serve(folder) if isolated else ThreadingHTTPServer(("127.0.0.1", 0), partial(Bare, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.address if isinstance(server, PageServer) else f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class View:
    """An open page. `complaints` collects what the console says, requests that fail, and requests to other hosts."""

    def __init__(self, context, address: str) -> None:
        self.page, self.complaints = context.new_page(), []
        self.page.set_default_timeout(ANSWER_SECONDS * 1000)
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("requestfailed", lambda request: self.complaints.append(f"failed: {request.url}"))
        self.page.on("request", lambda request: self._watch(request.url, address))
        self.page.goto(address)

    def _watch(self, url: str, address: str) -> None:
        if not url.startswith((address, "data:", "blob:")):
            self.complaints.append(f"elsewhere: {url}")

    def script(self, code: str, argument=None):
        """The value of an expression of the loaded page's parts: model, samples, ray, edit, between."""
        parts = "({ model, samples, ray, edit, between })"
        return self.page.evaluate(f"async (argument) => {{ const f = async {parts} => {code};"
                                  " return f(await window.consistency) }", argument)  # fmt: skip

    def drawn(self, panel: str) -> None:
        """Wait until a panel, which is brought into view, shows what its controls say."""
        if panel == "samples":
            return self.script("{ await samples.draw() }")
        ids = {"ray": "noisy", "edit": "editor", "between": "between"}
        self.page.locator(f"#{ids[panel]}").scroll_into_view_if_needed()
        self.script(f"""{{
            for (;;) {{
                const drawing = {panel}.draw();
                if (drawing) return drawing;
                await new Promise(requestAnimationFrame);
            }}
        }}""")

    def pixels(self, selector: str) -> np.ndarray:
        """What canvases show: uint8 [number, H, W, 3]."""
        images = self.page.eval_on_selector_all(selector, """(all) => all.map((canvas) => {
            const { width, height } = canvas;
            return [height, width, [...canvas.getContext("2d").getImageData(0, 0, width, height).data]];
        })""")  # fmt: skip
        return np.stack([np.array(data, np.uint8).reshape(h, w, 4)[..., :3] for h, w, data in images])

    def wait_for(self, expression: str) -> None:
        self.page.wait_for_function(expression)

    def text(self, identifier: str) -> str:
        return self.page.locator(f"#{identifier}").inner_text()

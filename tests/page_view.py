"""An open page for the tests of the page: watched, and asked for its pixels."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from browser import browser_program, chromium, running
from conftest import make_unet

from diffusers_ict import ConsistencyPipeline, ICTScheduler
from diffusers_ict.errors import UserError
from diffusers_ict.web.build import build_page
from diffusers_ict.web.server import serve

DESKTOP = {"viewport": {"width": 1200, "height": 900}}
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
ANSWER_SECONDS = 120  # of a busy machine
READY = {"samples": "grid", "ray": "noisy", "edit": "editor", "between": "between"}  # what must be in view


@dataclass
class Built:
    """A pipeline, and the folder of its page."""

    pipeline: ConsistencyPipeline
    folder: Path


def build(folder: Path, **unet) -> Built:
    """A tiny pipeline, and its page with WebGPU; the test is skipped where onnxruntime-web cannot be fetched."""
    pipeline = ConsistencyPipeline(make_unet(**unet), ICTScheduler())
    pipeline.save_pretrained(folder / "model")
    try:
        build_page(str(folder / "model"), folder / "page", webgpu=True)
    except UserError as error:
        if "cannot be fetched" not in str(error):
            raise
        pytest.skip(str(error))
    return Built(pipeline, folder / "page")


@contextmanager
def open_browser() -> Iterator:
    """A headless browser; the test is skipped where there is none."""
    pytest.importorskip("playwright", reason="playwright is not installed")
    program = browser_program()
    if program is None:
        pytest.skip("no browser is installed: no chromium, no google-chrome, and nothing in the variable CHROMIUM")
    with chromium(program) as browser:
        yield browser


class Bare(SimpleHTTPRequestHandler):
    """A server without the headers that isolate a page, as any web server is."""

    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript", ".wasm": "application/wasm"}

    def log_message(self, format, *args) -> None:
        pass


def serve_bare(folder: Path) -> ThreadingHTTPServer:
    """A folder on 127.0.0.1, without headers."""
    return ThreadingHTTPServer(("127.0.0.1", 0), partial(Bare, directory=str(folder)))


class View:
    """An open page. `complaints` collects what the console says, requests that fail, and requests to other hosts."""

    def __init__(self, context, address: str, query: str = "") -> None:
        self.page, self.complaints = context.new_page(), []
        self.page.set_default_timeout(ANSWER_SECONDS * 1000)
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("requestfailed", lambda request: self.complaints.append(f"failed: {request.url}"))
        self.page.on("request", lambda request: self._watch(request.url, address))
        self.page.goto(address + query)

    def _watch(self, url: str, address: str) -> None:
        if not url.startswith((address, "data:", "blob:")):
            self.complaints.append(f"elsewhere: {url}")

    def script(self, code: str):
        """The value of an expression of the loaded page's parts: model, samples, ray, edit, between."""
        f = f"async ({{ model, samples, ray, edit, between }}) => {code}"
        return self.page.evaluate(f"async () => ({f})(await window.consistency)")

    def drawn(self, panel: str) -> None:
        """Wait until a panel, which is brought into view, shows what its controls say."""
        self.page.locator(f"#{READY[panel]}").scroll_into_view_if_needed()
        self.script(f"""{{
            for (;;) {{
                const drawing = {panel}.draw();
                if (drawing) return void (await drawing);
                await new Promise(requestAnimationFrame);
            }}
        }}""")

    def until(self, code: str) -> None:
        """Wait until an expression of those parts is true."""
        while not self.script(code):
            self.page.wait_for_timeout(20)

    def choose(self, name: str, value) -> None:
        """Choose a radio button as a pointer does."""
        self.page.locator(f"label:has(> input[name={name}][value='{value}'])").click()

    def pixels(self, selector: str, channels: int = 3) -> np.ndarray:
        """What canvases hold: uint8 [number, H, W, channels], of which the fourth is alpha."""
        images = self.page.eval_on_selector_all(selector, """(all) => all.map((canvas) => {
            const { width, height } = canvas;
            return [height, width, [...canvas.getContext("2d").getImageData(0, 0, width, height).data]];
        })""")  # fmt: skip
        return np.stack([np.array(data, np.uint8).reshape(h, w, 4)[..., :channels] for h, w, data in images])

    def place(self, selector: str, x: float, y: float) -> tuple[float, float]:
        """The place in the window of a place in an element, whose sides are 1."""
        box = self.page.locator(selector).bounding_box()
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    def wait_for_text(self, identifier: str, words: str) -> None:
        """Wait until an element holds some words."""
        self.page.locator(f"#{identifier}", has_text=words).wait_for(state="attached")

    def text(self, identifier: str) -> str:
        return self.page.locator(f"#{identifier}").inner_text()


class Looks:
    """look(folder, ...) opens a page in a browser, at its own server."""

    def __init__(self, browser, stack: ExitStack) -> None:
        self.browser, self.stack, self.views = browser, stack, []

    def __call__(self, folder: Path, context=DESKTOP, script="", isolated=True, query="") -> View:
        address = self.stack.enter_context(running(serve(folder) if isolated else serve_bare(folder)))
        opened = self.browser.new_context(**context)
        self.stack.callback(opened.close)
        opened.add_init_script(script)
        self.views.append(View(opened, address, query))
        return self.views[-1]

    def photograph(self, folder: Path, name: str) -> None:
        """A picture of each page from its top."""
        folder.mkdir(parents=True, exist_ok=True)
        for number, view in enumerate(self.views):
            view.page.evaluate("scrollTo(0, 0)")
            view.page.screenshot(path=folder / f"{name}-{number}.png", full_page=True)

"""The page where it is opened: phones, dark rooms, bare servers, old browsers, broken folders, wrong GPUs."""

import json
import shutil

import numpy as np
import pytest
from page_view import DESKTOP, PHONE

pytestmark = pytest.mark.slow  # builds pages and starts browsers


def test_a_phone_shows_everything_without_scrolling_sideways(coloured, look):
    view = look(coloured.folder, PHONE)
    view.drawn("edit")
    view.drawn("between")
    assert view.page.evaluate("document.documentElement.scrollWidth") == 360
    view.choose("task", "colorize")
    view.drawn("edit")
    assert view.page.evaluate("document.documentElement.scrollWidth") == 360


def test_dark_differs_from_light(grey, look):
    shades = {}
    for scheme in ("light", "dark"):
        view = look(grey.folder, {**DESKTOP, "color_scheme": scheme})
        view.drawn("edit")
        style = "getComputedStyle(document.body)"
        shades[scheme] = [view.page.evaluate(f"{style}.{name}") for name in ("backgroundColor", "color")]
    brightness = {scheme: [sum(map(int, c[4:-1].split(","))) for c in pair] for scheme, pair in shades.items()}
    assert brightness["light"][0] > 3 * 230 > 3 * 60 > brightness["light"][1]
    assert brightness["dark"][1] > 3 * 200 > 3 * 60 > brightness["dark"][0]


def test_a_server_without_headers_will_do(grey, look):
    view = look(grey.folder, isolated=False)
    view.drawn("samples")
    assert not view.page.evaluate("crossOriginIsolated")
    assert "1 thread" in view.text("time")


def test_threads_are_used_where_the_page_is_isolated(grey, look):
    view = look(grey.folder, query="?threads=2")
    view.drawn("samples")
    assert view.page.evaluate("crossOriginIsolated")
    assert "2 threads" in view.text("time")


def test_without_webassembly_the_page_says_what_it_needs(grey, look):
    view = look(grey.folder, script="delete globalThis.WebAssembly")
    view.wait_for_text("status", "WebAssembly")
    assert view.text("status").startswith("This page needs a browser with WebAssembly")
    assert not view.page.locator("main").is_visible()


@pytest.mark.parametrize("name", ["model.json", "model.onnx", "runtime/ort-wasm-simd-threaded.wasm"])
def test_a_missing_file_is_named(grey, look, tmp_path, name):
    shutil.copytree(grey.folder, tmp_path / "page")
    (tmp_path / "page" / name).unlink()
    view = look(tmp_path / "page")
    view.wait_for_text("status", "could not")
    assert view.text("status") == f"The page could not fetch {name} (404)."
    assert all("404" in complaint for complaint in view.complaints), "Chromium's own"
    view.complaints.clear()


def test_a_file_that_is_no_image_is_refused(grey, look, tmp_path):
    (tmp_path / "words.png").write_text("no image")
    view = look(grey.folder)
    view.drawn("edit")
    before = view.pixels("#edits canvas")
    view.page.set_input_files("#file", tmp_path / "words.png")
    view.wait_for_text("status", "words.png")
    view.drawn("edit")
    assert (view.pixels("#edits canvas") == before).all()


STAND_IN = """
    export * from "./ort.wasm.bundle.min.mjs";
    import * as ort from "./ort.wasm.bundle.min.mjs";
    export const InferenceSession = {{ create(model) {{
        {start};
        ort.env.wasm.wasmBinary = undefined; // of the other build
        return ort.InferenceSession.create(model, {{ executionProviders: ["wasm"] }});
    }} }};
"""


@pytest.mark.parametrize("fault", ["none", "wrong", "nan", "absent"])
def test_webgpu_is_used_only_where_it_agrees(grey, look, tmp_path, fault):
    folder = shutil.copytree(grey.folder, tmp_path / "page")
    start = 'throw new Error("There is no GPU.")' if fault == "absent" else ""
    (folder / "runtime" / "ort.webgpu.bundle.min.mjs").write_text(STAND_IN.format(start=start))
    check = np.fromfile(folder / "check.bin", "<f4")
    check[-5] += {"wrong": 0.03, "nan": np.nan}.get(fault, 0.015)
    check.astype("<f4").tofile(folder / "check.bin")
    view = look(folder)
    view.drawn("samples")
    before = view.pixels("#grid canvas")
    view.page.select_option("#backend", "webgpu")
    used = fault == "none"
    view.wait_for_text(*(("time", "WebGPU") if used else ("backend-note", "WebGPU is not used here")))
    view.drawn("samples")
    assert view.page.locator("#backend").input_value() == ("webgpu" if used else "wasm")
    assert ("WebGPU" in view.text("time")) == used
    sentences = {"none": "", "absent": "WebGPU is not used here. There is no GPU."}
    differ = "WebGPU is not used here. Its images differ from those of the pipeline."
    assert view.text("backend-note") == sentences.get(fault, differ)
    assert (view.pixels("#grid canvas") == before).all()


def test_the_page_is_small_and_complete(grey):
    folder = grey.folder
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    of_webgpu = ("runtime/ort.webgpu.bundle.min.mjs", "runtime/ort-wasm-simd-threaded.asyncify.wasm")
    assert sum(size for name, size in sizes.items() if name not in ("model.onnx", *of_webgpu)) <= 15e6
    assert json.loads((folder / "model.json").read_text())["webgpu"] is True
    index = (folder / "index.html").read_text()
    assert "http" not in index.replace("http-equiv", "")
    assert "default-src 'none'" in index

#!/usr/bin/env python
"""The page of a model in headless Chromium on one WebAssembly thread: times, sizes, and a picture of it.

    make demo    # trains runs/digits
    python benchmarks/web.py runs/digits --output benchmarks/results/web --title "Handwritten digits"
    python benchmarks/web.py runs/digits --picture examples/page.png --title "Handwritten digits"

Each time is a median over loads of the page. Seconds of CPU are those of all processes of the browser.
"""

import argparse
import io
import os
import statistics
import tempfile
import time
from pathlib import Path

from browser import browser_program, chromium, running
from PIL import Image
from provenance import provenance, table, write_report

from diffusers_ict.web.build import build_page
from diffusers_ict.web.server import serve

SAMPLES = 100
WINDOW = (800, 960)
SHOWN = 43  # the sample that the picture edits
WEIGHTS = ("model.onnx",)
OPENED = "performance.getEntriesByName('samples')[0].startTime / 1000"
REDRAW = """async (steps) => {
    const { samples } = await window.consistency;
    document.querySelector(`input[name=steps][value="${steps}"]`).checked = true;
    const before = performance.now();
    await samples.draw();
    return (performance.now() - before) / 1000;
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder or Hub id of a consistency pipeline")
    parser.add_argument("--output", type=Path, help="measure, and write OUTPUT.json and OUTPUT.md")
    parser.add_argument("--picture", type=Path, help="photograph the page in this PNG")
    parser.add_argument("--title", help="of the page")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    program = browser_program()
    if program is None:
        parser.error("no browser is installed: install chromium, or name one in the variable CHROMIUM")
    with tempfile.TemporaryDirectory() as folder:
        build_page(options.model, Path(folder), title=options.title)
        with chromium(program) as browser, running(serve(Path(folder))) as address:
            if options.picture:
                photograph(browser, address, options.picture)
            if options.output:
                report = {**provenance(), "browser": f"Chromium {browser.version}", **sizes(Path(folder))}
                report |= measure(browser, address, options.repeats)
                write_report(options.output, report, *lines_of(report))


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of the page, and of the weights."""
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    weights = sum(files.pop(name) for name in WEIGHTS)
    return {"page_bytes": sum(files.values()), "weights_bytes": weights}


def measure(browser, address: str, repeats: int) -> dict:
    """Seconds until the first samples and of all samples with one and with two steps, in turns."""
    rows: dict[str, list[float]] = {
        name: [] for name in ("open", "one_step", "two_steps", "cpu_one", "cpu_two", "load")
    }
    for _ in range(repeats):
        context = browser.new_context()  # a new cache
        page = context.new_page()
        page.goto(f"{address}?threads=1")
        count = page.evaluate("window.consistency.then(({ samples }) => samples.tiles.length)")
        if count != SAMPLES:
            raise SystemExit(f"this benchmark is for pages with {SAMPLES} samples, and this one has {count}.")
        rows["open"].append(page.evaluate(OPENED))
        for steps, wall, cpu in ((1, "one_step", "cpu_one"), (2, "two_steps", "cpu_two")):
            before = cpu_seconds(browser)
            rows[wall].append(page.evaluate(REDRAW, steps))
            rows[cpu].append(cpu_seconds(browser) - before)
        rows["load"].append(os.getloadavg()[0])
        context.close()
    return {"samples": SAMPLES, "each": rows, **{name: statistics.median(values) for name, values in rows.items()}}


def cpu_seconds(browser) -> float:
    """Seconds of CPU that the browser's processes have used."""
    time.sleep(0.2)  # until what ended before is counted
    session = browser.new_browser_cdp_session()
    processes = session.send("SystemInfo.getProcessInfo")["processInfo"]
    session.detach()
    return sum(process["cpuTime"] for process in processes)


def photograph(browser, address: str, file: Path) -> None:
    """Two windows side by side: the samples on a light page, and an edit with what follows on a dark one."""
    windows = []
    for scheme, section, drawn in (("light", "html", "time"), ("dark", "section:has(#edit-title)", "edit-time")):
        page = browser.new_page(viewport={"width": WINDOW[0], "height": WINDOW[1]}, color_scheme=scheme)
        page.goto(address)
        page.evaluate("window.consistency")
        page.locator("#grid canvas").nth(SHOWN).click()
        page.evaluate(f"document.querySelector('{section}').scrollIntoView()")
        page.locator(f"#{drawn}", has_text="ms").wait_for()
        page.evaluate("window.consistency.then(({ between }) => between.draw())")
        windows.append(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
        page.close()
    picture = Image.new("RGB", (2 * WINDOW[0], WINDOW[1]))
    for number, window in enumerate(windows):
        picture.paste(window, (number * WINDOW[0], 0))
    picture.quantize(128).save(file, optimize=True)


def lines_of(report: dict) -> tuple[str, list[str]]:
    """The report as Markdown: words and a table."""
    rows = [
        ("from opening to the first samples", "open", None),
        (f"{report['samples']} samples with one step", "one_step", "cpu_one"),
        (f"{report['samples']} samples with two steps", "two_steps", "cpu_two"),
    ]
    words = (
        f", {report['browser']}, one WebAssembly thread, load average {report['load']:.1f}, median of "
        f"{len(report['each']['open'])} loads of the page from this machine."
    )
    cells = []
    for what, name, cpu in rows:
        each = ", ".join(f"{value:.2f}" for value in report["each"][name])
        cells.append([what, f"{report[name]:.2f}", each, f"{report[cpu]:.2f}" if cpu else ""])
    sizes = f"The page has {report['page_bytes'] / 1e6:.1f} MB, most of it onnxruntime-web, and the weights have "
    lines = table(["what", "seconds", "each", "seconds of CPU"], cells)
    return words, [*lines, "", f"{sizes}{report['weights_bytes'] / 1e6:.1f} MB."]


if __name__ == "__main__":
    main()

"""The page in a real browser draws what the pipeline draws, and follows every control."""

import numpy as np
import pytest
import torch
from page_view import PHONE, View
from PIL import Image

from diffusers_ict.transparency import on_checkerboard

pytestmark = pytest.mark.slow  # builds pages and starts browsers
GREY_LEVELS = 2  # by which 8-bit images of browser and pipeline may differ
OUTPUTS = {"samples": "#grid canvas", "ray": "#denoised", "edit": "#edits canvas", "between": "#between"}


def bytes_of(images: torch.Tensor) -> np.ndarray:
    """Images in [-1, 1] as the pipeline saves them: [B, C, H, W] -> uint8 [B, H, W, 3]."""
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return np.broadcast_to(pixels, (*pixels.shape[:3], 3))


def furthest(a: np.ndarray, b: np.ndarray) -> int:
    return np.abs(a.astype(int) - b.astype(int)).max()


def noises_of(view: View, expression: str, shape) -> list[torch.Tensor]:
    """Noise of the page at each level, [B, C, H, W] each."""
    given = view.script(f"({expression}).map((image) => image.map((noise) => [...noise]))")
    return [torch.tensor(level).reshape(-1, *shape) for level in zip(*given)]


# ------------------------------------------------------------------ images


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_samples_are_those_of_the_pipeline(grey, look, steps, monkeypatch):
    view = look(grey.folder)
    view.choose("steps", steps)
    view.drawn("samples")
    noises = noises_of(view, "[0, 1, 2, 50].map((index) => samples.noises(index))", (1, 8, 8))
    assert len(noises) == steps

    later = iter([*noises[1:], torch.zeros(1)])  # the last step adds none
    monkeypatch.setattr("diffusers_ict.scheduling_ict.randn_tensor", lambda *args, **options: next(later))
    images = grey.pipeline(4, [0, 1, 2, 2], steps, latents=noises[0], output_type="latent").images
    assert furthest(view.pixels("#grid canvas")[[0, 1, 2, 50]], bytes_of(images)) <= GREY_LEVELS


def test_noise_is_standard_normal_and_differs_between_images(grey, look):
    noise = noises_of(look(grey.folder), "samples.tiles.map((_, i) => samples.noises(i))", (64,))
    values = torch.stack(noise).double()
    assert abs(values.mean()) < 0.03
    assert abs(values.std() - 1) < 0.03
    assert abs((values**4).mean() / 3 - 1) < 0.15
    correlations = np.corrcoef(values.reshape(-1, 64).numpy())
    assert np.abs(correlations - np.eye(2 * 99)).max() < 0.7


def edited(function, y, project, sigmas, noises):
    """CM, Algorithm 4, by its letter: what is known replaces what was drawn, after every evaluation."""
    x = project(y) + sigmas[0] * noises[0]
    for step, sigma in enumerate(sigmas):
        x = function(x, torch.full((len(x),), sigma)).clamp(-1, 1)
        x = x - project(x) + project(y)
        if step + 1 < len(sigmas):
            x = x + (sigmas[step + 1] ** 2 - 0.002**2) ** 0.5 * noises[step + 1]
    return x


@pytest.mark.parametrize("steps", [1, 4])
def test_edits_are_those_of_the_algorithm(grey, look, steps):
    view = look(grey.folder)
    view.drawn("samples")
    view.choose("edit-steps", steps)
    view.page.select_option("#edit-class", "1")
    view.drawn("edit")
    pipeline = grey.pipeline
    levels = pipeline.scheduler.sampling_sigmas(steps).tolist()
    noises = noises_of(view, "edit.canvases.map((_, i) => edit.noises(i))", (1, 8, 8))
    y = torch.tensor(view.script("[...edit.image]")).reshape(1, 1, 8, 8)
    upper = (torch.arange(8) < 4).float()[:, None]
    function, labels = pipeline.scheduler.consistency_function(pipeline.unet), torch.ones(4, dtype=torch.int64)
    with torch.no_grad():
        images = edited(lambda x, sigma: function(x, sigma, labels), y, lambda x: x * upper, levels, noises)
    assert furthest(view.pixels("#edits canvas"), bytes_of(images)) <= GREY_LEVELS


def test_upscaling_keeps_means_and_colourising_keeps_luminance(coloured, look, tmp_path):
    view = look(coloured.folder)
    y = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(y).save(tmp_path / "own.png")
    view.drawn("samples")
    view.page.set_input_files("#file", tmp_path / "own.png")
    view.until("edit.own")
    view.choose("task", "upscale")
    view.drawn("edit")
    patches = view.pixels("#edits canvas").reshape(4, 4, 2, 4, 2, 3).mean((2, 4))
    assert np.abs(patches - y.reshape(4, 2, 4, 2, 3).mean((1, 3))).max() <= 0.75  # rounded four times
    view.choose("task", "colorize")
    view.drawn("edit")
    weights = np.array([0.2989, 0.5870, 0.1140])
    images = view.pixels("#edits canvas")
    assert np.abs(images @ weights - y @ weights).max() <= 0.5
    assert furthest(images, y[None]) > 8, "colours are new"
    assert furthest(images[:1], images[1:2]) > 0


def test_transparent_images_are_those_of_the_pipeline_on_a_checkerboard(transparent, look, tmp_path):
    view = look(transparent.folder)
    view.choose("steps", 1)
    view.drawn("samples")
    (noise,) = noises_of(view, "[0, 1, 2, 3].map((index) => samples.noises(index))", (4, 8, 8))
    images = transparent.pipeline(4, [0, 1, 2, 3], latents=noise, output_type="np").images  # [4, 8, 8, 4] in [0, 1]
    drawn = view.pixels("#grid canvas", channels=4)[:4] / 255
    assert np.abs(drawn[..., 3] - images[..., 3]).max() <= GREY_LEVELS / 255
    assert np.ptp(images[..., 3]) > 0.3, "one alpha for all proves nothing"
    seen = np.abs(drawn[..., :3] - images[..., :3]) * images[..., 3:]  # canvases keep colours times alpha
    assert seen.max() <= GREY_LEVELS / 255

    view.drawn("ray")
    view.page.locator("#sigma").press("End")
    view.drawn("ray")
    view.page.locator("#denoised").screenshot(path=tmp_path / "shown.png")
    shown = np.asarray(Image.open(tmp_path / "shown.png").convert("RGB")) / 255
    centres = [((np.arange(8) + 0.5) * side / 8).astype(int) for side in shown.shape[:2]]
    board = on_checkerboard(view.pixels("#denoised", channels=4) / 255)[0]
    assert np.abs(shown[np.ix_(*centres)] - board).max() <= GREY_LEVELS / 255


def test_a_transparent_picture_keeps_its_alpha_in_an_edit(transparent, look, tmp_path):
    view = look(transparent.folder)
    view.drawn("samples")
    own = np.full((8, 8, 4), (200, 100, 50, 255), np.uint8)
    own[2:, 2:, 3] = 0
    Image.fromarray(own).save(tmp_path / "own.png")
    view.page.set_input_files("#file", tmp_path / "own.png")
    view.until("edit.own")
    view.drawn("edit")
    edited_images = view.pixels("#edits canvas", channels=4)
    assert (edited_images[:, :4, :, 3] == own[:4, :, 3]).all()
    assert (edited_images[:, :2, :, :3] == own[:2, :, :3]).all()
    assert not view.page.locator("label.colour").is_visible()


# ------------------------------------------------------------------ controls

CONTROLS = {
    "second": ("samples", lambda page: page.locator("#second").press("PageUp")),
    "steps": ("samples", lambda page: page.locator("input[name=steps]:checked").press("ArrowLeft")),
    "class": ("samples", lambda page: page.select_option("#class", "2")),
    "seed": ("samples", lambda page: page.locator("#seed").fill("7")),
    "new seed": ("samples", lambda page: page.locator("#reseed").press("Enter")),
    "select by key": ("ray", lambda page: page.locator("#grid [tabindex='0']").press("ArrowDown")),
    "select by pointer": ("ray", lambda page: page.locator("#grid canvas").nth(33).click()),
    "select for the edit": ("edit", lambda page: page.locator("#grid canvas").nth(2).click()),
    "select for between": ("between", lambda page: page.locator("#grid [tabindex='0']").press("End")),
    "sigma": ("ray", lambda page: page.locator("#sigma").press("End")),
    "edit steps": ("edit", lambda page: page.locator("input[name=edit-steps]:checked").press("ArrowLeft")),
    "edit class": ("edit", lambda page: page.select_option("#edit-class", "0")),
    "redraw": ("edit", lambda page: page.locator("#redraw").press("Space")),
    "clear": ("edit", lambda page: page.locator("#clear").press("Enter")),
    "task": ("edit", lambda page: page.locator("input[name=task]:checked").press("ArrowRight")),
    "factor": ("edit", lambda page: page.select_option("#factor", "4")),
    "position": ("between", lambda page: page.locator("#position").press("PageUp")),
    "other": ("between", lambda page: page.locator("#other").press("Enter")),
}


def test_every_control_changes_the_images(grey, look):
    view = look(grey.folder)
    for name, (panel, action) in CONTROLS.items():
        view.drawn(panel)
        before = view.pixels(OUTPUTS[panel])
        action(view.page)
        view.drawn(panel)
        assert (view.pixels(OUTPUTS[panel]) != before).any(), name
    assert " ms an image with WebAssembly" in view.text("time")


def test_a_sample_is_downloaded_as_it_is(transparent, look):
    view = look(transparent.folder)
    view.drawn("samples")
    view.page.locator("#grid canvas").nth(3).click()
    with view.page.expect_download() as coming:
        view.page.locator("#save").click()
    assert coming.value.suggested_filename == "model-0-4.png"
    saved = np.asarray(Image.open(coming.value.path()))
    assert (saved == view.pixels("#grid canvas", channels=4)[3]).all()


def test_seeds_are_whole_numbers_from_zero_on(grey, look):
    view = look(grey.folder)
    for typed, seed in (("-5", 0), ("7", 7), ("2.5", 2), ("1e30", 2**32 - 1), ("", 0)):
        view.page.locator("#seed").fill(typed)
        assert view.script("samples.seed") == seed
        assert view.page.locator("#seed").input_value() == (typed and str(seed))


LAYOUTS = {None: (10, 10), 1: (10, 10), 2: (10, 10), 3: (9, 11), 4: (12, 8), 5: (10, 10), 7: (7, 14), 12: (12, 8)}


def test_the_grid_has_about_ten_columns_whatever_the_classes(grey, look):
    view = look(grey.folder)
    layouts = """Promise.all([null, 1, 2, 3, 4, 5, 7, 12, 1000].map(async (num_classes) => {
        const { layoutOf } = await import("./samples.js");
        return Object.values(layoutOf({ resolution: 8, num_classes }));
    }))"""
    assert [tuple(layout) for layout in view.page.evaluate(layouts)] == [*LAYOUTS.values(), (10, 10)]


def test_a_newer_request_replaces_older_ones(grey, look):
    view = look(grey.folder, script=COUNT_EVALUATIONS)
    view.drawn("samples")
    before = view.page.evaluate("evaluations")
    view.script("{ for (let i = 0; i < 500; i++) samples.draw() }")
    view.drawn("samples")
    drawings = (view.page.evaluate("evaluations") - before) / (2 * 99 / 20)  # of 99 images by 20 with two steps
    assert 0 < drawings < 20


COUNT_EVALUATIONS = """
    window.evaluations = 0;
    const { postMessage } = Worker.prototype;
    Worker.prototype.postMessage = function (...message) {
        window.evaluations += 1;
        return postMessage.apply(this, message);
    };
"""


def erased(view: View) -> np.ndarray:
    return np.array(view.script("[...edit.mask.pixels]")).reshape(8, 8) == 1


def check_inpainting(view: View, mask: np.ndarray) -> None:
    """The page shows this mask, and images that differ from the given one there and nowhere else."""
    view.drawn("edit")
    assert (erased(view) == mask).all()
    images, given = (
        view.pixels("#edits canvas"),
        bytes_of(torch.tensor(view.script("[...edit.image]")).view(1, 1, 8, 8)),
    )
    assert (images[:, ~mask] == given[:, ~mask]).all()
    assert (images[:, mask] != given[:, mask]).any((0, 2)).mean() > 0.8
    known = view.pixels("#editor")[0]
    assert (known[~mask] == given[0][~mask]).all()
    assert (known[mask] == known[mask][0]).all()


def test_a_pointer_erases(grey, look):
    view = look(grey.folder)
    view.drawn("edit")
    check_inpainting(view, np.arange(64).reshape(8, 8) >= 32)
    view.page.locator("#clear").click()
    view.page.locator("#brush").fill("1")
    view.page.mouse.move(*view.place("#editor", 1.5 / 8, 2.5 / 8))
    view.page.mouse.down()
    view.page.mouse.move(*view.place("#editor", 6.5 / 8, 2.5 / 8))  # in one leap: what lies between is erased, too
    view.page.mouse.up()
    view.page.mouse.move(*view.place("#editor", 6.5 / 8, 6.5 / 8))
    mask = np.zeros((8, 8), bool)
    mask[2, 1:7] = True
    check_inpainting(view, mask)


def test_a_finger_erases_on_a_phone(grey, look):
    view = look(grey.folder, PHONE)
    view.drawn("edit")
    view.page.locator("#clear").tap()
    view.page.locator("#brush").fill("1")
    view.page.locator("#editor").scroll_into_view_if_needed()
    touch = view.page.context.new_cdp_session(view.page)
    for kind, place in (("touchStart", (4.5 / 8, 1.5 / 8)), ("touchMove", (4.5 / 8, 4.5 / 8)), ("touchEnd", None)):
        points = [] if place is None else [dict(zip("xy", view.place("#editor", *place)))]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    mask = np.zeros((8, 8), bool)
    mask[1:5, 4] = True
    check_inpainting(view, mask)


def test_keys_erase_and_restore(grey, look):
    view = look(grey.folder)
    view.drawn("edit")
    view.page.locator("#clear").press("Enter")
    view.page.locator("#brush").fill("1")
    editor = view.page.locator("#editor")
    for key in ["Space", "ArrowLeft", "ArrowUp", "Space", "ArrowUp", "Space", "Space"]:
        editor.press(key)
    mask = np.zeros((8, 8), bool)
    mask[4, 4] = mask[3, 3] = True
    check_inpainting(view, mask)


def test_dragging_interpolates(grey, look):
    view = look(grey.folder)
    view.drawn("between")
    for end in ("from", "to"):
        view.page.mouse.move(*view.place("#between", 0.5, 0.5))
        view.page.mouse.down()
        view.page.mouse.move(*view.place(f"#{end}", 0.5, 0.5))
        view.page.mouse.up()
        view.drawn("between")
        assert (view.pixels("#between") == view.pixels(f"#{end}")).all(), end
    assert (view.pixels("#from")[0] == view.pixels("#grid canvas")[0]).all()


def test_everything_is_reached_by_the_tabulator(grey, look):
    view = look(grey.folder)
    view.drawn("edit")
    reached, outlines = [], set()
    while (name := view.page.evaluate(FOCUSED)) not in reached:
        reached.append(name)
        outlines.add(
            view.page.evaluate("""[document.activeElement, document.activeElement.parentElement]
            .some((element) => getComputedStyle(element).outlineStyle === "solid")""")
        )
        view.page.keyboard.press("Tab")
    wanted = (
        "CANVAS steps second class seed reseed save sigma editor task brush edit-steps edit-class clear redraw file "
    )
    assert [name for name in reached if name != "BODY"][: len(reached)] == [
        *wanted.split(), "position", "other", *reached[reached.index("other") + 1 :]
    ]  # fmt: skip
    nameless = view.page.evaluate("""[...document.querySelectorAll("input, select, button, canvas")]
        .filter((e) => e.checkVisibility() && !(e.labels?.length || e.ariaLabel || e.textContent.trim()))
        .filter((e) => !e.closest("[role=img]")).map((e) => e.id)""")
    assert nameless == []


FOCUSED = "document.activeElement.name || document.activeElement.id || document.activeElement.tagName"

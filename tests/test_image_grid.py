"""Pictures of samples: what is transparent, which images are shown, and what stands beside them."""

import numpy as np
import pytest
import torch
from conftest import make_unet

from diffusers_ict import ICTScheduler
from diffusers_ict.data.dataset import Images
from diffusers_ict.image_grid import LINES, _fitted, image_grid, labelled_blocks, legible
from diffusers_ict.training.samples import make_pipeline, sample_picture

SIDE, GAP = 64, 2  # of a shown image of 8 pixels
BOARD = [[204] * 3, [255] * 3]


def tiles(picture, columns):
    """The shown images from the top, [rows of all blocks, columns, 64, 64, 3], without what stands beside them."""
    pixels = np.asarray(picture)
    left = picture.width - columns * (SIDE + GAP) + GAP
    rows, bottom = [], picture.height
    while bottom >= SIDE:
        top = bottom - SIDE
        rows.append([pixels[top:bottom, left + c * (SIDE + GAP) :][:, :SIDE] for c in range(columns)])
        bottom = top - (4 * GAP if (pixels[top - 4 * GAP : top, left:] == 255).all() else GAP)
    return np.array(rows[::-1])


def stickers(hidden, count=20):
    """Red lower halves; what the transparent upper halves hide is of one colour."""
    pixels = torch.zeros(count, 4, 8, 8, dtype=torch.uint8)
    pixels[:, :3, :4] = torch.tensor(hidden, dtype=torch.uint8)[:, None, None]
    pixels[:, 0, 4:] = pixels[:, 3, 4:] = 255
    return pixels


def shown(images, count, classes=None, seed=0):
    channels = images.shape[0]
    unet = make_unet(num_class_embeds=classes, in_channels=channels, out_channels=channels)
    return sample_picture(make_pipeline(unet, ICTScheduler()), images, count, seed)


def test_transparency_is_a_checkerboard_and_hidden_colours_are_not_seen():
    black, green = (image_grid((stickers(c) / 255).permute(0, 2, 3, 1).numpy(), 5, zoom=8)
                    for c in ((0, 0, 0), (0, 255, 0)))  # fmt: skip
    assert np.array_equal(black, green)
    assert black.mode == "RGB"
    pixels = np.asarray(black)
    assert np.unique(pixels[:32, :64].reshape(-1, 3), axis=0).tolist() == BOARD
    assert (pixels[32:64, :64] == [255, 0, 0]).all()
    half = np.full((1, 8, 8, 4), 0.5)
    assert np.unique(image_grid(half, 1)).tolist() == [166, 191]  # halves of 0.5 and 0.8, and of 0.5 and 1


def test_the_real_row_of_stickers_and_of_classes_without_images_has_no_black():
    labels = torch.arange(20) % 2 * 2
    for hidden in ((0, 0, 0), (9, 99, 9)):
        real = tiles(shown(Images(stickers(hidden), labels, 3), 6, 3), 6)[0]
        assert np.unique(real[[0, 2, 3, 5], :32].reshape(-1, 3), axis=0).tolist() == BOARD
        assert (real[[0, 2, 3, 5], 32:] == [255, 0, 0]).all()
        assert (real[[1, 4]] == 255).all(), "class 1 has no images"
    grey = Images(torch.zeros(20, 1, 8, 8, dtype=torch.uint8), labels, 3)
    assert [column.max() for column in tiles(shown(grey, 6, 3), 6)[0]] == [0, 255, 0] * 2


def test_data_with_classes_has_no_names_above_the_samples_of_a_model_without():
    images = Images(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4) % 2, 2, ("cat", "dog"))
    assert shown(images, 4).height == 3 * SIDE + 2 * 4 * GAP < shown(images, 4, 2).height


@pytest.mark.parametrize("classes", [None, 4])
def test_real_images_are_a_random_draw_by_the_seed(classes):
    values = torch.arange(100, dtype=torch.uint8)
    pixels = values[:, None, None, None].expand(100, 1, 8, 8)
    images = Images(pixels, values.long() % 4 if classes else None, classes)

    def drawn(seed, count=12):
        return [int(tile[0, 0, 0]) for tile in tiles(shown(images, count, classes, seed), count)[0]]

    first = drawn(0)
    assert first == drawn(0) != drawn(1)
    assert len(set(first)) == 12
    assert max(first) > 30
    assert not classes or [value % 4 for value in first] == [0, 1, 2, 3] * 3
    few = Images(pixels[:3], None if classes is None else torch.tensor([0, 1, 1]), classes)
    assert len(tiles(shown(few, 8, classes), 8)[0]) == 8, "images are shown again where there are no more"


@pytest.mark.parametrize(("classes", "count", "columns"), [(3, 40, 15), (10, 40, 10), (16, 40, 16), (2, 17, 16)])
def test_all_images_of_a_column_are_of_its_class(classes, count, columns):
    labels = torch.arange(160) % classes
    images = Images((labels * 10).to(torch.uint8)[:, None, None, None].expand(160, 1, 8, 8), labels, classes)
    rows = -(-count // columns)
    real = tiles(shown(images, count, classes), columns)[:rows]
    for number in range(count):
        assert real[number // columns, number % columns, 0, 0, 0] == 10 * (number % columns % classes)


def test_many_classes_in_several_rows_have_the_number_of_the_first_beside_each():
    images = Images(torch.zeros(30, 1, 8, 8, dtype=torch.uint8), torch.arange(30), 30)
    picture = shown(images, 25, 30)
    left = picture.width - 5 * (SIDE + GAP) + GAP
    assert picture.height == 3 * (5 * (SIDE + GAP) - GAP) + 2 * 4 * GAP, "no names above"
    for block in range(3):
        for row in range(5):
            top = block * (5 * (SIDE + GAP) - GAP + 4 * GAP) + row * (SIDE + GAP)
            assert (np.asarray(picture)[top : top + SIDE, left - 25 : left] < 128).any()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Käfer", "Käfer"), ("Ka\u0308fer", "Käfer"), ("Собака", "Собака"), ("T-shirt/top", "T-shirt/top"),
        ("two\nlines\t of it", "two lines of it"), ("猫", "7"), ("犬 dog", "7"), ("שלום", "7"), ("قط", "7"),
        ("\x1b[31mred", "7"), ("", "7"), (" \n", "7"), ("\U0001f996", "7"), ("\ud800", "7"),
    ],
)  # fmt: skip
def test_names_that_the_font_cannot_write_are_numbers(name, shown):
    assert legible(name, "7") == shown


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("cat", True), ("golden_retriever", True), ("T-shirt/top", True), ("Irish water spaniel", True),
        ("great grey owl, Strix nebulosa", True), ("W" * 300, False), ("a b " * 1250, False), ("word " * 60, False),
    ],
)  # fmt: skip
def test_long_names_are_wrapped_and_smaller_and_stay_in_their_column(name, whole):
    picture = labelled_blocks({"": np.ones((3, 8, 8, 1))}, 3, ["", name, ""])
    above = np.asarray(picture)[: picture.height - SIDE]
    assert (above[:, SIDE + GAP : 2 * SIDE + GAP] < 128).any()
    assert (above[:, :SIDE] == 255).all()
    assert (above[:, 2 * (SIDE + GAP) :] == 255).all()
    font, lines = _fitted(name[:200], SIDE)
    assert len(lines) <= LINES
    assert "".join(lines).replace(" ", "") == name.replace(" ", "") or not whole
    assert lines[-1].endswith("…") != whole
    assert all(font.getlength(line) <= SIDE for line in lines)

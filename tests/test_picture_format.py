"""Single pictures: transparency, orientation, and values of more than 8 bits."""

import numpy as np
import pytest
from PIL import Image
from test_images import folder

from diffusers_ict.data.images import load_images, read_images
from diffusers_ict.data.source import Source
from diffusers_ict.errors import UserError


def see_through(mode: str) -> Image.Image:
    """Left half transparent over hidden red, right half opaque (200, 100, 50) or grey 200."""
    picture = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    picture.paste((200, 100, 50, 255), (4, 0, 8, 8))
    if mode == "LA":
        grey = Image.new("LA", (8, 8), (30, 0))
        grey.paste((200, 255), (4, 0, 8, 8))
        return grey
    if mode == "P":
        palette = Image.new("P", (8, 8), 0)
        palette.putpalette([255, 0, 0, 200, 100, 50])
        palette.paste(1, (4, 0, 8, 8))
        palette.info["transparency"] = 0
        return palette
    return picture


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize(
    ("options", "left"),
    [({}, (255, 255, 255)), ({"background": "#0a141e"}, (10, 20, 30)), ({"background": "red"}, (255, 0, 0))],
)
def test_transparent_pixels_show_the_background(tmp_path, mode, options, left):
    where = folder(tmp_path, {"1.png": see_through(mode)})
    pixels = load_images(train_data_dir=where, image_mode="RGB", **options).pixels[0]
    assert tuple(pixels[:, 0, 0].tolist()) == left
    assert pixels[:, 0, 7].tolist() == ([200] * 3 if mode == "LA" else [200, 100, 50])
    grey = load_images(train_data_dir=where, image_mode="L", **options).pixels[0, 0, 0, 0]
    assert grey == Image.new("RGB", (1, 1), left).convert("L").getpixel((0, 0))


def test_half_transparent_pixels_are_mixed_and_alpha_is_kept_where_the_mode_has_it(tmp_path):
    where = folder(tmp_path, {"1.png": Image.new("RGBA", (8, 8), (100, 0, 200, 51))})
    mixed = load_images(train_data_dir=where, image_mode="RGB").pixels[0, :, 0, 0]
    assert mixed.tolist() == [round(0.2 * v + 0.8 * 255) for v in (100, 0, 200)]
    kept = load_images(train_data_dir=where, image_mode="RGBA", background="black").pixels[0, :, 0, 0]
    assert kept.tolist() == [100, 0, 200, 51]


def test_an_alpha_channel_that_nobody_asked_for_gives_a_warning(tmp_path):
    where = folder(tmp_path, {"1.png": see_through("RGBA")})
    with pytest.warns(UserWarning, match=r"four channels.*`image_mode` RGB") as caught:
        assert load_images(train_data_dir=where).shape == (4, 8, 8)
    assert len(caught) == 1


def oriented(path) -> Image.Image:
    """Writes a picture that is lying on its side, and returns it upright."""
    upright = Image.new("L", (8, 8))
    upright.paste(255, (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    upright.rotate(90).save(path, exif=exif)
    return upright


def test_pictures_are_turned_upright_whatever_their_source(tmp_path):
    for name in ("1.png", "1.tiff"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        expected = np.asarray(oriented(tmp_path / name))
        with Image.open(tmp_path / name) as picture:
            own = read_images(Source([picture], 1))
        assert np.array_equal(own.pixels[0, 0].numpy(), expected), name
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / name).rename(tmp_path / "folder" / name)
    both = load_images(train_data_dir=str(tmp_path / "folder"))
    assert np.array_equal(both.pixels[0, 0].numpy(), expected)
    assert np.array_equal(both.pixels[1, 0].numpy(), expected)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("options", [{}, {"image_mode": "L"}, {"image_mode": "RGB"}])
def test_sixteen_bits_become_eight_by_their_range(tmp_path, suffix, options):
    values = np.array([[0, 257, 25700, 65535]] * 4, np.uint16)
    where = folder(tmp_path, {f"1.{suffix}": Image.fromarray(values)})
    pixels = load_images(train_data_dir=where, **options).pixels
    assert pixels[0, 0, 0].tolist() == [0, 1, 100, 255]
    assert len(pixels[0]) == (3 if options.get("image_mode") == "RGB" else 1)


def test_integers_and_floats_are_taken_by_their_range_or_refused(tmp_path):
    rows = {
        "integers": (np.int32, [0, 257, 25700, 65535], [0, 1, 100, 255]),
        "shares": (np.float32, [0, 0.2, 0.5, 1], [0, 51, 128, 255]),
        "levels": (np.float32, [0, 0.6, 127.4, 255], [0, 1, 127, 255]),
        "negative": (np.float32, [-1, 0, 0, 1], "floats from -1 to 1 and must lie within 0 and 1, or within 0 and 255"),
        "large": (np.float32, [0, 0, 0, 1000], "floats from 0 to 1000 and must"),
        "nan": (np.float32, [0, 0, np.nan, 1], "floats from nan to nan and must"),
        "too_large": (np.int32, [0, 0, 0, 70000], "integers from 0 to 70000 and must lie within 0 and 65535"),
    }
    for name, (kind, values, expected) in rows.items():
        where = folder(tmp_path / name, {"1.tiff": Image.fromarray(np.array([values] * 4, kind))})
        if isinstance(expected, str):
            with pytest.raises(UserError, match=rf"1\.tiff cannot be read \(its values are {expected}"):
                load_images(train_data_dir=where, image_mode="L")
        else:
            assert load_images(train_data_dir=where).pixels[0, 0, 0].tolist() == expected, name

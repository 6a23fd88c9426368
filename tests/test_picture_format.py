"""Single pictures: transparency, orientation, and values of more than 8 bits."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from test_images import encoded, folder

from diffusers_ict.data.load import load_images
from diffusers_ict.data.transform import PictureFormat
from diffusers_ict.errors import UserError


def see_through(mode: str) -> Image.Image:
    """Left half transparent over hidden red, or grey 30, right half opaque (200, 100, 50) or grey 200."""
    grey = mode in ("L", "LA")
    hidden, shown = ((30, 0), (200, 255)) if grey else ((255, 0, 0, 0), (200, 100, 50, 255))
    picture = Image.new("LA" if grey else "RGBA", (8, 8), hidden)
    picture.paste(shown, (4, 0, 8, 8))
    if mode == "P":
        palette = Image.new("P", (8, 8), 0)
        palette.putpalette([255, 0, 0, 200, 100, 50])
        palette.paste(1, (4, 0, 8, 8))
        palette.info["transparency"] = 0
        return palette
    if mode in ("L", "RGB"):
        picture = picture.convert(mode)  # which only forgets the alpha channel
        picture.info["transparency"] = picture.getpixel((0, 0))
    return picture


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_transparent_pixels_show_the_background_or_keep_their_transparency_with_a_warning(tmp_path, mode):
    """An alpha channel, a transparent entry of a palette, and one transparent colour."""
    where, grey = folder(tmp_path, {"1.png": see_through(mode)}), mode in ("LA", "L")
    for options, left in (
        ({}, (255, 255, 255)),
        ({"background": "#0a141e"}, (10, 20, 30)),
        ({"background": "red"}, (255, 0, 0)),
    ):
        pixels = load_images(train_data_dir=where, image_mode="RGB", **options).pixels[0]
        assert tuple(pixels[:, 0, 0].tolist()) == left
        assert pixels[:, 0, 7].tolist() == ([200] * 3 if grey else [200, 100, 50])
        first = load_images(train_data_dir=where, image_mode="L", **options).pixels[0, 0, 0, 0]
        assert first == Image.new("RGB", (1, 1), left).convert("L").getpixel((0, 0))
    with pytest.warns(UserWarning, match=r"four channels.*`image_mode` RGB") as caught:
        pixels = load_images(train_data_dir=where).pixels[0]
    assert len(caught) == 1
    assert pixels[:, 0, 7].tolist() == ([200, 200, 200, 255] if grey else [200, 100, 50, 255])
    assert pixels[3, 0, 0] == 0


def test_half_transparent_pixels_are_mixed_and_alpha_is_kept_where_the_mode_has_it(tmp_path):
    where = folder(tmp_path, {"1.png": Image.new("RGBA", (8, 8), (100, 0, 200, 51))})
    mixed = load_images(train_data_dir=where, image_mode="RGB").pixels[0, :, 0, 0]
    assert mixed.tolist() == [round(0.2 * v + 0.8 * 255) for v in (100, 0, 200)]
    kept = load_images(train_data_dir=where, image_mode="RGBA", background="black").pixels[0, :, 0, 0]
    assert kept.tolist() == [100, 0, 200, 51]


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("options", [{}, {"image_mode": "L"}, {"image_mode": "RGB"}])
def test_sixteen_bits_become_eight_by_their_range(tmp_path, suffix, options):
    values = np.array([[0, 257, 25700, 65535]] * 4, np.uint16)
    where = folder(tmp_path, {f"1.{suffix}": Image.fromarray(values)})
    pixels = load_images(train_data_dir=where, **options).pixels
    assert pixels[0, 0, 0].tolist() == [0, 1, 100, 255]
    assert len(pixels[0]) == (3 if options.get("image_mode") == "RGB" else 1)


def test_colours_of_sixteen_bits(tmp_path):
    values = np.zeros((4, 4, 3), np.uint16)
    values[0, 0] = 0, 25700, 65535
    (tmp_path / "1.png").write_bytes(png_of_16_bits(values))
    assert load_images(train_data_dir=str(tmp_path)).pixels[0, :, 0, 0].tolist() == [0, 100, 255]


def png_of_16_bits(values: np.ndarray, transparent: bytes = b"") -> bytes:
    """A file by hand, because Pillow writes no colours of 16 bits: [H, W] or [H, W, 3]."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">2I5B", values.shape[1], values.shape[0], 16, 2 if values.ndim == 3 else 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    colour = chunk(b"tRNS", transparent) if transparent else b""
    parts = [chunk(b"IHDR", header), colour, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("most", [65535, 1000])
def test_levels_of_a_pgm_file_are_shares_of_its_maximum(tmp_path, most):
    values = np.array([[0, most // 5, most // 2, most]] * 4, ">u2")
    (tmp_path / "1.pgm").write_bytes(b"P5 4 4 %d\n" % most + values.tobytes())
    pixels = load_images(train_data_dir=str(tmp_path)).pixels
    assert pixels[0, 0, 0].tolist() == [0, 51, 127 if most == 65535 else 128, 255]


@pytest.mark.parametrize("options", [{}, {"image_mode": "L"}, {"image_mode": "RGB"}])
@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        (np.float32, [0, 0.2, 0.5, 1], [0, 51, 128, 255]),
        (np.float32, [0, 0.6, 127.4, 255], "float32 from 0 to 255 and must be uint8, uint16 or floats from 0 to 1"),
        (np.float32, [-1, 0, 0, 1], "float32 from -1 to 1 and must"),
        (np.float32, [0, 0, np.nan, 1], "float32 from nan to nan and must"),
        (np.int32, [0, 100, 200, 255], "integers of 32 bits, whose range is not known, and must have 8 or 16 bits"),
        (np.int32, [0, 0, 0, 65535], "integers of 32 bits"),
    ],
)
def test_integers_and_floats_are_taken_by_their_range_or_refused(tmp_path, options, kind, values, expected):
    where = folder(tmp_path, {"1.tiff": Image.fromarray(np.array([values] * 4, kind))})
    if isinstance(expected, str):
        with pytest.raises(UserError, match=rf"1\.tiff cannot be read \(its values are {expected}"):
            load_images(train_data_dir=where, **options)
    else:
        assert load_images(train_data_dir=where, **options).pixels[0, 0, 0].tolist() == expected


def test_sixteen_bits_that_are_not_what_they_seem_are_refused(tmp_path):
    """Pillow gives the levels of these files without saying what they mean."""
    tiff = io.BytesIO()
    Image.fromarray(np.full((4, 4), 4095, np.uint16)).save(tiff, "TIFF")
    bits, photometric = (struct.pack("<2HIH", tag, 3, 1, value) for tag, value in ((258, 16), (262, 1)))
    assert tiff.getvalue().count(bits) == tiff.getvalue().count(photometric) == 1
    files = {
        "bits.tiff": (tiff.getvalue().replace(bits, bits[:8] + b"\x0c\0"), "integers of 12 bits"),
        "white.tiff": (tiff.getvalue().replace(photometric, photometric[:8] + b"\0\0"), "0 must be black"),
        "colour.png": (png_of_16_bits(np.full((4, 4, 3), 9999, np.uint16), b"\x27\x0f" * 3), "has 16 bits: save it"),
        "clear.png": (png_of_16_bits(np.zeros((4, 4), np.uint16), b"\0\1"), "transparency an alpha channel"),
    }
    for name, (content, message) in files.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes(content)
        for options in ({}, {"image_mode": "RGB"}):
            with pytest.raises(UserError, match=message):
                load_images(train_data_dir=str(tmp_path / name), **options)


QUADRANTS = np.kron(np.array([[0, 80], [160, 240]], np.uint8), np.ones((8, 8), np.uint8))
TURNED = {  # what the orientation says has been done to the picture, which is undone here in NumPy
    1: QUADRANTS,
    2: QUADRANTS[:, ::-1],
    3: QUADRANTS[::-1, ::-1],
    4: QUADRANTS[::-1],
    5: QUADRANTS.T,
    6: np.rot90(QUADRANTS, -1),
    7: QUADRANTS[::-1, ::-1].T,
    8: np.rot90(QUADRANTS),
}


@pytest.mark.parametrize("suffix", ["png", "tiff", "jpg", "webp"])
@pytest.mark.parametrize("orientation", TURNED)
def test_every_orientation_is_undone(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if suffix == "webp" else {"quality": 100} if suffix == "jpg" else {}
    Image.fromarray(QUADRANTS).save(tmp_path / f"1.{suffix}", exif=exif, **lossless)
    pixels = load_images(train_data_dir=str(tmp_path)).pixels[0, 0].numpy()
    assert np.abs(pixels.astype(int) - TURNED[orientation]).max() <= 1


@pytest.mark.parametrize("name", ["1.gif", "1.png", "1.tiff", "1.webp"])
def test_of_several_frames_the_first_is_read(tmp_path, name):
    first, *others = (Image.new("RGB", (8, 8), (value, 0, 0)) for value in (255, 0, 128))
    options = {"lossless": True} if name == "1.webp" else {}
    first.save(tmp_path / name, save_all=True, append_images=others, **options)
    with Image.open(tmp_path / name) as written:
        assert written.n_frames == 3
    assert load_images(train_data_dir=str(tmp_path)).pixels[0, :, 0, 0].tolist() == [255, 0, 0]


def test_other_modes_are_converted_or_refused(tmp_path):
    picture = Image.new("1", (8, 8))
    picture.putpixel((3, 0), 1)
    where = folder(tmp_path / "two", {"1.png": picture})
    for options in ({}, {"image_mode": "L"}):
        assert load_images(train_data_dir=where, **options).pixels[0, 0, 0].tolist() == [0, 0, 0, 255, 0, 0, 0, 0]
    where = folder(tmp_path / "print", {"1.tiff": Image.new("CMYK", (8, 8), (0, 255, 255, 0))})
    with pytest.raises(UserError, match=r"its mode CMYK is not one of L, RGB, RGBA: convert it with `image_mode`"):
        load_images(train_data_dir=where)
    assert load_images(train_data_dir=where, image_mode="RGB").pixels[0, :, 0, 0].tolist() == [255, 0, 0]


def chunk(name: bytes, content: bytes, flaw: int = 0) -> bytes:
    """A chunk of PNG; its checksum is wrong by `flaw`."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content) ^ flaw)


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


ON_ITS_SIDE = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x08\0\0\0\0\0\0"  # EXIF of orientation 8
CHUNKS = {
    **{f"{name} crc": chunk(name, b"ab\0\0", 1) for name in (b"tEXt", b"iTXt", b"iCCP", b"eXIf", b"prVt", b"tIME")},
    **{f"{name} short": chunk(name, b"\0") for name in (b"gAMA", b"pHYs", b"cHRM", b"acTL")},
    **{f"{name} method": chunk(name, b"a\0\5xx") for name in (b"zTXt", b"iCCP")},
    "eXIf": chunk(b"eXIf", b"garbage"),
    "bomb": chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(3 << 20))),
}


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("flaw", CHUNKS)
def test_pixels_of_a_png_with_damaged_metadata_are_read(tmp_path, flaw, place):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    content = encoded(Image.fromarray(pixels))
    at = 33 if place == "before" else len(content) - 12  # the header and the end of a PNG file
    stored = {"bytes": content[:at] + CHUNKS[flaw] + content[at:], "path": None}
    assert np.array_equal(PictureFormat().convert(stored, 0).pixels, pixels.transpose(2, 0, 1))
    (tmp_path / "1.png").write_bytes(stored["bytes"])
    in_file = PictureFormat().convert({"bytes": None, "path": str(tmp_path / "1.png")}, 0)
    assert np.array_equal(in_file.pixels, pixels.transpose(2, 0, 1))


SEGMENTS = {
    "icc": segment(0xE2, b"ICC_PROFILE\0\1"),
    "adobe": segment(0xEE, b"Adobe"),
    "jfif": segment(0xE0, b"JFIF"),
    "exif": segment(0xE1, b"Exif\0\0garbage"),
    "xmp": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0\xff"),
    "photoshop": segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\0\0\xff\xff\xff\xff"),
}


@pytest.mark.parametrize("flaw", SEGMENTS)
@pytest.mark.parametrize("turned", [False, True])
def test_pixels_of_a_jpeg_with_damaged_metadata_are_read_and_turned_upright(flaw, turned):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
    content = encoded(picture, "JPEG")
    exif = segment(0xE1, b"Exif\0\0" + ON_ITS_SIDE) if turned and flaw != "exif" else b""
    read = PictureFormat().convert(content[:2] + exif + SEGMENTS[flaw] + content[2:], 0).pixels
    expected = Image.open(io.BytesIO(content)).convert("RGB")
    expected = expected.transpose(Image.Transpose.ROTATE_90) if exif else expected
    assert np.array_equal(read, np.asarray(expected).transpose(2, 0, 1))


@pytest.mark.parametrize("damage", ["data", "end", "header", "transparency"])
def test_damaged_pixels_stay_refused_also_beside_damaged_metadata(damage):
    content = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)))
    content = content[:33] + CHUNKS["b'tEXt' crc"] + content[33:]
    data = content.index(b"IDAT")
    content = {
        "data": content[: data + 10] + b"\x55\xaa" + content[data + 12 :],
        "end": content[:-40],
        "header": content[:20] + b"\1" + content[21:],
        "transparency": content[:33] + chunk(b"tRNS", b"\0\1", 1) + content[33:],
    }[damage]
    with pytest.raises(UserError, match="cannot be read"):
        PictureFormat().convert(content, 0)

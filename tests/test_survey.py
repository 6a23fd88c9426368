"""Folders of mixed pictures: one sentence tells all that is wrong, and what it advises works."""

import pytest
from short_run import ICT, assert_refused
from test_images import folder, solid

from diffusers_ict.data.load import load_images
from diffusers_ict.errors import UserError


def test_all_problems_are_told_at_once_with_the_flags_that_mend_them(tmp_path, capsys):
    pictures = {"1.png": solid("RGB", (40, 40)), "2.png": solid("L", (35, 50)), "3.jpg": solid("CMYK", (64, 64), 0)}
    where = folder(tmp_path / "images", pictures)
    advice = "--image_mode RGB --resolution 32 --center_crop"
    flags = [*ICT, "--train_data_dir", where, "--output_dir", tmp_path / "out", "--max_train_steps", "20"]
    sides = "their shorter sides are 35 to 64 pixels; some are not square, such as 35x50"
    told = f"their modes are CMYK, L, RGB; {sides}: try {advice}."
    # sides are 35 to 64 pixels; some are not square, such as 35x50: try {advice}."
    assert_refused(tmp_path, capsys, told, *flags)
    assert load_images(train_data_dir=where, image_mode="RGB", resolution=32, center_crop=True).shape == (3, 32, 32)
    with pytest.raises(UserError, match="not square, such as 35x50: try `resolution` 32 `center_crop`"):
        load_images(train_data_dir=where, image_mode="RGB")


def test_a_resolution_that_no_network_has_is_refused_before_images_are_read(tmp_path, capsys):
    where = folder(tmp_path / "images", {"1.png": solid("RGB")})
    (tmp_path / "images" / "2.png").write_bytes(b"damaged")
    flags = [*ICT, "--train_data_dir", where, "--output_dir", tmp_path / "out", "--max_train_steps", "20"]
    assert_refused(tmp_path, capsys, "got 33", *flags, "--resolution", "33")

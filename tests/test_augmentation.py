import math

import numpy as np
import pytest
import torch

from diffusers_ict.formulas.augmentation import NUM_UNIFORM, augment

# Places of the uniform numbers, in the order in which they are used: "does it happen" then its parameters.
MIRROR, TURN, SHIFT = 0, 2, 4
ISOTROPIC, ROTATE_FIRST, ANISOTROPIC, ROTATE_LAST, FRACTION = 7, 9, 11, 13, 15
BRIGHTNESS, CONTRAST, LUMA, HUE, SATURATION = 18, 20, 22, 24, 26


def numbers(**places: tuple[float, ...]) -> torch.Tensor:
    """Uniform numbers for one image by which nothing happens at p = 0.5, except what is chosen by place."""
    u = torch.full((1, NUM_UNIFORM), 0.99)
    for name, values in places.items():
        u[0, globals()[name] : globals()[name] + len(values)] = torch.tensor(values)
    return u


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_when_nothing_happens_images_are_not_resampled(image):
    assert augment(image, 0.0, torch.zeros(1, NUM_UNIFORM)) is image
    assert torch.equal(augment(image, 0.5, numbers()), image)


def one_down_one_left(x):
    return np.pad(x, ((0, 0), (1, 1), (1, 1)), mode="reflect")[:, 0:8, 2:10]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"MIRROR": (0.1, 0.2)}, lambda x: x[:, :, ::-1]),
        ({"SHIFT": (0.1, 0.999, 0.0)}, one_down_one_left),
        *(({"TURN": (0.1, n / 4 + 0.1)}, lambda x, n=n: np.rot90(x, n, (1, 2))) for n in range(4)),
    ],
)
def test_moves_by_whole_pixels_equal_numpy(image, chosen, expected):
    assert np.array_equal(augment(image, 0.5, numbers(**chosen))[0].numpy(), expected(image[0].numpy()))


def naive_warp(image: np.ndarray, matrix: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Bilinear look-up at matrix (x, y) + shift, in coordinates where the image spans -1 to 1, borders reflected."""
    _, height, width = image.shape
    out = np.zeros_like(image)

    def reflect(position: float, size: int) -> float:
        position = abs((position + 0.5) % (2 * size))
        return min(max(min(position, 2 * size - position) - 0.5, 0), size - 1)

    for row in range(height):
        for column in range(width):
            x, y = matrix @ [(2 * column + 1) / width - 1, (2 * row + 1) / height - 1] + shift
            c, r = reflect(((x + 1) * width - 1) / 2, width), reflect(((y + 1) * height - 1) / 2, height)
            r0, c0 = int(r), int(c)
            r1, c1 = min(r0 + 1, height - 1), min(c0 + 1, width - 1)
            fr, fc = r - r0, c - c0
            out[:, row, column] = (
                (1 - fr) * (1 - fc) * image[:, r0, c0] + (1 - fr) * fc * image[:, r0, c1]
                + fr * (1 - fc) * image[:, r1, c0] + fr * fc * image[:, r1, c1]
            )  # fmt: skip
    return out


def normal(u: float) -> float:
    return torch.special.ndtri(torch.tensor(u)).item()


def rotation(u: float) -> np.ndarray:
    angle = (2 * u - 1) * math.pi
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


@pytest.mark.parametrize(
    ("chosen", "matrix", "shift"),
    [
        ({"ISOTROPIC": (0.1, 0.8)}, np.eye(2) * 2 ** (0.2 * normal(0.8)), (0, 0)),
        ({"ROTATE_FIRST": (0.1, 0.6)}, rotation(0.6), (0, 0)),
        ({"ROTATE_LAST": (0.1, 0.3)}, rotation(0.3), (0, 0)),
        ({"ANISOTROPIC": (0.1, 0.9)}, np.diag([2 ** (0.2 * normal(0.9)), 2 ** (-0.2 * normal(0.9))]), (0, 0)),
        ({"FRACTION": (0.1, 0.7, 0.4)}, np.eye(2), (0.25 * normal(0.7), 0.25 * normal(0.4))),
    ],
)
def test_warps_equal_a_naive_look_up(image, chosen, matrix, shift):
    expected = naive_warp(image[0].double().numpy(), matrix, np.array(shift))
    np.testing.assert_allclose(augment(image, 0.5, numbers(**chosen))[0].numpy(), expected, atol=2e-5)


def luma(x):
    return x.mean(1, keepdim=True)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"BRIGHTNESS": (0.1, 0.8)}, lambda x: x + 0.2 * normal(0.8)),
        ({"CONTRAST": (0.1, 0.3)}, lambda x: x * 2 ** (0.5 * normal(0.3))),
        ({"LUMA": (0.1, 0.2)}, lambda x: x - 2 * luma(x)),
        ({"SATURATION": (0.1, 0.7)}, lambda x: luma(x) + (x - luma(x)) * 2 ** normal(0.7)),
    ],
)
def test_changes_of_colour_equal_one_liners(image, chosen, expected):
    torch.testing.assert_close(augment(image, 0.5, numbers(**chosen)), expected(image), atol=1e-6, rtol=1e-5)


def test_hue_turns_red_to_green_to_blue_at_thirds():
    red, green, blue = torch.eye(3)[:, None, :, None, None].expand(-1, 1, 3, 4, 4)
    third = numbers(HUE=(0.1, 5 / 6))  # 5/6 of the way from -pi to pi
    for before, after in ((red, green), (green, blue), (blue, red)):
        torch.testing.assert_close(augment(before, 0.5, third), after, atol=1e-6, rtol=0)
    x = torch.randn(1, 3, 8, 8)
    turned = augment(x, 0.5, numbers(HUE=(0.1, 0.6)))
    torch.testing.assert_close(turned.norm(dim=1), x.norm(dim=1))
    torch.testing.assert_close(luma(turned), luma(x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_gradients_flow_through_everything(channels):
    x = torch.rand(64, channels, 8, 8, requires_grad=True)
    uniform = torch.rand(64, NUM_UNIFORM, generator=torch.Generator().manual_seed(0))
    out = augment(x, 1.0, uniform)
    assert out.shape == x.shape
    assert out.isfinite().all()
    out.sum().backward()
    assert (x.grad.flatten(1).abs().sum(1) > 0).all()


def test_gradient_equals_finite_differences():
    uniform = torch.rand(2, NUM_UNIFORM, generator=torch.Generator().manual_seed(1))
    x = torch.rand(2, 3, 6, 6)
    direction = torch.randn(2, 3, 6, 6)
    up, down = (augment(x + s * 0.01 * direction, 0.9, uniform) for s in (1, -1))
    # The map is affine in x, so the difference is exact up to rounding.
    y = x.clone().requires_grad_(True)
    out = augment(y, 0.9, uniform)
    probe = torch.randn_like(out)
    (gradient,) = torch.autograd.grad((out * probe).sum(), y)
    assert (gradient * direction).sum().item() == pytest.approx(((up - down) * probe).sum().item() / 0.02, rel=1e-3)


def test_each_transformation_happens_with_probability_p():
    # Of moves by whole pixels on an image that all of them change, a share 1 - (1 - p / 2)(1 - 3 p / 4) is moved.
    x = torch.arange(64.0).view(1, 1, 8, 8).expand(4000, 1, 8, 8).contiguous()
    uniform = torch.full((4000, NUM_UNIFORM), 0.99)  # nothing else happens
    uniform[:, :SHIFT] = torch.rand(4000, SHIFT, generator=torch.Generator().manual_seed(2))
    moved = (augment(x, 0.4, uniform) != x).flatten(1).any(1).float().mean().item()
    assert moved == pytest.approx(1 - 0.8 * 0.7, abs=0.03)

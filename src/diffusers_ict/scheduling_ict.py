"""ICTScheduler: sampling and training noise levels of consistency models, as a diffusers scheduler."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from diffusers import CMStochasticIterativeScheduler, SchedulerMixin  # noqa: F401 - loading looks for SchedulerMixin here
from diffusers.configuration_utils import register_to_config
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .arguments import integer, number, positive
from .formulas.noise_schedule import LARGEST_RHO, LEAST_RHO, RHO, SIGMA_MAX, SIGMA_MIN, level_dtype, rho_through
from .formulas.preconditioning import (
    SIGMA_DATA,
    ConsistencyFunction,
    c_out,
    c_skip,
    denoise,
    per_image,
    scale_input,
    sigma_of,
)
from .formulas.stock_grid import between_levels
from .objectives.base import Objective
from .stock_key import STOCK_KEY

# Settings of ours that a stock config carries under STOCK_KEY.
CARRIED = ("rho", "intermediate_sigmas", "residual_scale")

LEAST_SIGMA, LARGEST_SIGMA = 1e-6, 1e6  # far beyond any use, and their squares are float32


class ICTScheduler(CMStochasticIterativeScheduler):
    """Multistep consistency sampling (CM, arXiv:2303.01469, Algorithm 1) at chosen noise levels, and the training side.

    Integer `timesteps` index a Karras grid of curvature `rho`, as the authors of CM and stock diffusers' conversions
    count them: of 201 levels with rho 7, [106, 0] is 80 and 1.913. The stock twin has one grid for everything, so its
    rho (`stock_rho`) is the one whose middle is the first intermediate sigma: it draws the same images with one and two
    steps, and integer `timesteps` are other levels there. Without intermediate sigmas both grids are the same.

    Args:
        num_train_timesteps: levels of the grids.
        sigma_min, sigma_max, sigma_data: noise levels and data deviation, for images in [-1, 1].
        s_noise: factor on the noise added between steps.
        rho: curvature of the grid that integer `timesteps` index, and that numbers of steps use where there are no
            intermediate sigmas.
        clip_denoised: clip every estimate to [-1, 1].
        intermediate_sigmas: noise levels to return to between steps, in the order in which steps are added:
            n steps use the first n - 1. 0.821 is iCT's second level on CIFAR-10 (arXiv:2310.14189, Appendix A), 1.526
            that on ImageNet 64x64. For more steps than it has levels for, the Karras grid that passes through the
            first of them half-way is used, which is what the stock twin of this scheduler does.
        residual_scale: of a model of pairs whose samples are (image - condition) / residual_scale; see
            `formulas/residual.py`. None where samples are images.

    Raises:
        ValueError: a constant out of range, an intermediate sigma outside (sigma_min, sigma_max), or one that appears
            twice.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 40,
        sigma_min: float = SIGMA_MIN,
        sigma_max: float = SIGMA_MAX,
        sigma_data: float = SIGMA_DATA,
        s_noise: float = 1.0,
        rho: float = RHO,
        clip_denoised: bool = True,
        intermediate_sigmas: Sequence[float] = (0.821,),
        residual_scale: float | None = None,
    ) -> None:
        constants = _checked_constants(num_train_timesteps, sigma_min, sigma_max, sigma_data, s_noise, rho)
        # By keyword: diffusers takes positional arguments for defaults when it records the config.
        super().__init__(**constants, clip_denoised=clip_denoised)
        low, high = constants["sigma_min"], constants["sigma_max"]
        middle = [number(sigma) for sigma in intermediate_sigmas]
        if len(set(middle)) < len(middle) or not all(sigma and low < sigma < high for sigma in middle):
            raise ValueError(
                f"intermediate_sigmas must be different numbers between sigma_min {low} and sigma_max {high}, got "
                f"{list(intermediate_sigmas)}."
            )
        scale = None if residual_scale is None else number(residual_scale)
        if residual_scale is not None and not (scale and scale > 0):
            raise ValueError(f"residual_scale must be a positive number, or None, got {residual_scale}.")
        # As they are read back from a file.
        self.register_to_config(**constants, intermediate_sigmas=middle, residual_scale=scale)
        grid = constants["num_train_timesteps"], low, high
        self.stock_rho = rho_through(cast(float, middle[0]), *grid) if middle else constants["rho"]

    def sampling_sigmas(self, num_inference_steps: int) -> np.ndarray:
        """The descending noise levels of an n-step sampler, float64 [n]: sigma_max, then the intermediate ones.

        Raises:
            ValueError: fewer than one step, or more than the grid has levels.
        """
        steps, grid = integer(num_inference_steps), self.config.num_train_timesteps
        if steps is None or not 1 <= steps <= grid:
            raise ValueError(f"num_inference_steps must be an integer from 1 to {grid}, got {num_inference_steps}.")
        chosen = list(self.config.intermediate_sigmas)[: steps - 1]
        if len(chosen) == steps - 1:
            return np.array([self.config.sigma_max, *sorted(chosen, reverse=True)])
        levels = self._grid(np.arange(steps) * (grid // steps), self.stock_rho)
        return levels.clip(self.config.sigma_min, self.config.sigma_max)  # rounding may leave 80.00000000000003

    def _grid(self, indices: np.ndarray, rho: float) -> np.ndarray:
        """Levels of a Karras grid, index 0 being sigma_max, in the arithmetic of the stock scheduler."""
        ramp = indices / (self.config.num_train_timesteps - 1)
        return between_levels(ramp, self.config.sigma_max, self.config.sigma_min, rho)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        """Set the noise levels of the next sampling run, in exactly one of three ways.

        Args:
            num_inference_steps: number of steps; levels as in `sampling_sigmas`.
            device: where `timesteps` are put (`sigmas` stay on the CPU).
            timesteps: descending indices into the grid of `num_train_timesteps` levels with curvature `rho`: [22, 0]
                begins at index 0, which is sigma_max, and goes on to index 22.
            sigmas: descending noise levels within [sigma_min, sigma_max], in units of images in [-1, 1].

        Raises:
            ValueError: none or several of the three, or values out of order or out of range.
        """
        given = [name for name, value in (("num_inference_steps", num_inference_steps), ("timesteps", timesteps),
                                          ("sigmas", sigmas)) if value is not None]  # fmt: skip
        if len(given) != 1:
            raise ValueError(f"give exactly one of num_inference_steps, timesteps and sigmas, got {given or 'none'}.")
        if sigmas is not None:
            levels = self._checked_sigmas(sigmas)
        elif timesteps is not None:
            levels = self._grid(self._checked_indices(timesteps)[::-1], self.config.rho)
        elif num_inference_steps is not None:
            levels = self.sampling_sigmas(num_inference_steps)

        self.num_inference_steps = len(levels)
        self.custom_timesteps = num_inference_steps is None
        self.sigmas = torch.from_numpy(np.append(levels, self.config.sigma_min).astype(np.float32))
        self.timesteps = torch.from_numpy(self.sigma_to_t(levels)).to(device, level_dtype(device))
        self._step_index: int | None = None
        self._begin_index = None

    def _checked_sigmas(self, sigmas: Sequence[float]) -> np.ndarray:
        levels, low, high = _array(sigmas), self.config.sigma_min, self.config.sigma_max
        numbers = levels.ndim == 1 and len(levels) > 0 and levels.dtype.kind in "iuf"
        if not numbers or (np.diff(levels) >= 0).any() or not ((levels >= low) & (levels <= high)).all():
            raise ValueError(f"sigmas must descend and lie within [{low}, {high}], got {levels.tolist()}.")
        return levels.astype(np.float64)

    def _checked_indices(self, timesteps: Sequence[int]) -> np.ndarray:
        indices, grid = _array(timesteps), self.config.num_train_timesteps
        numbers = indices.ndim == 1 and len(indices) > 0 and indices.dtype.kind in "iu"
        if not numbers or indices[-1] < 0 or indices[0] >= grid or (np.diff(indices.astype(np.int64)) >= 0).any():
            raise ValueError(
                f"timesteps must be descending integer indices from {grid - 1} to 0, got {indices.tolist()}; "
                "give noise levels as sigmas=."
            )
        return indices.astype(np.int64)

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor) -> Tensor:
        """c_in(sigma) times the sample: what the network is to be given. Shape as the sample's."""
        if self.step_index is None:
            self._init_step_index(timestep)
        self.is_scale_input_called = True
        return scale_input(sample, self.sigmas[self.step_index], self.config.sigma_data)

    def get_scalings_for_boundary_condition(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(c_skip, c_out) of CM Appendix C."""
        constants = self.config.sigma_min, self.config.sigma_data
        return c_skip(sigma, *constants), c_out(sigma, *constants)

    def estimate(self, model_output: Tensor, sample: Tensor) -> Tensor:
        """f(x, sigma) at the current level, clipped where `clip_denoised` says so: the first half of `step`."""
        sigma = self.sigmas[self.step_index]
        denoised = denoise(model_output, sample, sigma, self.config.sigma_min, self.config.sigma_data)
        return denoised.clamp(-1, 1) if self.config.clip_denoised else denoised

    def renoise(self, estimate: Tensor, generator: torch.Generator | list[torch.Generator] | None = None) -> Tensor:
        """The estimate with the noise of the next level, which becomes the current one: the second half of `step`.

        Draws what `step` draws, so that both give the same images for the same generator.
        """
        self._step_index = self.step_index + 1
        if len(self.timesteps) == 1:
            return estimate
        noise = randn_tensor(estimate.shape, generator=generator, device=estimate.device, dtype=estimate.dtype)
        # At the last level rounding may make this negative, for which `step` of stock diffusers gives images of NaN.
        added = (self.sigmas[self.step_index] ** 2 - self.config.sigma_min**2).clamp(min=0) ** 0.5
        return estimate + noise * self.config.s_noise * added

    def consistency_function(self, unet: Callable) -> ConsistencyFunction:
        """f(x, sigma, class_labels) around `unet`, with this scheduler's constants."""
        return ConsistencyFunction(unet, self.config.sigma_min, self.config.sigma_data)

    def training_sigmas(
        self,
        objective: Objective,
        step: int,
        total_steps: int,
        batch_size: int | None = None,
        generator: torch.Generator | None = None,
        *,
        uniform: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Noise levels of one training step: a pair of neighbours for each sample, as the objective draws them.

        Args:
            objective: its `sample_pair` decides which levels there are and how often each is drawn.
            step, total_steps: optimizer step from 0, and how many there will be.
            batch_size, generator: how many numbers to draw, on the CPU; or else
            uniform: numbers in [0, 1) that decide the draw, float64 [B] (float32 on MPS), on any device.

        Returns:
            (sigma, sigma_next), [B] each in the type and on the device of the numbers; sigma < sigma_next.

        Raises:
            ValueError: neither a batch size nor numbers, or both; a batch size that is no positive integer; or levels
                below this scheduler's sigma_min, where f is not defined. On other devices than the CPU levels are not
                read, because a step would wait for them.
        """
        if (batch_size is None) == (uniform is None):
            raise ValueError("give training_sigmas either batch_size or uniform.")
        if uniform is not None:
            return objective.sample_pair(uniform, step, total_steps)
        uniform = torch.rand(positive("batch_size", batch_size), dtype=torch.float64, generator=generator)
        sigma, sigma_next = objective.sample_pair(uniform, step, total_steps)
        if sigma.min() < self.config.sigma_min:
            raise ValueError(
                f"noise levels must be at least the scheduler's sigma_min {self.config.sigma_min}, and the objective "
                f"drew {sigma.min().item():.4g}; give both the same sigma_min."
            )
        return sigma, sigma_next

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x + sigma z, at the noise levels the timesteps stand for.

        Args:
            original_samples, noise: [B, C, H, W].
            timesteps: [B]; floating point: 250 ln(sigma) of any level, such as an entry of `timesteps`;
                integer: indices into the current `timesteps`.
        """
        sigma = sigma_of(timesteps) if timesteps.is_floating_point() else self.sigmas.to(timesteps.device)[timesteps]
        return original_samples + noise * per_image(sigma, noise).to(noise)

    def to_stock(self) -> CMStochasticIterativeScheduler:
        """The stock scheduler that draws the same images with one and two steps, by `num_inference_steps`.

        With more steps too, unless several intermediate sigmas were set: stock has no list of levels, only a grid,
        whose rho is chosen here so that its middle is the first intermediate sigma.
        """
        shared = {key: value for key, value in self.config.items() if key not in CARRIED and not key.startswith("_")}
        stock = CMStochasticIterativeScheduler(**shared, rho=self.stock_rho)
        carried = {key: self.config[key] for key in CARRIED}
        stock.register_to_config(**{STOCK_KEY: {key: value for key, value in carried.items() if value is not None}})
        return stock

    @classmethod
    def from_stock(cls, stock: CMStochasticIterativeScheduler) -> "ICTScheduler":
        """The scheduler a stock one is the twin of; for one made elsewhere, one that draws the same images."""
        return cls.from_config({**stock.config, "_class_name": CMStochasticIterativeScheduler.__name__})

    @classmethod
    def extract_init_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any):
        """Diffusers' hook between a config file and `__init__`; here a stock config becomes one of ours."""
        config = dict(config_dict)
        carried = config.pop(STOCK_KEY, None)
        if config.get("_class_name") == CMStochasticIterativeScheduler.__name__:
            # A stock config made elsewhere has a grid and no list of levels; its default must not be ours.
            config["intermediate_sigmas"] = []
            config.update({key: carried[key] for key in CARRIED if key in (carried or {})})
        return super().extract_init_dict(config, **kwargs)


def _array(values: Any) -> np.ndarray:
    """Numbers of a list, an array or a tensor, or one number, with at least one axis."""
    if isinstance(values, Tensor):
        values = values.double().cpu() if values.is_floating_point() else values.cpu()
    return np.atleast_1d(np.asarray(values))


def _checked_constants(num_train_timesteps: Any, sigma_min: Any, sigma_max: Any, *others: Any) -> dict[str, Any]:
    """The constants of the grids in plain types, or a refusal of the first one that is none.

    With those that pass, each level of the grids is a positive float32, and they descend.
    """
    grid = integer(num_train_timesteps)
    if grid is None or grid < 2:
        raise ValueError(f"num_train_timesteps must be an integer of at least 2, got {num_train_timesteps}.")
    sigma_data, s_noise, rho = others
    constants: dict[str, Any] = {"num_train_timesteps": grid}
    ranges = {
        "sigma_min": (sigma_min, LEAST_SIGMA, LARGEST_SIGMA),
        "sigma_max": (sigma_max, sigma_min, LARGEST_SIGMA),
        "sigma_data": (sigma_data, LEAST_SIGMA, LARGEST_SIGMA),
        "s_noise": (s_noise, 0, LARGEST_SIGMA),
        "rho": (rho, LEAST_RHO, LARGEST_RHO),
    }
    for name, (value, least, largest) in ranges.items():
        plain = number(value)
        if plain is None or not least <= plain <= largest:
            raise ValueError(f"{name} must be a number from {least:g} to {largest:g}, got {value}.")
        constants[name] = plain
    if constants["sigma_min"] == constants["sigma_max"]:
        raise ValueError(f"sigma_max must be greater than sigma_min, got {sigma_max} for both.")
    return constants

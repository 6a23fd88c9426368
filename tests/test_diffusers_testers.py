"""diffusers' own tests of a pipeline, on the edit pipeline.

They are no part of the installed package: DIFFUSERS_SOURCE is a clone of its repository, of the version installed.
"""

import importlib
import os
import sys
import unittest
import warnings

import pytest
import torch
from conftest import make_unet

from diffusers_ict import ConsistencyEditPipeline, Edit, ICTScheduler

SOURCE = os.environ.get("DIFFUSERS_SOURCE")
pytestmark = [
    pytest.mark.skipif(not SOURCE, reason="DIFFUSERS_SOURCE names no clone of huggingface/diffusers"),
    pytest.mark.filterwarnings("default"),  # diffusers' tests have warnings of their own
]
if SOURCE:
    sys.path.insert(0, SOURCE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Mixin = importlib.import_module("tests.pipelines.test_pipelines_common").PipelineTesterMixin
else:

    class Mixin:
        """Nothing to be tested."""


class UpperHalf(Edit):
    """The upper half is known."""

    def project(self, x):
        return torch.cat([x[..., : x.shape[-2] // 2, :], torch.zeros_like(x[..., x.shape[-2] // 2 :, :])], -2)


class TestEditPipeline(Mixin, unittest.TestCase):
    pipeline_class = ConsistencyEditPipeline
    params = frozenset(["image", "edit", "class_labels"])
    batch_params = frozenset(["image"])

    def get_dummy_components(self):
        return {"unet": make_unet(in_channels=3, out_channels=3), "scheduler": ICTScheduler()}

    def get_dummy_inputs(self, device, seed=0):
        return {
            "image": torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(seed)),
            "edit": UpperHalf(),
            "num_inference_steps": 3,
            "generator": torch.Generator(device).manual_seed(seed),
            "output_type": "np",
        }

    def test_its_tests_are_here(self):
        assert len([name for name in dir(Mixin) if name.startswith("test_")]) > 20

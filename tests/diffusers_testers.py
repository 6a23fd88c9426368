"""diffusers' own tests of a pipeline, on the edit pipeline. `test_edit_pipeline.py` runs this file.

They are no part of the installed package: the environment variable DIFFUSERS_SOURCE names a clone of its repository.
"""

import importlib
import os
import sys
import unittest

import torch
from conftest import make_unet
from test_editing import KnownRows

from diffusers_ict import ConsistencyEditPipeline, ICTScheduler

sys.path.insert(0, os.environ["DIFFUSERS_SOURCE"])
common = importlib.import_module("tests.pipelines.test_pipelines_common")


class TestEditPipeline(common.PipelineTesterMixin, unittest.TestCase):
    pipeline_class = ConsistencyEditPipeline
    params = frozenset(["image", "edit", "class_labels"])
    batch_params = frozenset(["image"])

    def get_dummy_components(self):
        return {"unet": make_unet(in_channels=3, out_channels=3), "scheduler": ICTScheduler()}

    def get_dummy_inputs(self, device, seed=0):
        return {
            "image": torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(seed)),
            "edit": KnownRows(),
            "num_inference_steps": 3,
            "generator": torch.Generator(device).manual_seed(seed),
            "output_type": "np",
        }

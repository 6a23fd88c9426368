"""A published repository loads by its id everywhere: from a Hub on this machine, by the real client."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from conftest import ROOT, make_unet
from hub_stand_in import Hub, serve

from diffusers_ict import ConsistencyPipeline, ICTScheduler

SAMPLE = """
import sys, numpy, torch
{imports}
pipeline = {kind}.from_pretrained("someone/digits", **{options})
pipeline.set_progress_bar_config(disable=True)
images = [
    pipeline(3, [0, 1, 2], steps, generator=torch.Generator().manual_seed(5), output_type="np").images
    for steps in (1, 2)
]
numpy.save(sys.argv[1], numpy.stack(images))
{after}
"""
OURS = "from diffusers_ict import ConsistencyPipeline"
STOCK = """
import importlib.util
from diffusers import ConsistencyModelPipeline, DiffusionPipeline
assert importlib.util.find_spec("diffusers_ict") is None, "it was to be tested without us"
"""
KINDS = {
    "ours": ("ConsistencyPipeline", OURS, "{}"),
    "stock by name": ("ConsistencyModelPipeline", STOCK, "{}"),
    "stock": ("DiffusionPipeline", STOCK, "{}"),
    "ours, variant": ("ConsistencyPipeline", OURS, "{'variant': 'ema999'}"),
    "stock, variant": ("DiffusionPipeline", STOCK, "{'variant': 'ema999'}"),
    "remote code": ("DiffusionPipeline", STOCK, "{'custom_pipeline': 'someone/digits', 'trust_remote_code': True}"),
}


def test_a_repository_gives_identical_images_by_its_id_in_every_pipeline(tmp_path, python_without_us):
    repository = tmp_path / "repository"
    expected = {}
    for seed, variant in ((1, "ema999"), (0, None)):
        pipeline = ConsistencyPipeline(make_unet(seed, num_class_embeds=3).eval(), ICTScheduler())
        pipeline.set_progress_bar_config(disable=True)
        pipeline.save_pretrained(repository, variant=variant)
        expected[variant] = [
            pipeline(3, [0, 1, 2], n, generator=torch.Generator().manual_seed(5), output_type="np").images
            for n in (1, 2)
        ]
    check = (
        "from diffusers_ict import ICTScheduler\n"
        "scheduler = ICTScheduler.from_pretrained('someone/digits', subfolder='scheduler')\n"
        "assert scheduler.config.intermediate_sigmas == [0.821]"
    )
    shutil.copy(ROOT / "src" / "diffusers_ict" / "hub" / "templates" / "pipeline.py", repository)
    hub = Hub()
    hub.add_folder("someone/digits", repository)
    with serve(hub):
        for name, (kind, imports, options) in KINDS.items():
            code = SAMPLE.format(kind=kind, imports=imports, options=options, after=check if name == "ours" else "")
            python = sys.executable if "ours" in name else python_without_us
            result = fresh_process(python, code, tmp_path / f"{name}.npy", hub.address, tmp_path / f"cache of {name}")
            variant = "ema999" if "variant" in name else None
            assert np.abs(result - np.stack(expected[variant])).max() == 0.0, name


def fresh_process(python: str, code: str, target: Path, address: str, cache: Path) -> np.ndarray:
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE")
    command = [python, "-I", "-c", code, str(target)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return np.load(target)

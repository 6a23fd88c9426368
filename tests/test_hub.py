"""A published repository loads by its id everywhere: from a Hub on this machine, by the real client."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, make_unet

from diffusers_ict import ConsistencyPipeline, ICTScheduler

SAMPLE = """
import json, sys, numpy, torch
{imports}
for name, (kind, options) in json.loads(sys.argv[1]).items():
    folder = f"{{sys.argv[2]}}/{{name}}"  # each load downloads into a cache of its own
    pipeline = globals()[kind].from_pretrained("someone/digits", cache_dir=folder, **options)
    pipeline.set_progress_bar_config(disable=True)
    images = [
        pipeline(3, [0, 1, 2], steps, generator=torch.Generator().manual_seed(5), output_type="np").images
        for steps in (1, 2)
    ]
    numpy.save(f"{{folder}}.npy", numpy.stack(images))
{after}
"""
OURS = "from diffusers_ict import ConsistencyPipeline"
STOCK = """
import importlib.util
from diffusers import ConsistencyModelPipeline, DiffusionPipeline
assert importlib.util.find_spec("diffusers_ict") is None, "it was to be tested without us"
"""
CHECK = """
from diffusers_ict import ICTScheduler
scheduler = ICTScheduler.from_pretrained("someone/digits", subfolder="scheduler")
assert scheduler.config.intermediate_sigmas == [0.821]
"""
LOADS = {
    OURS: {
        "ours": ("ConsistencyPipeline", {}),
        "ours, variant": ("ConsistencyPipeline", {"variant": "ema999"}),
    },
    STOCK: {
        "stock by name": ("ConsistencyModelPipeline", {}),
        "stock": ("DiffusionPipeline", {}),
        "stock, variant": ("DiffusionPipeline", {"variant": "ema999"}),
        "remote code": ("DiffusionPipeline", {"custom_pipeline": "someone/digits", "trust_remote_code": True}),
    },
}


@pytest.mark.slow
def test_a_repository_gives_identical_images_by_its_id_in_every_pipeline(tmp_path, python_without_us, hub):
    repository, expected = tmp_path / "repository", {}
    for seed, variant in ((1, "ema999"), (0, None)):
        made = ConsistencyPipeline(make_unet(seed, num_class_embeds=3).eval(), ICTScheduler())
        made.save_pretrained(repository, variant=variant)
        pipeline = ConsistencyPipeline.from_pretrained(repository, variant=variant)
        pipeline.set_progress_bar_config(disable=True)
        expected[variant] = [
            pipeline(3, [0, 1, 2], n, generator=torch.Generator().manual_seed(5), output_type="np").images
            for n in (1, 2)
        ]
    shutil.copy(ROOT / "src" / "diffusers_ict" / "hub" / "templates" / "pipeline.py", repository)
    hub.add_folder("someone/digits", repository)
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    for imports, loads in LOADS.items():
        python, after = (sys.executable, CHECK) if imports is OURS else (python_without_us, "")
        code = SAMPLE.format(imports=imports, after=after)
        command = [python, "-I", "-c", code, json.dumps(loads), str(tmp_path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        for name in loads:
            variant = "ema999" if "variant" in name else None
            assert np.abs(np.load(tmp_path / f"{name}.npy") - np.stack(expected[variant])).max() == 0.0, name

"""Tiny models and their ONNX files, each exported once in a session, however many processes test it."""

import json
import os
from pathlib import Path

from conftest import ONE_LEVEL, make_unet
from filelock import FileLock

from diffusers_ict import ConsistencyPipeline, ICTScheduler
from diffusers_ict.web.onnx import Exported, make_onnx


def make_pipeline(kind: str) -> ConsistencyPipeline:
    """A model that is "conditional", with two levels and sigma_data 1, or "unconditional", with neither."""
    if kind == "conditional":
        unet = make_unet(num_class_embeds=4)
        scheduler = ICTScheduler(sigma_data=1.0, intermediate_sigmas=(0.9, 0.3))
    else:
        unet, scheduler = make_unet(**ONE_LEVEL), ICTScheduler()
    pipeline = ConsistencyPipeline(unet.eval(), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def export_once(kind: str, tmp_path_factory) -> Exported:
    """The ONNX file of `make_pipeline(kind)`, named "little"."""
    base = tmp_path_factory.getbasetemp()
    shared: Path = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    file, difference = shared / f"{kind}.onnx", shared / f"{kind}.json"
    with FileLock(shared / f"{kind}.lock"):
        if not difference.exists():
            exported = make_onnx(make_pipeline(kind), name="little")
            file.write_bytes(exported.content)
            difference.write_text(json.dumps(exported.difference))
    return Exported(file.read_bytes(), json.loads(difference.read_text()))

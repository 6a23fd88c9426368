"""Anything may be given to scheduler, pipeline, recipe and converter: a result or one of our sentences comes out.

FUZZ_EXAMPLES in the environment is the number of examples of each test.
"""

import dataclasses
import io
import math
import os
import shlex
import string
import tempfile
import traceback
from inspect import get_annotations
from pathlib import Path

import guided_unet
import numpy as np
import pytest
import torch
import yaml
from conftest import make_unet
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import diffusers_ict
from diffusers_ict import ConsistencyPipeline, ICTScheduler
from diffusers_ict.conversion import convert
from diffusers_ict.training.recipe import Recipe, parse
from diffusers_ict.training.run_settings import RunSettings

PACKAGE = str(Path(diffusers_ict.__file__).parent)

settings.register_profile(
    "fuzz",
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "25")),
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
fuzz = settings.get_profile("fuzz")


def result_of(call):
    """(True, the result), or (False, None) where the package refuses in one sentence of its own."""
    try:
        return True, call()
    except ValueError as error:
        refusal = error
    raised_in = traceback.extract_tb(refusal.__traceback__)[-1].filename
    assert raised_in.startswith(PACKAGE), f"the sentence is not ours: {refusal!r}"
    assert "\n" not in str(refusal).strip(), refusal
    return False, None


numbers = st.one_of(st.integers(-3, 300), st.floats(allow_subnormal=False), st.floats(-1, 100))
small = st.integers(-1, 50)
lists = st.lists(numbers, max_size=5)


def lists_in_order(elements):
    """Lists that often descend, as levels must."""
    return st.one_of(st.lists(elements, max_size=5), st.lists(elements, max_size=5).map(sorted).map(reversed).map(list))


levels = lists_in_order(st.one_of(numbers, st.floats(0.002, 80)))


# ---------------------------------------------------------------- scheduler


def sometimes(strategies):
    """Dictionaries that have some of these keys."""
    return st.fixed_dictionaries({}, optional=strategies)


constants = {
    "num_train_timesteps": st.sampled_from([2, 3, 18, 40, 201, 10_000]),
    "sigma_min": st.floats(1e-4, 0.1),
    "sigma_max": st.floats(10, 200),
    "sigma_data": st.floats(0.1, 2),
    "rho": st.floats(1, 20),
    "intermediate_sigmas": st.one_of(st.lists(st.floats(0.01, 79), max_size=4), lists),
}
any_constants = {name: numbers for name in constants if name != "intermediate_sigmas"}
ways = st.one_of(
    st.tuples(st.just("num_inference_steps"), st.one_of(small, numbers)),
    st.tuples(st.just("timesteps"), lists_in_order(st.integers(-2, 45))),
    st.tuples(st.just("sigmas"), levels),
)


@fuzz
@given(constants=st.one_of(sometimes(constants), sometimes({**constants, **any_constants})), way=ways)
def test_a_scheduler_has_descending_finite_levels_or_says_why_not(constants, way):
    made, scheduler = result_of(lambda: ICTScheduler(**constants))
    assume(made)
    done, _ = result_of(lambda: scheduler.set_timesteps(**dict([way])))
    assume(done)
    sigmas = scheduler.sigmas[:-1]
    assert sigmas.isfinite().all()
    assert (sigmas > 0).all()
    assert scheduler.timesteps.isfinite().all()
    assert len(sigmas) == len(scheduler.timesteps) > 0
    assert (sigmas.diff() <= 0).all()


# ---------------------------------------------------------------- pipeline


@pytest.fixture(scope="module")
def pipeline():
    made = ConsistencyPipeline(make_unet(num_class_embeds=4).eval(), ICTScheduler())
    made.id2label = {0: "a", 1: "b", 2: "c", 3: "d"}
    made.set_progress_bar_config(disable=True)
    return made


label = st.one_of(st.integers(-1, 5), st.sampled_from(["a", "nobody", ""]), st.floats())
lawful = st.lists(st.integers(0, 3), max_size=4)
labels = st.one_of(st.none(), label, st.lists(label, max_size=4), lawful.map(np.array), lawful.map(torch.tensor))


@fuzz
@given(
    arguments=sometimes(
        {
            "batch_size": st.one_of(st.integers(-1, 4), st.floats(), st.booleans()),
            "class_labels": labels,
            "num_inference_steps": st.one_of(st.integers(-1, 4), st.floats(), st.just(41)),
            "timesteps": st.one_of(st.none(), lists_in_order(st.integers(-2, 45)).map(lambda few: few[:3])),
            "sigmas": st.one_of(st.none(), levels.map(lambda few: few[:3])),
            "generator": st.one_of(
                st.none(), st.integers(0, 4).map(lambda n: [torch.Generator().manual_seed(i) for i in range(n)])
            ),
            "latents": st.lists(st.sampled_from([1, 2, 8]), min_size=0, max_size=4).map(torch.zeros),
            "output_type": st.sampled_from(["pil", "np", "pt", "latent", "video", None]),
            "height": st.one_of(st.none(), st.integers(-2, 20)),
            "width": st.one_of(st.none(), st.integers(-2, 20)),
            "callback_steps": st.one_of(st.integers(-1, 2), st.none()),
            "callback_on_step_end_tensor_inputs": st.lists(st.sampled_from(["latents", "sample"]), max_size=2),
        },
    )
)
def test_a_pipeline_draws_images_or_says_why_not(pipeline, arguments):
    drawn, images = result_of(lambda: pipeline(**arguments).images)
    assume(drawn)
    assert len(images) == arguments.get("batch_size", 1)
    if arguments.get("output_type") in ("np", "pt", "latent"):
        assert np.isfinite(np.asarray(images)).all()


# ---------------------------------------------------------------- recipe

FIELDS = {item.name: item for item in dataclasses.fields(Recipe)}
words = st.one_of(
    numbers.map(str),
    st.text(string.printable, max_size=12),
    st.sampled_from(["", "ict", "ect", "ct", "act", "nan", "inf", "-1", "1e999", "0.5", "true", "fp16", "--", "-"]),
)


def setting(name: str):
    """A flag and a value, most often one that is allowed."""
    choices, hint = FIELDS[name].metadata["choices"], str(FIELDS[name].type)
    likely = st.sampled_from(choices) if choices else st.integers(0, 100) if "int" in hint else st.floats(0.01, 0.99)
    return st.one_of(likely.map(str), words).map(lambda value: [f"--{name}", value])


flags = st.lists(
    st.one_of(
        st.sampled_from(sorted(FIELDS)).flatmap(setting),
        st.sampled_from(sorted(FIELDS)).map(lambda name: [f"--{name}"]),
        words.map(lambda word: [word]),
    ),
    max_size=6,
).map(lambda parts: [word for part in parts for word in part])


def makes_a_recipe_or_a_sentence(argv) -> None:
    """A recipe that was accepted can be written down and read back."""
    made, recipe = result_of(lambda: parse(argv, "train_ict.py", ""))
    if not made:
        return
    again, free = (
        parse(shlex.split(recipe.command())[2:], "train_ict.py", ""),
        {"config", *get_annotations(RunSettings)},
    )
    settings, read = ({k: v for k, v in r.as_dict().items() if k not in free} for r in (recipe, again))
    assert read == settings
    assert yaml.safe_load(yaml.safe_dump(recipe.as_dict())) == recipe.as_dict()
    assert all(math.isfinite(value) for value in recipe.as_dict().values() if isinstance(value, float))


@fuzz
@given(argv=flags)
def test_any_words_make_a_recipe_or_a_sentence(argv):
    assume(not {"-h", "--help", "--config"} & set(argv))
    makes_a_recipe_or_a_sentence(argv)


anything = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(string.printable, max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(sorted(FIELDS)), st.text(max_size=4), st.integers()), inner),
    ),
    max_leaves=8,
)


@fuzz
@given(content=st.one_of(anything.map(lambda data: yaml.safe_dump(data).encode()), st.binary(max_size=60)))
def test_any_file_is_a_recipe_or_a_sentence(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "recipe.yaml")
        path.write_bytes(content)
        makes_a_recipe_or_a_sentence(["--config", str(path)])


# ---------------------------------------------------------------- converter

GOOD = guided_unet.make((32, 64), (False, True), 1)
CHANGES = {
    "scalar": lambda value: value.sum(),
    "an axis more": lambda value: value[None],
    "transposed": lambda value: value.transpose(0, -1),
    "integers": lambda value: value.long(),
    "not finite": lambda value: value / 0,
    "sparse": lambda value: value.to_sparse(),
    "complex": lambda value: value.to(torch.complex64),
    "without values": lambda value: value.to("meta"),
    "a list": lambda value: value.flatten()[:3].tolist(),
    "text": lambda value: "weights",
    "empty": lambda value: value[:0],
}


def converted(content: bytes, **options) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pt")
        path.write_bytes(content)
        made, start = result_of(lambda: convert(str(path), **{"resolution": 8, "attention_head_dim": 8, **options}))
        if made:
            assert all(value.isfinite().all() for value in start.pipeline.unet.state_dict().values())


def saved(state) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


@fuzz
@given(
    removed=st.one_of(st.none(), st.sampled_from(sorted(GOOD))),
    changes=st.dictionaries(st.sampled_from(sorted(GOOD)), st.sampled_from(sorted(CHANGES)), max_size=3),
    more=st.dictionaries(st.one_of(st.text(max_size=12), st.integers()), st.just(torch.ones(2, 2)), max_size=2),
    options=sometimes(
        {
            "resolution": st.sampled_from([-2, 0, 1, 8, 12, 13]),
            "attention_head_dim": st.sampled_from([-1, 0, 1, 8, 24, 64]),
            "intermediate_sigmas": levels,
        }
    ),
)
def test_any_tensors_are_converted_or_refused(removed, changes, more, options):
    state = {**GOOD, **more, **{name: CHANGES[change](GOOD[name]) for name, change in changes.items()}}
    state.pop(removed, None)
    converted(saved(state), **options)


FILE = saved(GOOD)


def overwrite(edits, end) -> bytes:
    content = bytearray(FILE)
    for at, new in edits:
        content[at : at + len(new)] = new
    return bytes(content[:end])


edits = st.lists(st.tuples(st.integers(0, len(FILE) - 1), st.binary(max_size=9)), max_size=4)
ends = st.one_of(st.just(len(FILE)), st.integers(0, len(FILE)))
starts = st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", FILE[:500]])


@fuzz
@given(content=st.one_of(st.builds(overwrite, edits, ends), st.tuples(starts, st.binary(max_size=200)).map(b"".join)))
def test_any_file_is_converted_or_refused(content):
    converted(content)

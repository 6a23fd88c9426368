"""Anything may be given to scheduler, pipeline, recipe and converter: a result or one of our sentences comes out.

FUZZ_EXAMPLES in the environment is the number of examples of each test.
"""

import dataclasses
import io
import math
import os
import shlex
import signal
import string
import tempfile
import traceback
import typing
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

PACKAGE = str(Path(diffusers_ict.__file__).parent)
HANG_SECONDS = 120

settings.register_profile(
    "fuzz",
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "25")),
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
fuzz = settings.get_profile("fuzz")


@pytest.fixture(autouse=True)
def no_hang():
    def hangs(number, frame):
        raise TimeoutError(f"it took more than {HANG_SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(HANG_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


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
    return st.one_of(
        st.lists(elements, max_size=5), st.lists(elements, max_size=5).map(lambda found: sorted(found, reverse=True))
    )


levels = lists_in_order(st.one_of(numbers, st.floats(0.002, 80)))


# ---------------------------------------------------------------- scheduler


constants = {
    "num_train_timesteps": st.sampled_from([2, 3, 18, 40, 201, 10_000]),
    "sigma_min": st.floats(1e-4, 0.1),
    "sigma_max": st.floats(10, 200),
    "sigma_data": st.floats(0.1, 2),
    "rho": st.floats(1, 20),
    "intermediate_sigmas": st.one_of(st.lists(st.floats(0.01, 79), max_size=4), lists),
}
ways = st.one_of(
    st.tuples(st.just("num_inference_steps"), st.one_of(small, numbers)),
    st.tuples(st.just("timesteps"), lists_in_order(st.integers(-2, 45))),
    st.tuples(st.just("sigmas"), levels),
)


def has_descending_finite_levels_or_says_why_not(constants, way):
    made, scheduler = result_of(lambda: ICTScheduler(**constants))
    assume(made)
    done, _ = result_of(lambda: scheduler.set_timesteps(**dict([way])))
    assume(done)
    found = scheduler.sigmas[:-1]
    assert found.isfinite().all()
    assert (found > 0).all()
    assert scheduler.timesteps.isfinite().all()
    assert len(found) == len(scheduler.timesteps) > 0
    assert (found.diff() <= 0).all()


@fuzz
@given(constants=st.fixed_dictionaries({}, optional=constants), way=ways)
def test_a_scheduler_has_descending_finite_levels_or_says_why_not(constants, way):
    has_descending_finite_levels_or_says_why_not(constants, way)


@fuzz
@given(
    constants=st.fixed_dictionaries(
        {},
        optional={
            **constants,
            **dict.fromkeys(("num_train_timesteps", "sigma_min", "sigma_max", "sigma_data", "rho"), numbers),
        },
    ),
    way=ways,
)
def test_a_scheduler_with_any_constants_says_why_not(constants, way):
    has_descending_finite_levels_or_says_why_not(constants, way)


# ---------------------------------------------------------------- pipeline


@pytest.fixture(scope="module")
def pipeline():
    made = ConsistencyPipeline(make_unet(num_class_embeds=4).eval(), ICTScheduler())
    made.id2label = {0: "a", 1: "b", 2: "c", 3: "d"}
    made.set_progress_bar_config(disable=True)
    return made


labels = st.one_of(
    st.none(),
    st.integers(-1, 5),
    st.floats(),
    st.sampled_from(["a", "d", "nobody", ""]),
    st.lists(st.one_of(st.integers(-1, 5), st.sampled_from(["a", "nobody"]), st.floats()), max_size=4),
    st.lists(st.integers(0, 3), max_size=4).map(np.array),
    st.lists(st.integers(0, 3), max_size=4).map(torch.tensor),
)


@fuzz
@given(
    given_=st.fixed_dictionaries(
        {},
        optional={
            "batch_size": st.one_of(st.integers(-1, 4), st.floats(), st.booleans()),
            "class_labels": labels,
            "num_inference_steps": st.one_of(st.integers(-1, 4), st.floats(), st.just(41)),
            "timesteps": st.one_of(st.none(), lists_in_order(st.integers(-2, 45)).map(lambda found: found[:3])),
            "sigmas": st.one_of(st.none(), levels.map(lambda found: found[:3])),
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
def test_a_pipeline_draws_images_or_says_why_not(pipeline, given_):
    drawn, found = result_of(lambda: pipeline(**given_).images)
    assume(drawn)
    assert len(found) == given_.get("batch_size", 1)
    if given_.get("output_type") in ("np", "pt", "latent"):
        assert np.isfinite(np.asarray(found)).all()


# ---------------------------------------------------------------- recipe

FIELDS = {item.name: item for item in dataclasses.fields(Recipe)}
HINTS = typing.get_type_hints(Recipe)
words = st.one_of(
    numbers.map(str),
    st.text(string.printable, max_size=12),
    st.sampled_from(["", "ict", "ect", "ct", "act", "nan", "inf", "-1", "1e999", "0.5", "true", "fp16", "--", "-"]),
)
flags = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(sorted(FIELDS)).map("--{}".format), words).map(list),
        st.sampled_from(sorted(FIELDS)).map(lambda name: [f"--{name}"]),
        words.map(lambda word: [word]),
    ),
    max_size=6,
).map(lambda parts: [word for part in parts for word in part])


def plausible(name: str):
    """Values of a setting that are of its type, most of them allowed."""
    item, hint = FIELDS[name], str(HINTS[name])
    if item.metadata["choices"]:
        return st.sampled_from(list(item.metadata["choices"]))
    if "bool" in hint:
        return st.booleans()
    if "list" in hint:
        return st.lists(st.floats(0.01, 0.99), max_size=3)
    if "int" in hint:
        return st.integers(0, 100)
    return st.floats(0, 2) if "float" in hint else st.text(string.ascii_letters, min_size=1, max_size=8)


typed = st.lists(st.sampled_from(sorted(FIELDS)).flatmap(lambda n: st.tuples(st.just(n), plausible(n))), max_size=6)


def is_a_recipe(recipe: Recipe) -> None:
    """Check that a recipe that was accepted can be written down and read back."""
    again = parse(shlex.split(recipe.command())[3:], "train_ict.py", "")
    meaningless = set() if recipe.loss == "act" else {"consistency"}
    assert {k: v for k, v in again.computed().items() if k not in meaningless} == {
        k: v for k, v in recipe.computed().items() if k not in meaningless
    }
    assert yaml.safe_load(yaml.safe_dump(recipe.as_dict())) == recipe.as_dict()
    assert all(math.isfinite(value) for value in recipe.as_dict().values() if isinstance(value, float))


@fuzz
@given(argv=flags)
def test_any_words_make_a_recipe_or_a_sentence(argv):
    assume(not {"-h", "--help", "--config"} & set(argv))
    made, recipe = result_of(lambda: parse(argv, "train_ict.py", ""))
    if made:
        is_a_recipe(recipe)


@fuzz
@given(given_=typed)
def test_values_of_the_right_type_make_a_recipe_or_a_sentence(given_):
    made, recipe = result_of(lambda: Recipe(**{name: value for name, value in given_ if name != "config"}))
    if made:
        is_a_recipe(recipe)


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
        made, recipe = result_of(lambda: parse(["--config", str(path)], "train_ict.py", ""))
        if made:
            is_a_recipe(recipe)


# ---------------------------------------------------------------- converter

GOOD = guided_unet.make((32, 64), (False, True), 1)
CHANGES = {
    "removed": lambda value: None,
    "flat": lambda value: value.flatten(),
    "scalar": lambda value: value.sum(),
    "shorter": lambda value: value[:-1],
    "an axis more": lambda value: value[None],
    "transposed": lambda value: value.transpose(0, -1),
    "integers": lambda value: value.long(),
    "not finite": lambda value: value / 0,
    "sparse": lambda value: value.to_sparse(),
    "complex": lambda value: value.to(torch.complex64),
    "without values": lambda value: value.to("meta"),
    "half": lambda value: value.half(),
    "a list": lambda value: value.flatten()[:3].tolist(),
    "text": lambda value: "weights",
    "empty": lambda value: value[:0],
}


def converted(content: bytes, **options) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pt")
        path.write_bytes(content)
        made, found = result_of(lambda: convert(str(path), **options))
        if made:
            assert all(value.isfinite().all() for value in found.pipeline.unet.state_dict().values())


def saved(state) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


@fuzz
@given(
    changes=st.lists(st.tuples(st.sampled_from(sorted(GOOD)), st.sampled_from(sorted(CHANGES))), max_size=3),
    more=st.dictionaries(st.one_of(st.text(max_size=12), st.integers()), st.just(torch.ones(2, 2)), max_size=2),
    options=st.fixed_dictionaries(
        {},
        optional={
            "resolution": st.sampled_from([-2, 0, 1, 8, 12, 13]),
            "attention_head_dim": st.sampled_from([-1, 0, 1, 8, 24, 64]),
            "intermediate_sigmas": levels,
        },
    ),
)
def test_any_tensors_are_converted_or_refused(changes, more, options):
    state = {**GOOD, **more}
    for name, change in changes:
        if isinstance(state.get(name), torch.Tensor) and state[name].layout == torch.strided and state[name].numel():
            value = None if change == "not finite" and state[name].is_complex() else CHANGES[change](state[name])
            state = {key: held for key, held in state.items() if key != name} | ({} if value is None else {name: value})
    converted(saved(state), **{"resolution": 8, "attention_head_dim": 8, **options})


FILE = saved(GOOD)


@fuzz
@given(
    edits=st.lists(st.tuples(st.integers(0, len(FILE) - 1), st.binary(max_size=9)), max_size=4),
    end=st.one_of(st.just(len(FILE)), st.integers(0, len(FILE))),
)
def test_any_damaged_file_is_converted_or_refused(edits, end):
    content = bytearray(FILE)
    for at, new in edits:
        content[at : at + len(new)] = new
    converted(bytes(content[:end]), resolution=8, attention_head_dim=8)


@fuzz
@given(content=st.binary(max_size=200), start=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", FILE[:500]]))
def test_any_bytes_are_refused(content, start):
    converted(start + content)

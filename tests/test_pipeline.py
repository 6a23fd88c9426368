import json
import math
import subprocess

import numpy as np
import pytest
import torch
from conftest import make_unet
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, DDIMScheduler, DiffusionPipeline
from oracle import GaussianNet, gaussian_f

from diffusers_ict import ConsistencyFunction, ConsistencyPipeline, ICTScheduler
from diffusers_ict.class_names import load_class_names
from diffusers_ict.errors import UserError


def make_pipeline(scheduler=None, **changes) -> ConsistencyPipeline:
    pipeline = ConsistencyPipeline(make_unet(**changes).eval(), scheduler or ICTScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def images(pipeline, steps, seed=0, **more):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    return pipeline(4, num_inference_steps=steps, generator=generator, **{"output_type": "np", **more}).images


@pytest.mark.parametrize("classes", [None, 5])
def test_stock_pipeline_gives_identical_images_from_a_directory(tmp_path, classes):
    in_memory = make_pipeline(num_class_embeds=classes)
    in_memory.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert set(index) == {"_class_name", "_diffusers_version", "scheduler", "unet"}
    assert index["scheduler"] == ["diffusers", "CMStochasticIterativeScheduler"]
    labels = {"class_labels": [0, 1, 2, 4]} if classes else {}
    loaded, stock = ConsistencyPipeline.from_pretrained(tmp_path), DiffusionPipeline.from_pretrained(tmp_path)
    assert type(stock) is ConsistencyModelPipeline
    for steps in (1, 2, 3):
        ours = images(loaded, steps, **labels)
        assert loaded.num_timesteps == steps
        assert np.array_equal(images(stock, steps, **labels), ours)
        # Loaded weights lie unaligned in memory, where some CPUs' matrix products round otherwise.
        np.testing.assert_allclose(images(in_memory, steps, **labels), ours, atol=1e-5)
        assert steps != 2 or stock.scheduler.sigmas[1].item() == np.float32(0.821)


def test_stock_repositories_made_elsewhere_load_and_give_their_own_images(tmp_path):
    made = ConsistencyModelPipeline(make_unet().eval(), CMStochasticIterativeScheduler(num_train_timesteps=151))
    made.save_pretrained(tmp_path)
    stock, ours = (kind.from_pretrained(tmp_path) for kind in (ConsistencyModelPipeline, ConsistencyPipeline))
    assert isinstance(ours.scheduler, ICTScheduler)
    for how in ({"steps": 1}, {"steps": 2}, {"steps": 4}, {"steps": None, "timesteps": [22, 0]}):
        assert np.array_equal(images(ours, **how), images(stock, **how))
    with pytest.raises(ValueError, match=r"needs an ICTScheduler.*got DDIMScheduler"):
        ConsistencyPipeline(make_unet(), DDIMScheduler())


@pytest.mark.parametrize("sigma", [80.0, 3.3, 0.821])
def test_train_time_f_equals_pipeline_time_f(sigma):
    pipeline, noise = make_pipeline(ICTScheduler(clip_denoised=False)), torch.randn(4, 1, 8, 8)
    sampled = pipeline(4, latents=noise, sigmas=[sigma], output_type="latent").images
    f = pipeline.scheduler.consistency_function(pipeline.unet)
    assert isinstance(f, ConsistencyFunction)
    with torch.no_grad():
        trained = f(80.0 * noise, torch.full((4,), sigma, dtype=torch.float64))
    assert torch.equal(sampled, trained)


def test_with_the_gaussian_oracle_samples_equal_the_closed_form():
    pipeline = ConsistencyPipeline(GaussianNet(variance=0.1), ICTScheduler(clip_denoised=False))
    pipeline.set_progress_bar_config(disable=True)
    z = torch.randn(500, 2, 4, 4)
    once = pipeline(500, latents=z, output_type="latent").images
    torch.testing.assert_close(once, gaussian_f(80 * z.double(), 80.0, 0.1).float(), rtol=1e-4, atol=1e-5)
    assert once.std().item() == pytest.approx(math.sqrt(0.1), rel=0.02)

    generator = torch.Generator().manual_seed(3)
    twice = pipeline(500, num_inference_steps=2, latents=z, generator=generator, output_type="latent").images
    again = torch.randn(500, 2, 4, 4, generator=torch.Generator().manual_seed(3))
    noised = once.double() + math.sqrt(0.821**2 - 0.002**2) * again
    torch.testing.assert_close(twice, gaussian_f(noised, 0.821, 0.1).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [0.5, 1.5])
def test_guidance_leads_away_from_the_guide_by_the_scale(scale):
    pipeline = ConsistencyPipeline(GaussianNet(variance=0.1), ICTScheduler(clip_denoised=False))
    pipeline.set_progress_bar_config(disable=True)
    guide, z = GaussianNet(variance=0.05), torch.randn(500, 2, 4, 4)

    def guided_f(x, sigma):
        good, bad = (gaussian_f(x, sigma, variance) for variance in (0.1, 0.05))
        return bad + scale * (good - bad)

    asked = {"latents": z, "output_type": "latent", "guide": guide, "guidance_scale": scale}
    once = pipeline(500, **asked).images
    torch.testing.assert_close(once, guided_f(80 * z.double(), 80.0).float(), rtol=1e-4, atol=1e-5)
    twice = pipeline(500, num_inference_steps=2, generator=torch.Generator().manual_seed(3), **asked).images
    again = torch.randn(500, 2, 4, 4, generator=torch.Generator().manual_seed(3))
    noised = once.double() + math.sqrt(0.821**2 - 0.002**2) * again
    torch.testing.assert_close(twice, guided_f(noised, 0.821).float(), rtol=1e-4, atol=1e-5)


def test_a_guidance_scale_of_one_asks_no_guide():
    pipeline = make_pipeline()
    plain = images(pipeline, 2)
    assert np.array_equal(images(pipeline, 2, guidance_scale=1, guide=None), plain)
    assert np.array_equal(images(pipeline, 2, guidance_scale=1.0, guide=GaussianNet()), plain)


def test_numbers_of_numpy_and_torch_are_those_of_python():
    pipeline = make_pipeline()
    expected = images(pipeline, 2, height=4, width=16)
    given = {"num_inference_steps": np.int64(2), "height": np.int32(4), "width": torch.tensor(16)}
    drawn = pipeline(torch.tensor(4), generator=torch.Generator().manual_seed(0), output_type="np", **given).images
    assert np.array_equal(drawn, expected)


def test_four_channels_are_pictures_with_transparency():
    pipeline = make_pipeline(in_channels=4, out_channels=4)
    drawn, arrays = images(pipeline, 1, output_type="pil"), images(pipeline, 1)
    assert {(picture.mode, picture.size) for picture in drawn} == {("RGBA", (8, 8))}
    assert np.array_equal(np.stack([np.asarray(p) for p in drawn]), (arrays * 255).round().astype(np.uint8))


def test_given_sigmas_equal_the_same_levels_by_steps():
    pipeline = make_pipeline()
    assert np.array_equal(images(pipeline, 2), images(pipeline, 1, sigmas=[80.0, 0.821]))


def test_any_number_of_channels_tuple_sizes_and_other_sizes():
    pipeline = make_pipeline(in_channels=5, out_channels=5, sample_size=(8, 12))
    assert images(pipeline, 1).shape == (4, 8, 12, 5)
    assert images(pipeline, 1, height=4, width=16).shape == (4, 4, 16, 5)
    (drawn,) = pipeline(4, latents=torch.randn(4, 5, 8, 12), output_type="pt", return_dict=False)
    assert drawn.shape == (4, 5, 8, 12)
    with pytest.raises(ValueError, match="1, 3 or 4 channels and this model's have 5"):
        pipeline(1)


def test_labels_in_every_form_give_the_same_images():
    pipeline = make_pipeline(num_class_embeds=5)
    expected = images(pipeline, 1, class_labels=[3, 3, 3, 3])
    forms = [torch.tensor([3, 3, 3, 3]), np.array([3, 3, 3, 3], np.uint16), torch.tensor(3), np.int64(3), np.array([3])]
    for labels in (3, *forms, (3, np.int8(3), torch.tensor(3), 3)):
        assert np.array_equal(images(pipeline, 1, class_labels=labels), expected)
    assert not np.array_equal(images(pipeline, 1, class_labels=2), expected)


NAMES = {0: "cat", 1: "dog", 2: "a bird", 3: "fish", 4: "Käfer"}


def test_names_of_classes_are_saved_loaded_and_taken_as_labels(tmp_path):
    pipeline = make_pipeline(num_class_embeds=5)
    assert pipeline.id2label is None
    pipeline.id2label = NAMES
    pipeline.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "labels.json").read_text())
    assert saved == {"id2label": {str(number): name for number, name in NAMES.items()}}
    loaded = ConsistencyPipeline.from_pretrained(tmp_path)
    assert loaded.id2label == NAMES
    assert ConsistencyPipeline.from_pipe(loaded).id2label == NAMES
    by_number = images(loaded, 2, class_labels=[1, 4, 0, 1])
    for labels in (["dog", "Käfer", "cat", "dog"], ("dog", 4, 0, "dog"), np.array(["dog", "Käfer", "cat", "dog"])):
        assert np.array_equal(images(loaded, 2, class_labels=labels), by_number)
    assert np.array_equal(images(loaded, 1, class_labels="a bird"), images(loaded, 1, class_labels=2))
    with pytest.raises(ValueError, match="'cat', 'dog', 'a bird', 'fish', 'Käfer', got 'cow'"):
        loaded(1, class_labels="cow")
    loaded.id2label = {number: f"class {number}" for number in range(14)}
    with pytest.raises(ValueError, match=r"'class 8', 'class 9' and 4 more, got 'cat'\.$"):
        loaded(1, class_labels=["cat"])


def test_a_pipeline_without_names_takes_none_and_leaves_none_behind(tmp_path):
    pipeline = make_pipeline(num_class_embeds=5)
    with pytest.raises(ValueError, match="does not name its classes: give class_labels as integers, got 'cat'"):
        pipeline(1, class_labels="cat")
    (tmp_path / "labels.json").write_text('{"id2label": {"0": "from an earlier model"}}')
    pipeline.save_pretrained(tmp_path)
    assert ConsistencyPipeline.from_pretrained(tmp_path).id2label is None
    (tmp_path / "labels.json").write_text('["cat", "dog"]')
    with pytest.raises(ValueError, match=r"labels\.json must hold"):
        ConsistencyPipeline.from_pretrained(tmp_path)


NO_NAMES = {
    "a list": '["cat", "dog"]', "too deep": "[" * 10**5, "too deep inside": '{"id2label":' * 10**5, "nothing": "{}",
    "a number": '{"id2label": {"0": 3}}', "null": '{"id2label": {"0": null}}', "names alone": '{"id2label": ["cat"]}',
    "half a character": r'{"id2label": {"0": "\ud800"}}', "no number": '{"id2label": {"first": "cat"}}',
    "no UTF-8": "\xff",
}  # fmt: skip


@pytest.mark.parametrize("content", NO_NAMES.values(), ids=NO_NAMES)
def test_names_of_classes_that_are_no_texts_are_refused_in_a_sentence(tmp_path, content):
    (tmp_path / "labels.json").write_text(content, encoding="latin1")
    with pytest.raises(UserError, match=r"labels\.json (must|cannot)") as caught:
        load_class_names(tmp_path, {})
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).encode()


@pytest.mark.slow
def test_stock_diffusers_loads_a_folder_with_names_without_a_word(tmp_path, python_without_us):
    pipeline = make_pipeline(num_class_embeds=5)
    pipeline.id2label = NAMES
    pipeline.save_pretrained(tmp_path)
    code = "import sys; from diffusers import DiffusionPipeline; DiffusionPipeline.from_pretrained(sys.argv[1])"
    command = [python_without_us, "-I", "-c", code, str(tmp_path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True, timeout=600)
    assert done.stdout == ""


def test_drawn_labels_obey_the_generator():
    pipeline = make_pipeline(num_class_embeds=5)
    first = images(pipeline, 1, seed=1)
    torch.randint(5, (3,))  # the global generator moves on
    assert np.array_equal(first, images(pipeline, 1, seed=1))
    a, b, alone = (
        pipeline(len(seeds), generator=[torch.Generator().manual_seed(i) for i in seeds], output_type="np").images
        for seeds in (range(4), range(4), (2,))
    )
    assert np.array_equal(a, b)
    np.testing.assert_allclose(a[2:3], alone, atol=1e-5)


@pytest.mark.parametrize("output_type", ["np", "pil", "pt", "latent"])
def test_bfloat16_networks_give_every_kind_of_output(output_type):
    out = images(make_pipeline().to(dtype=torch.bfloat16), 2, output_type=output_type)
    assert len(out) == 4
    if output_type == "pil":
        assert (out[0].mode, out[0].size) == ("L", (8, 8))
    else:
        assert torch.as_tensor(out).isfinite().all()


def test_callbacks_are_called_and_may_replace_the_sample():
    pipeline, seen = make_pipeline(), []
    images(pipeline, 3, callback=lambda i, t, x: seen.append((i, float(t))), callback_steps=2)
    assert [i for i, _ in seen] == [0, 2]

    def grey(pipe, step, t, tensors):
        assert pipe is pipeline
        return {"latents": torch.zeros_like(tensors["latents"])}

    assert (images(pipeline, 2, callback_on_step_end=grey) == 0.5).all()


def test_variants_are_saved_and_loaded(tmp_path):
    for seed, variant in ((1, "ema999"), (0, None)):
        make_pipeline(seed=seed).save_pretrained(tmp_path, variant=variant)
    for seed, variant in ((1, "ema999"), (0, None)):
        loaded = ConsistencyPipeline.from_pretrained(tmp_path, variant=variant).unet.state_dict()
        expected = make_pipeline(seed=seed).unet.state_dict()
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps must be an integer from 1"),
        ({"sigmas": [0.5, 80.0]}, "sigmas must descend"),
        ({"sigmas": [80.0], "timesteps": [0]}, "give timesteps or sigmas, not both"),
        ({"class_labels": [0, 7]}, "within 0 and 4"),
        *(
            ({"class_labels": wrong}, "one integer or 2 of them")
            for wrong in ([0.5, 1.0], True, [True, False], np.array([True, False]), [None, 1], np.float32(1), [], {})
        ),
        *(({"batch_size": wrong}, f"positive integer, got {wrong}") for wrong in (0, True, 2.0)),
        *(({"height": wrong}, f"multiples of 2 for this model, got 8x{wrong}") for wrong in (7, 0, -2, 8.0, True)),
        ({"generator": 0}, "generator must be a torch.Generator or a list of them, got 0; for a seed, give"),
        ({"generator": [0, 1]}, "generator must be a torch.Generator or a list of them, got 0"),
        ({"callback_steps": 0}, "callback_steps must be a positive"),
        ({"callback_on_step_end_tensor_inputs": ["prompt"]}, "'latents' only"),
        *(({"guidance_scale": wrong}, "guidance_scale must be a positive number") for wrong in (0, -1, True, "2")),
        ({"guidance_scale": 2}, "needs a guide"),
        ({"guidance_scale": 2, "guide": GaussianNet()}, "the guide must have in_channels 1"),
    ],
)
def test_bad_arguments_get_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_pipeline(num_class_embeds=5)(**{"batch_size": 2, **arguments})
    with pytest.raises(ValueError, match="unconditional"):
        make_pipeline()(1, class_labels=1)

import dataclasses

import numpy as np
import pytest
import torch
import yaml
from diffusers import UNet2DModel

from diffusers_ict import ICT
from diffusers_ict.commands.program import as_flags
from diffusers_ict.discriminator import ConsistencyDiscriminator
from diffusers_ict.errors import UserError
from diffusers_ict.evaluation.evaluate import evaluate
from diffusers_ict.evaluation.settings import EvaluationSettings
from diffusers_ict.formulas.noise_schedule import act_num_levels, ct_num_levels
from diffusers_ict.objectives import BUILT_IN
from diffusers_ict.training.recipe import SHIPPED, Recipe, parse
from diffusers_ict.training.start import make_objective
from diffusers_ict.training.unets import read_config


def read(*flags):
    return parse([str(flag) for flag in flags], "train_ict.py", "test")


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        "learning_rate: 0.002\nseed: 5\nclass_conditional: true\nema_decays: [0.9, 0.99]\nresolution: null\n"
    )
    recipe = read("--seed", 9, "--config", path)
    assert recipe.learning_rate == 0.002
    assert recipe.seed == 9
    assert recipe.class_conditional
    assert recipe.ema_decays == [0.9, 0.99]
    assert recipe.resolution is None
    assert not read("--config", path, "--no-class_conditional").class_conditional


def test_data_on_the_command_line_replaces_all_that_a_recipe_says_of_its_data(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("dataset_name: uoft-cs/cifar10\ndataset_split: test\nimage_column: img\nresolution: 32\n")
    recipe = read("--config", path, "--train_data_dir", "my_images")
    assert (recipe.dataset_name, recipe.train_data_dir) == (None, "my_images")
    assert (recipe.dataset_split, recipe.image_column) == ("train", None)
    assert recipe.resolution == 32
    recipe = read("--config", path, "--dataset_name", "mine.npz", "--image_column", "pictures")
    assert (recipe.dataset_name, recipe.image_column) == ("mine.npz", "pictures")


def test_act_recipes_say_what_was_published():
    recipes = [read("--config", f"act_{name}") for name in ("cifar10", "imagenet64", "lsun_cat256")]
    assert [recipe.objective["metric"] for recipe in recipes] == ["lpips"] * 3
    assert [recipe.objective["augment"] for recipe in recipes] == [True, False, False]
    # Half of the second batch are fakes, and both halves together are the first.
    assert all(2 * recipe.discriminator_batch_size == recipe.train_batch_size for recipe in recipes)
    assert not recipes[2].random_flip
    assert read("--config", "ct_cifar10").learning_rate == 4e-4


def test_what_is_left_out_is_what_was_published():
    def objective(*flags):
        return make_objective(read(*flags), None)

    ict, ct, act, ect = (objective("--loss", loss) for loss in ("ict", "ct", "act", "ect"))
    assert (ict.s0, ict.s1, ict.huber_c, ict.betas) == (10, 1280, None, (0.9, 0.999))
    assert (ct.s0, ct.s1, ct.mu0, ct.levels) == (2, 150, 0.9, ct_num_levels)
    assert (act.consistency.s0, act.consistency.s1, act.betas) == (2, 150, (0.0, 0.99))
    assert act.consistency.levels is act_num_levels
    assert (act.discriminator_beta1, act.discriminator_beta2, act.r1_gamma, act.r1_interval) == (0.0, 0.9318, 10.0, 16)
    assert (ect.p_mean, ect.p_std, ect.huber_c, ect.betas) == (-1.1, 2.0, 0.0, (0.9, 0.999))
    assert objective("--loss", "act", "--objective", "consistency=ict").consistency == ICT()
    assert objective("--objective", "huber_c=0.06", "s1=40") == ICT(s1=40, huber_c=0.06)
    assert [objective("--loss", loss).dropout for loss in BUILT_IN] == [0.3, 0.2, 0.0, 0.0, 0.0, 0.3]


def test_settings_of_the_method_add_up_and_belong_to_their_loss(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("loss: ict\nobjective: {s1: 40, p_mean: -0.6}\n")
    assert read("--config", path, "--objective", "s1=80", "--objective", "s0=5").objective == {
        "s1": 80, "p_mean": -0.6, "s0": 5}  # fmt: skip
    assert read("--config", path, "--loss", "ct").objective == {}


def test_settings_of_a_method_have_short_flags():
    short = parse(["--s0", "2", "--objective", "s1=8", "--huber_c=null", "--p_mean", "-0.5"], "train", None)
    assert short.objective == {"s0": 2, "s1": 8, "huber_c": None, "p_mean": -0.5}
    assert parse(["--loss", "ect", "--ect_q", "4"], "train", None).objective == {"q": 4}


def test_numbers_of_numpy_are_those_of_python_and_bools_are_none():
    given = {"max_train_steps": np.int64(8), "seed": np.uint8(3), "learning_rate": np.float32(0.5),
             "ema_decays": [np.float64(0.5), 0.9], "intermediate_sigmas": np.array([0.5])}  # fmt: skip
    plain = {"max_train_steps": 8, "seed": 3, "learning_rate": 0.5, "ema_decays": [0.5, 0.9],
             "intermediate_sigmas": [0.5]}  # fmt: skip
    written = yaml.safe_dump(Recipe(output_dir="o", dataset_name="d", **given).as_dict())
    assert written == yaml.safe_dump(Recipe(output_dir="o", dataset_name="d", **plain).as_dict())
    assert repr(ICT(s0=np.int64(4), p_std=torch.tensor(0.5))) == repr(ICT(s0=4, p_std=0.5))
    for name in ("max_train_steps", "train_batch_size", "seed", "learning_rate"):
        with pytest.raises(UserError, match=f"`{name}` must be a number, got True"):
            Recipe(output_dir="o", dataset_name="d", **{name: True})
    with pytest.raises(UserError, match="`seed` must be a number, got True"):
        evaluate("model", EvaluationSettings(dataset_name="d", seed=True))


def test_a_saved_recipe_gives_the_same_recipe(tmp_path):
    settings = ["--objective", "consistency=ict", "augment=true", "augment_tau=1e-6", "huber_c=null"]
    recipe = read("--loss", "act", *settings, "--train_data_dir", "my images", "--ema_decays", 0.9, 0.99)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.as_dict()))
    again = read("--config", path)
    assert dataclasses.replace(again, config=None) == recipe


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (["--sed", 3], "unrecognized arguments: --sed 3"),
        (["--loss", "gan"], "invalid choice: 'gan'"),
        (["--train_batch_size", 0], "--train_batch_size must be at least 1, got 0"),
        (["--dropout", 1.0], "--dropout must be at least 0 and less than 1"),
        (["--ema_decays", 0.9, 0.9], "--ema_decays must be different numbers between 0 and 1"),
        (["--learning_rate", "nan"], "--learning_rate must be finite, got nan"),
        (["--push_to_hub"], "--push_to_hub needs --hub_model_id USER/NAME, got none"),
        (["--max_train_steps", 10**12], " and less than 1e+"),
        (["--torch_compile", "--gradient_checkpointing"], "computes passes again, which a graph cannot"),
        (["--config", "ict_cifar100"], "--config must be a YAML file, or one of act_cifar10, "),
        (["--config", "none.yaml"], ", got none.yaml"),
        ("learning_rat: 1", "unknown key 'learning_rat'"),
        ("- 1", "must be a YAML mapping"),
        ("[" * 3000, "cannot be read"),
        ("dropout: 2", "--dropout must be"),
        ("objective: 3", "must be a mapping of settings, got 3"),
    ],
)
def test_bad_flags_and_files_get_one_sentence(mistake, message, tmp_path):
    if isinstance(mistake, str):
        (tmp_path / "r.yaml").write_text(mistake)
        mistake = ["--config", tmp_path / "r.yaml"]
    with pytest.raises(UserError) as caught:
        read(*mistake)
    assert message in as_flags(str(caught.value))
    assert "\n" not in str(caught.value)


def test_files_that_a_recipe_names_are_looked_for_beside_it(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "unet.json").write_text("{}")
    (tmp_path / "mine" / "r.yaml").write_text("model_config_name_or_path: unet.json\n")
    monkeypatch.chdir(tmp_path)
    recipe = read("--config", "mine/r.yaml")
    assert recipe.model_config_name_or_path == "mine/unet.json"
    recipe = read("--config", "mine/r.yaml", "--model_config_name_or_path", "other.json")
    assert recipe.model_config_name_or_path == "other.json"


def test_no_absolute_path_is_written_down():
    recipe = read(
        "--dataset_name", "/home/someone/pictures.npz", "--output_dir", "/scratch/run", "--train_data_dir", "a/b"
    )
    written = recipe.as_dict()
    assert (written["dataset_name"], written["output_dir"]) == ("pictures.npz", "run")
    assert written["train_data_dir"] == "a/b"
    assert recipe.dataset_name == "/home/someone/pictures.npz"


# Images of one optimizer step (on as many processes) as published, and millions of parameters of the network and, of
# ACT, of its discriminator and of both.
PUBLISHED = {
    "ict_cifar10": (1024, 1, 59.0),
    "ict_deep_cifar10": (1024, 1, 104.4),
    "ict_imagenet64": (4096, 8, 281.7),
    "ict_deep_imagenet64": (4096, 8, 472),
    "ct_cifar10": (512, 1, 59.0),
    "act_cifar10": (80, 1, 27.50, 14.09, 41.59),
    "act_imagenet64": (320, 1, 107.60, 53.90, 161.50),
    "act_lsun_cat256": (640, 1, 113.67, 56.99),
    "digits": (64, 1),
    "small_budget": (16, 1),
    "tune_ddpm": (128, 1),
}


@pytest.mark.parametrize("name", sorted(path.stem for path in SHIPPED.glob("*.yaml")))
def test_shipped_recipes_have_the_published_batch_and_size(name):
    recipe = read("--config", name)
    batch, processes, *published = PUBLISHED[name]
    assert recipe.train_batch_size * recipe.gradient_accumulation_steps * processes == batch
    if not published:
        return
    with torch.device("meta"):
        networks = [UNet2DModel.from_config(read_config(recipe.model_config_name_or_path))]
        if recipe.loss == "act":
            config = ConsistencyDiscriminator.load_config(recipe.discriminator_config_name_or_path)
            networks.append(ConsistencyDiscriminator.from_config(config))
    counts = [sum(p.numel() for p in network.parameters()) / 1e6 for network in networks]
    exact = {"abs": 0.01} if recipe.loss == "act" else {"rel": 2e-3}
    assert [*counts, sum(counts)][: len(published)] == pytest.approx(published, **exact)
    unet = networks[0].config
    assert unet.sample_size == recipe.resolution
    assert (unet.num_class_embeds is not None) == recipe.class_conditional
    assert unet.resnet_time_scale_shift == "default", "iCT: no scale-shift norm"
    assert all(unet.in_channels == network.config.in_channels for network in networks)

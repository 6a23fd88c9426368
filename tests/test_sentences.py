"""Sentences that only rare mistakes provoke, and that no other test does."""

import zipfile

import numpy as np
import pytest
from accelerate import Accelerator
from conftest import make_unet
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Picture

from diffusers_ict import CT, ICT, ConsistencyPipeline, ICTScheduler
from diffusers_ict.commands.program import run_program
from diffusers_ict.data.load import load_images
from diffusers_ict.errors import UserError
from diffusers_ict.evaluation.samples import list_variants
from diffusers_ict.processes import make_accelerator
from diffusers_ict.training.estimate import stages
from diffusers_ict.training.recipe import Recipe, parse


def test_a_network_without_a_size_asks_for_one():
    pipeline = ConsistencyPipeline(make_unet(sample_size=None), ICTScheduler())
    with pytest.raises(ValueError, match="this model has no sample_size in its config: give height and width"):
        pipeline(height=8)
    assert pipeline(height=8, width=8, output_type="np").images.shape == (1, 8, 8, 1)


def test_an_unknown_name_of_a_class_is_answered_by_the_known_ones():
    pipeline = ConsistencyPipeline(make_unet(num_class_embeds=2), ICTScheduler())
    pipeline.id2label = {0: "cat", 1: "dog"}
    with pytest.raises(ValueError, match="class_labels by name must be among 'cat', 'dog', got 'cow'"):
        pipeline(class_labels="cow")


def test_of_two_label_columns_one_has_to_be_named(tmp_path):
    classes = ClassLabel(names=["a", "b"])
    rows = {"image": [Picture.new("L", (8, 8))] * 2, "kind": [0, 1], "colour": [1, 0]}
    data = Dataset.from_dict(rows, Features({"image": Image(), "kind": classes, "colour": classes}))
    data.to_parquet(tmp_path / "data.parquet")
    own = {"dataset_name": str(tmp_path / "data.parquet"), "class_conditional": True}
    with pytest.raises(UserError, match=r"could be meant by `label_column`: kind, colour; name one"):
        load_images(**own)
    assert load_images(**own, label_column="colour").labels.tolist() == [1, 0]


def test_an_array_in_another_version_of_numpys_format_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as file, file.open("images.npy", "w") as member:
        np.lib.format.write_array(member, np.zeros((4, 8, 8), np.uint8), version=(3, 0))
    with pytest.raises(UserError, match=r"its arrays are in version \(3, 0\) of NumPy's format"):
        load_images(dataset_name=str(tmp_path / "data.npz"))


def test_a_hub_that_cannot_be_reached_is_named():
    with pytest.raises(UserError, match="the files of someone/model cannot be listed: "):
        list_variants("someone/model")


def test_what_accelerate_refuses_is_told(tmp_path):
    Accelerator(mixed_precision="no")
    with pytest.raises(UserError, match="accelerate cannot run with these settings: AcceleratorState has already"):
        make_accelerator("bf16", None, str(tmp_path))


def test_publishing_needs_a_name():
    with pytest.raises(UserError, match="`push_to_hub` needs `hub_model_id` USER/NAME, got none"):
        Recipe(push_to_hub=True)


def test_numbers_that_no_run_can_use_are_refused():
    for setting in ({"huber_c": 1e300}, {"max_train_steps": 10**12}, {"num_train_epochs": 1e300}):
        with pytest.raises(UserError, match=r"` must be .* and less than 1e\+"):
            Recipe(**setting)


def test_the_stages_of_the_longest_run_are_found_at_once():
    found = dict(stages(ICT(), 10**12 - 1))
    assert [values["num_levels"] for values in found.values()] == [10 * 2**k + 1 for k in range(8)]
    for objective in (ICT(), CT()):
        walked = [k for k in range(300) if k == 0 or objective.schedule(k, 300) != objective.schedule(k - 1, 300)]
        assert [step for step, _ in stages(objective, 300)] == walked


@pytest.mark.parametrize("content", ["model_config_name_or_path: 5", "model_config_name_or_path: [a]", "[" * 3000])
def test_a_recipe_of_other_types_is_refused(tmp_path, content):
    (tmp_path / "recipe.yaml").write_text(content)
    with pytest.raises(UserError):
        parse(["--config", str(tmp_path / "recipe.yaml"), "--learning_rate", "-1"], "train_ict.py", "")


def test_a_damaged_header_of_an_npz_is_refused(tmp_path):
    np.savez(tmp_path / "data.npz", images=np.zeros((4, 8, 8), np.uint8))
    content = bytearray((tmp_path / "data.npz").read_bytes())
    opening = content.index(b"{'descr'")
    content[opening + 8] = ord("(")  # a bracket that is never closed
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read as \.npz"):
        load_images(dataset_name=str(tmp_path / "data.npz"))


def test_a_readme_makes_no_data_set_of_a_folder_of_images(tmp_path):
    for name in ("train/1.png", "other/2.png"):
        (tmp_path / name).parent.mkdir()
        Picture.new("L", (8, 8)).save(tmp_path / name)
    (tmp_path / "README.md").write_text("Photos of my garden.\n")
    with pytest.raises(UserError, match="a folder of images is given as `train_data_dir`"):
        load_images(dataset_name=str(tmp_path))


def test_an_interrupted_program_says_so(capsys):
    def body():
        raise KeyboardInterrupt

    assert run_program("train_ict.py", body) == 130
    assert capsys.readouterr().err == "train_ict.py: interrupted.\n"

"""Classes by name: what has no images is not drawn unless asked for, and names are compared in one Unicode form."""

import json
import unicodedata

import datasets
import numpy as np
import pytest
import torch
from conftest import make_unet
from PIL import Image
from short_run import ICT, assert_refused, run
from test_images import folder, solid

from diffusers_ict import ConsistencyPipeline, ICTScheduler
from diffusers_ict.data.load import load_images
from diffusers_ict.data.settings import DataSettings
from diffusers_ict.data.stream import StreamedImages
from diffusers_ict.errors import UserError
from diffusers_ict.evaluation.samples import labels_of

COMPOSED, APART = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))


@pytest.fixture
def pipeline() -> ConsistencyPipeline:
    made = ConsistencyPipeline(make_unet(num_class_embeds=4).eval(), ICTScheduler())
    made.set_progress_bar_config(disable=True)
    return made


def drawn(pipeline: ConsistencyPipeline, one_by_one: bool = False) -> list[int]:
    seeds = [torch.Generator().manual_seed(seed) for seed in range(200)]
    return pipeline._labels(200, None, seeds if one_by_one else seeds[0]).tolist()


def test_a_class_without_a_name_beside_others_is_drawn_only_where_it_is_asked_for(pipeline):
    assert set(drawn(pipeline)) == {0, 1, 2, 3}
    expected = torch.randint(4, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    for names in (None, dict(enumerate("abcd")), {7: "x"}):
        pipeline.id2label = names
        assert drawn(pipeline) == expected, "as ever"
    pipeline.id2label = {0: "a", 3: "d"}
    assert set(drawn(pipeline)) == set(drawn(pipeline, one_by_one=True)) == {0, 3}
    assert pipeline._labels(2, [1, 2], None).tolist() == [1, 2]
    assert labels_of(pipeline, None, 0)(torch.arange(5)).tolist() == [0, 3, 0, 3, 0]


@pytest.mark.parametrize("named", [False, True])
def test_a_model_names_the_classes_that_had_images(flags, config, tmp_path, capsys, named):
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_class_embeds": 4}))
    images, labels = np.random.default_rng(0).integers(0, 256, (16, 8, 8), np.uint8), [0, 3] * 8
    np.savez(tmp_path / "gaps.npz", images=images, labels=np.array(labels))
    data = tmp_path / "gaps.npz"
    if named:
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("abcd"))})
        rows = {"image": list(map(Image.fromarray, images)), "label": labels}
        data = tmp_path / "gaps.parquet"
        datasets.Dataset.from_dict(rows, features=features).to_parquet(data)
    out = tmp_path / "gaps"
    own = ["--dataset_name", data, "--class_conditional", "--max_train_steps", "12", "--output_dir", out]
    assert run(*ICT, *flags, *own) == 0
    assert "4 classes, 2 without images: 8 " in capsys.readouterr().out
    loaded = ConsistencyPipeline.from_pretrained(out)
    assert loaded.id2label == ({0: "a", 3: "d"} if named else {0: "class 0", 3: "class 3"})
    assert loaded.unet.config.num_class_embeds == 4
    assert set(drawn(loaded)) == {0, 3}


def test_names_that_differ_in_their_unicode_form_alone_are_refused(tmp_path, capsys):
    where = folder(tmp_path / "images", {f"{name}/1.png": solid("L") for name in (COMPOSED, APART)})
    assert len(load_images(train_data_dir=where)) == 2
    told = "classes must differ in more than the Unicode form of their names"
    out = ["--output_dir", tmp_path / "out", "--max_train_steps", "20", "--class_conditional"]
    assert_refused(tmp_path, capsys, told, *ICT, "--train_data_dir", where, *out)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=[COMPOSED, APART])})
    rows = {"image": [solid("L")] * 2, "label": [0, 1]}
    data = str(tmp_path / "d.parquet")
    datasets.Dataset.from_dict(rows, features=features).to_parquet(data)
    with pytest.raises(UserError, match=told):
        load_images(dataset_name=data, class_conditional=True)
    with pytest.raises(UserError, match=told):
        StreamedImages(DataSettings(dataset_name=data), True, 2, 0)


@pytest.mark.parametrize(("stored", "asked"), [(COMPOSED, APART), (APART, COMPOSED), (APART, APART)])
def test_a_class_is_found_by_its_name_in_either_unicode_form(pipeline, stored, asked):
    pipeline.id2label = {0: "tea", 2: stored}
    assert pipeline._labels(1, asked, None).tolist() == [2]

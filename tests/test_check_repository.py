import json

import pytest
import torch
from conftest import make_unet
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, DDPMPipeline, DDPMScheduler

from diffusers_ict import ConsistencyPipeline, ICTScheduler, zero_fast_columns
from diffusers_ict.commands import check_repository

CARD = """---
license: mit
library_name: diffusers
pipeline_tag: unconditional-image-generation
tags: [consistency-models]
---
`DiffusionPipeline.from_pretrained("x")`
"""


@pytest.fixture
def healthy(tmp_path):
    unet = make_unet(num_class_embeds=3).eval()
    zero_fast_columns(unet)
    ConsistencyPipeline(unet, ICTScheduler()).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text(CARD)
    return tmp_path / "model"


def diagnosis(folder, capsys) -> tuple[int, str]:
    code = check_repository.main([str(folder)])
    return code, "\n".join(line for line in capsys.readouterr().out.splitlines() if line.startswith("WRONG"))


def change_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_healthy_repository_is_found_healthy(healthy, capsys):
    assert check_repository.main([str(healthy)]) == 0
    out = capsys.readouterr().out
    assert out.count("ok ") == 7
    for fact in ("insensitive", "two steps go through 0.821", "differ by at most 0 ", "3 classes", "M parameters"):
        assert fact in out, fact


def test_it_finds_weights_that_are_not_numbers(healthy, capsys):
    unet = make_unet(num_class_embeds=3)
    unet.conv_out.weight.data[0, 0] = torch.nan
    unet.save_pretrained(healthy / "unet")
    code, wrong = diagnosis(healthy, capsys)
    assert code == 1
    assert "1 of its tensors hold values that are not numbers, conv_out.weight first" in wrong


def test_it_finds_the_wrong_second_sigma(healthy, capsys):
    change_json(healthy / "scheduler" / "scheduler_config.json", rho=7.0)
    code, wrong = diagnosis(healthy, capsys)
    assert code == 1
    assert "two steps go through 2.24 in stock, and 0.821 was meant" in wrong


def test_it_finds_the_default_second_sigma_of_stock(tmp_path, capsys):
    ConsistencyModelPipeline(make_unet().eval(), CMStochasticIterativeScheduler()).save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text(CARD)
    code, wrong = diagnosis(tmp_path, capsys)
    assert code == 1
    assert "two steps go through 2.24, the default of stock" in wrong


def test_it_finds_a_time_embedding_that_cannot_be_sampled(healthy, capsys):
    make_unet(num_class_embeds=3, time_embedding_type="fourier").save_pretrained(healthy / "unet")
    code, wrong = diagnosis(healthy, capsys)
    assert code == 1
    assert "time embedding: a consistency model needs time_embedding_type 'positional'" in wrong


def test_it_finds_channels_that_do_not_agree(healthy, capsys):
    make_unet(num_class_embeds=3, out_channels=2).save_pretrained(healthy / "unet")
    code, wrong = diagnosis(healthy, capsys)
    assert code == 1
    assert "1 channels in, 2 out" in wrong


def test_it_finds_unusual_constants(healthy, capsys):
    change_json(healthy / "scheduler" / "scheduler_config.json", sigma_data=1.0)
    code, wrong = diagnosis(healthy, capsys)
    assert code == 1
    assert "unusual constants, which training must have shared: {'sigma_data': 1.0}" in wrong


def test_it_finds_a_card_that_is_missing_or_not_complete(healthy, capsys):
    (healthy / "README.md").write_text(CARD.replace("license: mit\n", ""))
    assert "its model card lacks license" in diagnosis(healthy, capsys)[1]
    (healthy / "README.md").unlink()
    assert "there is no README.md" in diagnosis(healthy, capsys)[1]


def test_other_repositories_are_refused(tmp_path, capsys):
    DDPMPipeline(make_unet(), DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    assert check_repository.main([str(tmp_path / "ddpm")]) == 2
    assert "must hold a ConsistencyModelPipeline, and holds a DDPMPipeline" in capsys.readouterr().err
    assert check_repository.main([str(tmp_path / "nowhere")]) == 2
    assert "stock diffusers cannot load" in capsys.readouterr().err

import json
import re
import shlex

import pytest
import torch
from conftest import make_unet
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, DDPMPipeline, DDPMScheduler
from hub_client import NAME, SCRIPTS, client, push

from diffusers_ict import ConsistencyPipeline, ICTScheduler, zero_fast_columns
from diffusers_ict.commands import check_repository, convert, main
from diffusers_ict.loading import load_consistency

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


def diagnosis(folder, capsys, word: str = "WRONG") -> tuple[int, str]:
    """The exit code, and the findings of one severity, each with the line of its remedy below it."""
    code = check_repository.main([str(folder)])
    found = re.split(r"\n(?! )", capsys.readouterr().out)
    return code, "\n".join(finding for finding in found if finding.startswith(word))


def run_remedy(found: str, **words: str) -> None:
    """Run the command that a finding names; `words` replace those in capitals."""
    command = found.split("\n")[1]
    for placeholder, word in words.items():
        command = command.replace(placeholder, word)
    program, *rest = shlex.split(command)
    assert program == "diffusers-ict"
    assert main.main(rest) == 0


def change_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_healthy_repository_is_found_healthy(healthy, capsys):
    assert check_repository.main([str(healthy)]) == 0
    out = capsys.readouterr().out
    assert out.count("ok ") == 7
    agreement = "stock diffusers and diffusers-ict draw the same images with one and two steps."
    for fact in ("insensitive", "two steps go through 0.821", agreement, "3 classes", "M parameters"):
        assert fact in out, fact


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "1 of its tensors hold values that are not numbers, conv_out.weight first"),
        ({"time_embedding_type": "fourier"}, "a consistency model needs time_embedding_type 'positional'"),
        ({"out_channels": 2}, "1 channel in, 2 out"),
    ],
    ids=["weights", "time embedding", "channels"],
)
def test_it_finds_networks_that_cannot_be_sampled(healthy, capsys, changes, message):
    unet = make_unet(num_class_embeds=3, **changes)
    unet.conv_out.weight.data[0, 0] = torch.nan
    unet.save_pretrained(healthy / "unet")
    code, wrong = diagnosis(healthy, capsys)
    assert code == 1
    assert message in wrong


@pytest.mark.slow
def test_it_finds_the_wrong_second_sigma_and_names_what_mends_it(healthy, capsys):
    change_json(healthy / "scheduler" / "scheduler_config.json", rho=7.0)
    code, wrong = diagnosis(healthy, capsys)
    assert code == 1
    assert "two steps go through 2.24 in stock, and 0.821 was meant" in wrong
    mended = healthy.parent / "mended"
    run_remedy(wrong, NEW_FOLDER=str(mended))
    assert diagnosis(mended, capsys) == (0, "")


def test_the_default_second_sigma_of_stock_is_advice_and_so_is_what_convert_made_of_it(tmp_path, capsys):
    model = tmp_path / "a model"
    ConsistencyModelPipeline(make_unet().eval(), CMStochasticIterativeScheduler()).save_pretrained(model)
    (model / "README.md").write_text(CARD)
    code, advice = diagnosis(model, capsys, "advice")
    assert code == 0
    assert "two steps go through 2.24, the default of stock" in advice
    assert f"diffusers-ict evaluate '{model}' --tune_sigmas 2 --train_data_dir IMAGES" in advice
    (model / "README.md").unlink()
    assert convert.main([str(model), str(tmp_path / "converted")]) == 0
    capsys.readouterr()
    code, advice = diagnosis(tmp_path / "converted", capsys, "advice")
    assert code == 0
    assert "second sigma" in advice
    assert "its model card lacks license.\n       diffusers-ict publish" in advice
    assert "--license LICENCE" in advice


def test_unusual_constants_are_advice(healthy, capsys):
    change_json(healthy / "scheduler" / "scheduler_config.json", sigma_data=0.7)
    code, advice = diagnosis(healthy, capsys, "advice")
    assert code == 0
    assert "unusual constants, right only if the model was trained with them: {'sigma_data': 0.7}" in advice


@pytest.mark.slow
def test_a_card_that_is_missing_or_not_complete_is_advice(healthy, capsys):
    for field in ("license: mit", "library_name: diffusers"):
        (healthy / "README.md").write_text(CARD.replace(f"{field}\n", ""))
        code, advice = diagnosis(healthy, capsys, "advice")
        assert code == 0
        assert f"its model card lacks {field.split(':')[0]}" in advice
        assert ("--license" in advice) == (field == "license: mit")
    (healthy / "README.md").unlink()
    code, advice = diagnosis(healthy, capsys, "advice")
    assert code == 0
    assert "there is no README.md" in advice
    mended = healthy.parent / "mended"
    run_remedy(advice, NEW_FOLDER=str(mended), LICENCE="mit")
    assert diagnosis(mended, capsys, "advice") == (0, "")


@pytest.mark.slow
def test_a_card_on_the_hub_is_mended_by_publishing_a_copy(hub, healthy, capsys, tmp_path):
    assert convert.main([str(healthy), str(tmp_path / "mine")]) == 0
    hub.add_folder(NAME, tmp_path / "mine")
    done = client(hub, tmp_path / "home", SCRIPTS / "check_repository.py", NAME)
    assert done.returncode == 0, done.stderr
    expected = f"hf download {NAME} --local-dir my-digits && diffusers-ict publish my-digits --hub_model_id {NAME}"
    assert f"its model card lacks license.\n       {expected} --license LICENCE\n" in done.stdout
    done = push(hub, tmp_path / "mine", tmp_path / "home", "--license", "mit")
    assert done.returncode == 0, done.stderr
    capsys.readouterr()
    assert diagnosis(tmp_path / "mine", capsys, "advice") == (0, "")


def test_other_repositories_are_refused(tmp_path, capsys):
    DDPMPipeline(make_unet(), DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    assert check_repository.main([str(tmp_path / "ddpm")]) == 2
    assert "must hold a ConsistencyModelPipeline, and holds a DDPMPipeline" in capsys.readouterr().err
    assert check_repository.main([str(tmp_path / "nowhere")]) == 2
    assert "stock diffusers cannot load" in capsys.readouterr().err


@pytest.fixture
def halved(healthy, tmp_path):
    """The weights of `healthy` as a repository that has them in float16 alone."""
    pipeline = ConsistencyModelPipeline.from_pretrained(healthy).to(torch.float16)
    pipeline.save_pretrained(tmp_path / "halved", variant="fp16")
    (tmp_path / "halved" / "README.md").write_text(CARD)
    return tmp_path / "halved"


def test_weights_of_one_variant_alone_are_loaded_by_every_program_and_the_remedy_makes_them_plain(
    halved, healthy, tmp_path, capsys
):
    unet = load_consistency(str(halved)).unet
    stored = load_consistency(str(healthy)).unet.half().float().state_dict()
    assert all(torch.equal(p, stored[name]) for name, p in unet.state_dict().items())
    assert main.main(["sample", str(halved), "--num_samples", "2", "--output", str(tmp_path / "s.png")]) == 0
    assert main.main(["sample", str(halved), "--variant", "fp61"]) == 2
    assert "--variant may be fp16, got fp61." in capsys.readouterr().err
    code, found = diagnosis(halved, capsys, "advice")
    assert code == 0
    assert "weights are of the variant fp16 only" in found
    run_remedy(found, NEW_FOLDER=str(tmp_path / "plain"))
    capsys.readouterr()
    ConsistencyModelPipeline.from_pretrained(tmp_path / "plain")
    assert "weights are of" not in diagnosis(tmp_path / "plain", capsys, "advice")[1]


def test_a_diffusion_model_in_half_precision_is_converted(tmp_path):
    DDPMPipeline(make_unet(), DDPMScheduler()).to(torch.float16).save_pretrained(tmp_path / "ddpm", variant="fp16")
    assert main.main(["convert", str(tmp_path / "ddpm"), str(tmp_path / "start")]) == 0
    assert load_consistency(str(tmp_path / "start")).dtype == torch.float32


def test_of_several_variants_one_is_chosen_only_where_there_is_no_other(tmp_path):
    from diffusers_ict.loading import variants_of

    (tmp_path / "unet").mkdir()
    for name, known in (
        ("diffusion_pytorch_model.non_ema-00001-of-00002.safetensors", ["non_ema"]),
        ("diffusion_pytorch_model.fp16.safetensors", ["fp16", "non_ema"]),
        ("config.json", ["fp16", "non_ema"]),
        ("diffusion_pytorch_model.safetensors.index.json", ["fp16", "non_ema"]),
        ("diffusion_pytorch_model-00001-of-00002.safetensors", [None, "fp16", "non_ema"]),
    ):
        (tmp_path / "unet" / name).touch()
        assert variants_of(str(tmp_path)) == known


@pytest.mark.slow
def test_weights_of_one_variant_on_the_hub_are_loaded_too(hub, halved, tmp_path):
    hub.add_folder(NAME, halved)
    done = client(hub, tmp_path / "home", SCRIPTS / "check_repository.py", NAME)
    assert done.returncode == 0, done.stderr
    advice = f"variant='fp16'.\n       diffusers-ict convert {NAME} NEW_FOLDER\n"
    assert advice in done.stdout

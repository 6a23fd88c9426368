"""Publishing, with the real client against a Hub on this machine, each push in a process of its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, write_npz
from hub_client import NAME, SCRIPTS, TOKEN, client, push

from diffusers_ict import ConsistencyPipeline
from diffusers_ict.commands import publish as publish_command
from diffusers_ict.commands import train as train_ict
from diffusers_ict.errors import UserError
from diffusers_ict.hub import publish
from diffusers_ict.hub.publish import check_repo_id

NAMES = ["small", "middle", "large", "huge"]
HOST = "planted-host-name"
# Run by every interpreter that finds it on its path: the machine then has that name.
NAME_THE_HOST = f"""
import os, socket
kernel = os.uname()
os.uname = lambda: os.uname_result((kernel[0], "{HOST}", *kernel[2:]))
socket.gethostname = lambda: "{HOST}"
"""


def flags(base: Path) -> list[str]:
    own = ["--dataset_name", base / "data.npz", "--class_conditional", "--max_train_steps", 8, "--train_batch_size", 4]
    more = ["--ema_decays", 0.9, 0.5, "--num_validation_images", 4, "--output_dir", base / "run"]
    return [str(flag) for flag in [*own, *more]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("published")
    write_npz(base / "data.npz")
    assert train_ict.main(flags(base)) == 0
    pipeline = ConsistencyPipeline.from_pretrained(base / "run")
    pipeline.id2label = dict(enumerate(NAMES))
    pipeline.save_pretrained(base / "run")
    return base


@pytest.fixture
def folder(trained, tmp_path) -> Path:
    """A finished run whose classes have names, and its data beside it; publishing renews the card in it."""
    return shutil.copytree(trained, tmp_path / "published") / "run"


def test_push_push_again_and_private(hub, folder, tmp_path):
    done = push(hub, folder, tmp_path, "--hub_private_repo", "--license", "mit")
    assert done.returncode == 0, done.stderr
    repository = hub.repositories[NAME]
    assert repository.private
    assert len(repository.commits) == 1
    names = set(repository.files)
    assert {"README.md", "model_index.json", "labels.json", "recipe.yaml", "run.json", "training.png"} <= names
    assert b"0 `small`, 1 `middle`, 2 `large`, 3 `huge`" in repository.files["README.md"]
    assert {"unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.ema5.safetensors"} <= names
    assert not [name for name in names if "checkpoint" in name or "optimizer" in name]
    local = (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert repository.files["unet/diffusion_pytorch_model.safetensors"] == local, "large files go through LFS"
    assert any("/lfs/objects/batch" in request for request in hub.requests)

    assert push(hub, folder, tmp_path, "--license", "mit").returncode == 0
    assert len(repository.commits) == 1, "an unchanged push made a commit"


def test_a_card_edited_on_the_hub_survives_the_next_push(hub, folder, tmp_path):
    assert push(hub, folder, tmp_path).returncode == 0
    repository = hub.repositories[NAME]
    edited = repository.files["README.md"].decode().replace("## Limits", "## Limits\n\nNot for medical use.")
    repository.files["README.md"] = edited.encode()
    assert push(hub, folder, tmp_path / "elsewhere").returncode == 0
    assert b"Not for medical use." in repository.files["README.md"]


def test_a_converted_model_is_published_with_a_card_that_names_the_repository(hub, tmp_path):
    import guided_unet

    from diffusers_ict.commands import convert

    torch.save(guided_unet.make((32, 64), (False, True), 1), tmp_path / "model.pt")
    own = ["--resolution", "8", "--attention_head_dim", "8"]
    assert convert.main([str(tmp_path / "model.pt"), str(tmp_path / "model"), *own]) == 0
    done = push(hub, tmp_path / "model", tmp_path / "cache", "--license", "mit")
    assert done.returncode == 0, done.stderr
    files = hub.repositories[NAME].files
    assert b"license: mit" in files["README.md"]
    assert f'from_pretrained("{NAME}")'.encode() in files["README.md"]
    assert "conversion.json" in files
    assert b"converted from a checkpoint of openai/consistency_models" in files["README.md"]
    assert str(tmp_path).encode() not in b"".join(files.values())


@pytest.mark.slow
def test_every_program_takes_a_repository_by_its_id(hub, folder, tmp_path):
    assert push(hub, folder, tmp_path / "mine", "--license", "mit").returncode == 0
    real = ["--dataset_name", folder.parent / "data.npz"]
    short = ["--max_train_steps", 8, "--train_batch_size", 4, "--num_validation_images", 2]
    figures = ["--extractor", "pixels", "--metrics", "kid", "--num_samples", 8, "--cache_dir", tmp_path / "work"]
    start = ["--pretrained_model_name_or_path", NAME, "--class_conditional"]
    calls = [
        ["check", NAME],
        ["evaluate", NAME, *real, *figures, "--output_dir", tmp_path / "out"],
        ["convert", NAME, tmp_path / "converted"],
        ["train", *start, *real, *short, "--output_dir", tmp_path / "tuned"],
    ]
    code = "import json, sys; from diffusers_ict.commands.main import main\nfor w in json.loads(sys.argv[1]): "
    code += "assert main(w) == 0, w"
    done = client(hub, tmp_path / "cache", "-c", code, json.dumps([list(map(str, words)) for words in calls]))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ema5, steps 2: kid" in done.stdout
    assert f"base_model: {NAME}" in (tmp_path / "converted" / "README.md").read_text()
    assert str(tmp_path) not in "".join(p.read_text() for p in (tmp_path / "converted").rglob("*.json"))
    card = (tmp_path / "tuned" / "README.md").read_text()
    assert f"base_model: {NAME}" in card
    assert f"| started from | {NAME} |\n| optimizer steps" in card


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (["--hub_model_id", "some one/my digits"], "--hub_model_id must have the form user/name or organisation/name"),
        (["--hub_model_id", "my-digits"], "--hub_model_id must have the form user/name or organisation/name"),
    ],
)
def test_a_name_that_the_hub_does_not_take_is_refused_before_anything_is_sent(
    hub, folder, capsys, monkeypatch, own, message
):
    monkeypatch.setattr(publish, "renewed_card", None)  # nothing else happens before
    assert publish_command.main([str(folder), "--hub_model_id", NAME, *own]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_names_of_repositories_are_checked():
    for name in ("someone/my-digits", "Some_one/my.digits"):
        check_repo_id(name)
    for name in (None, "", "digits", "a/b/c", "someone/", "/digits", "someone/my--digits", "someone/x.git", "é/b"):
        with pytest.raises(UserError, match="`hub_model_id` must have the form user/name"):
            check_repo_id(name)


def test_a_licence_that_is_given_wins_over_the_cards_here_and_on_the_hub(hub, folder, tmp_path):
    model = shutil.copytree(folder, tmp_path / "run")
    card = model / "README.md"
    card.write_text(card.read_text().replace("library_name:", "license: cc-by-4.0\nlibrary_name:"))
    assert push(hub, model, tmp_path / "cache").returncode == 0
    repository = hub.repositories[NAME]
    assert b"license: cc-by-4.0" in repository.files["README.md"]
    done = push(hub, model, tmp_path / "cache", "--license", "mit")
    assert done.returncode == 0, done.stderr
    assert b"license: mit" in repository.files["README.md"]
    assert "license: mit" in card.read_text()
    assert len(repository.commits) == 2
    assert push(hub, model, tmp_path / "cache").returncode == 0
    assert b"license: mit" in repository.files["README.md"], "a licence that is not given changes nothing"
    assert len(repository.commits) == 2
    done = push(hub, model, tmp_path / "cache", "--license", "nonsense")
    assert done.returncode == 2
    assert 'the Hub refuses the card: - Error: "license" must be one of' in done.stderr
    assert "license: mit" in card.read_text()


def test_a_folder_without_a_run_is_refused(hub, tmp_path):
    done = push(hub, tmp_path, tmp_path)
    assert done.returncode == 2
    assert "must be the output folder of a training run or a conversion; it has no model_index.json" in done.stderr


@pytest.mark.slow
def test_training_publishes_in_the_background_and_leaks_nothing(hub, tmp_path):
    write_npz(tmp_path / "data.npz")
    own = ["--push_to_hub", "--hub_model_id", NAME, "--hub_strategy", "checkpoint", "--checkpointing_steps", 2]
    (tmp_path / "named").mkdir()
    (tmp_path / "named" / "sitecustomize.py").write_text(NAME_THE_HOST)
    named = {"PYTHONPATH": os.pathsep.join([str(tmp_path / "named"), os.environ.get("PYTHONPATH", "")])}
    shown = subprocess.run(
        [sys.executable, "-c", "import platform; print(platform.node())"],
        env={**os.environ, **named},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.strip() == HOST
    done = client(hub, tmp_path / "cache", SCRIPTS / "train_ict.py", *flags(tmp_path), *own, **named)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"Published as {NAME}." in done.stdout
    repository = hub.repositories[NAME]
    assert len(repository.commits) >= 2
    assert b"8 of 4 images" in repository.files["README.md"]
    sent = [*repository.files.values(), *hub.bodies]
    written = [p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()]
    for content in [*sent, *written]:
        for secret in (TOKEN, str(tmp_path), str(Path.home()) + "/", str(ROOT), HOST):
            assert secret.encode() not in content, secret
    assert TOKEN not in done.stdout + done.stderr


LABELS = """
import sys
from diffusers_ict import ConsistencyPipeline
for options in ({}, {"cache_dir": sys.argv[1], "revision": "main", "token": "hf_some"}, {"cache_dir": sys.argv[1]}):
    pipeline = ConsistencyPipeline.from_pretrained("someone/my-digits", **options)
    assert list(pipeline.id2label.values()) == ["small", "middle", "large", "huge"], pipeline.id2label
pipeline(1, class_labels="large")
assert ConsistencyPipeline.from_pretrained("someone/unnamed").id2label is None
import huggingface_hub.constants
huggingface_hub.constants.HF_HUB_OFFLINE = True
assert ConsistencyPipeline.from_pretrained("someone/my-digits").id2label[2] == "large"
assert ConsistencyPipeline.from_pretrained("someone/unnamed", local_files_only=True).id2label is None
"""


@pytest.mark.slow
def test_names_of_classes_are_read_from_the_hub_and_from_its_cache(hub, folder, tmp_path):
    hub.add_folder(NAME, folder)
    hub.add_folder("someone/unnamed", folder)
    del hub.repositories["someone/unnamed"].files["labels.json"]
    done = client(hub, tmp_path / "home", "-c", LABELS, tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "cache").rglob("labels.json"))

"""Publishing when the Hub fails, or the disk: one sentence, in bounded time, and the card on the Hub is not lost."""

import errno
import json
import shutil
import time
from pathlib import Path

import pytest
from conftest import make_unet
from hub_client import NAME, TOKEN, connect, push
from hub_stand_in import FAULTS, Fault, Hub, Repository

from diffusers_ict import ConsistencyPipeline, ICTScheduler
from diffusers_ict.commands import publish as publish_command
from diffusers_ict.hub import publish
from diffusers_ict.hub.card import write_card
from diffusers_ict.hub.metadata import ConversionMetadata
from diffusers_ict.hub.publish import PublishError

# huggingface_hub sends large files in a way that its transport deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A converted model, whose networks are large enough for LFS."""
    folder = tmp_path_factory.mktemp("converted") / "model"
    for variant in ("ema5", None):
        ConsistencyPipeline(make_unet().eval(), ICTScheduler()).save_pretrained(folder, variant=variant)
    facts = {"license": "mit", "shape": [1, 8, 8], "classes": None, "weights": "0", "parameters": 1, "notes": []}
    origin = {"origin": "a test", "source": "nobody/nothing", "source_on_hub": False, "second_sigma": 0.8}
    ConversionMetadata(**origin, **facts, version="0").write(folder)
    write_card(folder)
    return folder


@pytest.fixture
def folder(model, tmp_path) -> Path:
    return shutil.copytree(model, tmp_path / "model")


def one_sentence(done, message: str) -> None:
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert TOKEN not in done.stdout + done.stderr


# ---------------------------------------------------------------- every fault, in this process and without pauses


@pytest.fixture
def send(hub, folder, tmp_path, monkeypatch):
    """Publishes a folder on the stand-in."""
    import huggingface_hub.constants as constants
    import huggingface_hub.file_download as file_download
    from huggingface_hub.utils import close_session

    connect(monkeypatch, hub, tmp_path / "cache")

    def sent() -> str:
        patience = 0.05 if hub.fault is not None and hub.fault.answer == "silent" else 60.0
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", patience)
        monkeypatch.setattr(file_download, "_ETAG_RETRY_TIMEOUT", patience)
        monkeypatch.setattr(publish, "SILENCE_SECONDS", patience)
        return publish.publish(folder, NAME)

    yield sent
    close_session()


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_of_the_hub_ends_in_one_sentence_and_leaves_its_card(hub, send, fault):
    card = b"---\nlicense: mit\n---\nWritten by hand."
    hub.repositories[NAME] = Repository({"README.md": card})
    hub.fault = FAULTS[fault]
    with pytest.raises(PublishError) as caught:
        send()
    message = str(caught.value)
    assert message.startswith(f"{NAME} was not published: ")
    assert message.endswith(".")
    assert "\n" not in message
    assert TOKEN not in message
    assert len(hub.requests) < 200, "a busy loop"
    assert hub.repositories[NAME].files == {"README.md": card}, "something was committed"
    hub.fault = None
    assert send() == f"{hub.address}/{NAME}"
    assert b"Written by hand." in hub.repositories[NAME].files["README.md"]


@pytest.mark.parametrize(
    ("header", "message"),
    [("license: nonsense\n", '"license" must be one of'), ("datasets: [not a dataset]\n", "must be a list of dataset")],
)
def test_a_card_that_the_hub_refuses_is_told_before_a_repository_is_made(hub, send, folder, header, message):
    card = (folder / "README.md").read_text().replace("license: mit\n", header)
    (folder / "README.md").write_text(card)
    with pytest.raises(PublishError, match=f"the Hub refuses the card: - Error: .*{message}"):
        send()
    assert not hub.repositories


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "the token is missing or not valid"),
        (403, "may not write there"),
        (404, "no such user or organisation"),
    ],
)
def test_refusals_are_told_at_once_and_not_tried_again(hub, send, status, message):
    hub.failures = [("/api/repos/create", status)]
    with pytest.raises(PublishError, match=message):
        send()
    assert hub.requests.count("POST /api/repos/create") == 1


@pytest.mark.parametrize(("where", "status"), [("/preupload/", 503), ("/lfs/objects/batch", 429), ("/storage/", 502)])
def test_passing_failures_are_outlived_by_the_client(hub, send, where, status):
    hub.failures = [(where, status)]
    send()
    assert not hub.failures, "the failure was not met"
    assert len(hub.repositories[NAME].commits) == 1
    assert len([name for name in hub.repositories[NAME].files if name.endswith(".safetensors")]) == 2


def test_an_interrupted_upload_is_taken_up_without_sending_large_files_again(hub, send):
    def sent() -> int:
        return len([request for request in hub.requests if request.startswith("PUT /storage/")])

    hub.failures = [("/commit/", 403)]
    with pytest.raises(PublishError):
        send()
    assert (before := sent()) >= 1
    send()
    assert sent() == before


@pytest.mark.parametrize("token", ["hf_plänted", "hf_plan ted\x01", "hf_planted…"])
def test_a_token_that_cannot_be_one_is_refused_without_being_shown(hub, send, token, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PublishError, match="the token has characters that no token has") as caught:
        send()
    assert token not in str(caught.value)
    assert not hub.requests


def test_a_token_in_a_message_is_not_shown(send, monkeypatch):
    def leaking(*args, **kwargs):
        raise RuntimeError(f"header Authorization: Bearer {TOKEN}")

    monkeypatch.setattr(publish.HfApi, "create_repo", leaking)
    with pytest.raises(PublishError, match=r"Bearer \(token\)") as caught:
        send()
    assert TOKEN not in str(caught.value)


def test_a_file_that_vanishes_is_named(send, monkeypatch):
    def vanished(*args, **kwargs):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "/some/model_index.json")

    monkeypatch.setattr(publish.HfApi, "create_commit", vanished)
    with pytest.raises(PublishError, match=r": model_index\.json cannot be read or written here: No such file"):
        send()


def test_many_files_are_one_commit(hub, send, folder):
    (folder / "samples").mkdir()
    for number in range(60):
        (folder / "samples" / f"step-{number}.png").write_bytes(b"%d" % number)
    send()
    assert len(hub.repositories[NAME].commits) == 1
    assert {"samples/step-59.png", "unet/diffusion_pytorch_model.safetensors"} <= set(hub.repositories[NAME].files)


# ---------------------------------------------------------------- the program


@pytest.mark.parametrize(
    ("fault", "seconds", "message"),
    [
        (Fault("/preupload/", "silent"), 2, "took longer than 2 seconds; publish again with a larger --timeout"),
        (Fault("/xet-write-token/", 404), 60, "the Hub cannot be reached"),
    ],
    ids=["silent", "without Xet"],
)
def test_a_hub_that_does_not_go_on_is_given_up(hub, folder, tmp_path, fault, seconds, message):
    hub.fault = fault
    done = push(hub, folder, tmp_path / "cache", "--timeout", seconds, HF_HUB_DISABLE_XET="0")
    one_sentence(done, message)
    while fault.answer == "silent" and f"GONE /api/models/{NAME}/preupload/main" not in hub.requests:
        time.sleep(0.01)  # nothing is left running


@pytest.mark.parametrize("value", ["-1", "nan", "inf"])
def test_odd_bounds_are_refused(folder, capsys, value):
    assert publish_command.main([str(folder), "--hub_model_id", NAME, "--timeout", value]) == 2
    assert "--timeout must be at least 0 and finite" in capsys.readouterr().err


DAMAGE = {
    "conversion.json": [(b"{", "cannot be read as JSON"), (b"[]", "must hold a JSON object"), (b"{}", "lacks 'origin'"),
                        (b"\xff", "must be text in UTF-8")],
    "README.md": [(b"\xff", "must be text in UTF-8"), (b"---\n- a\n---\n", "must be a YAML mapping"),
                  (b"---\na: [\n---\n", "must be a YAML mapping")],
    "labels.json": [(b'{"id2label": 5}', "has other entries than it should"), (b"nothing", "cannot be read as JSON")],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "message"), [(name, *damage) for name, found in DAMAGE.items() for damage in found]
)
def test_damaged_files_of_the_folder_are_named_in_one_sentence(folder, capsys, monkeypatch, name, content, message):
    monkeypatch.setattr(publish, "_upload", None)  # nothing is sent
    (folder / name).write_bytes(content)
    assert publish_command.main([str(folder), "--hub_model_id", NAME]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_wrong_types_in_the_metadata_are_one_sentence(folder, capsys):
    entries = json.loads((folder / "conversion.json").read_text())
    for wrong in ({"parameters": "many"}, {"notes": 5, "shape": None}):
        (folder / "conversion.json").write_text(json.dumps({**entries, **wrong}))
        assert publish_command.main([str(folder), "--hub_model_id", NAME]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_hub_that_cannot_be_reached_is_told_in_one_sentence(folder, tmp_path):
    done = push(Hub(address="http://127.0.0.1:9"), folder, tmp_path)
    one_sentence(done, "the Hub cannot be reached")

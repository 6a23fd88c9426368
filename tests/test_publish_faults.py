"""Publishing when the Hub fails, or the disk: one sentence, in bounded time, and the card on the Hub is not lost."""

import errno
import json
import shutil
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
from hub_client import NAME, TOKEN, connect, push, save_converted
from hub_stand_in import FAULTS, Fault, Hub, Repository

from diffusers_ict.commands import publish as publish_command
from diffusers_ict.hub import publish
from diffusers_ict.hub.card import write_card
from diffusers_ict.hub.publish import PublishError

# huggingface_hub sends large files in a way that its transport deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = save_converted(tmp_path_factory.mktemp("converted") / "model", "ema5", None)
    write_card(folder)
    return folder


@pytest.fixture
def folder(model, tmp_path) -> Path:
    return shutil.copytree(model, tmp_path / "model")


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
        return publish.publish(folder, NAME)[0].address

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


STATUS = {401: "the token is missing or not valid", 403: "may not write there", 404: "no such user or organisation"}


@pytest.mark.parametrize("status", STATUS)
def test_refusals_are_told_at_once_and_not_tried_again(hub, send, status):
    hub.failures = [("/api/repos/create", status)]
    with pytest.raises(PublishError, match=STATUS[status]):
        send()
    assert hub.requests.count("POST /api/repos/create") == 1


@pytest.mark.parametrize("token", ["hf_plänted", "hf_plan ted\x01"])
def test_a_token_that_cannot_be_one_is_refused_without_being_shown(hub, send, token, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PublishError, match="the token has characters that no token has") as caught:
        send()
    assert token not in str(caught.value)
    assert not hub.requests


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError(f"header Authorization: Bearer {TOKEN}"), r"Bearer \(token\)"),
        (FileNotFoundError(errno.ENOENT, "Gone", "/some/unet.json"), r": unet\.json cannot be read .*: Gone"),
    ],
    ids=["token", "vanished file"],
)
def test_neither_tokens_nor_folders_are_shown(send, monkeypatch, error, message):
    monkeypatch.setattr(publish.HfApi, "create_commit", Mock(side_effect=error))
    with pytest.raises(PublishError, match=message) as caught:
        send()
    assert TOKEN not in str(caught.value)
    assert "/some/" not in str(caught.value)


@pytest.mark.parametrize(("where", "status"), [("/preupload/", 503), ("/lfs/objects/batch", 429), ("/storage/", 502)])
def test_passing_failures_are_outlived_by_the_client_and_many_files_are_one_commit(hub, send, folder, where, status):
    (folder / "samples").mkdir()
    for number in range(60):
        (folder / "samples" / f"step-{number}.png").write_bytes(b"%d" % number)
    hub.failures = [(where, status)]
    send()
    assert not hub.failures, "the failure was not met"
    assert len(hub.repositories[NAME].commits) == 1
    names = list(hub.repositories[NAME].files)
    assert sum(name.endswith(".safetensors") for name in names) == 2
    assert sum(name.startswith("samples/") for name in names) == 60


def test_an_interrupted_upload_is_taken_up_without_sending_large_files_again(hub, send):
    def sent() -> int:
        return len([request for request in hub.requests if request.startswith("PUT /storage/")])

    hub.failures = [("/commit/", 403)]
    with pytest.raises(PublishError):
        send()
    assert (before := sent()) >= 1
    send()
    assert sent() == before


SILENT, WITHOUT_XET = Fault("/preupload/", "silent"), Fault("/xet-write-token/", 404)


@pytest.mark.parametrize(
    ("fault", "flags", "message"),
    [
        (SILENT, ["--timeout", 2], "took longer than 2 seconds; publish again with a larger --timeout"),
        (WITHOUT_XET, [], "the Hub cannot be reached"),
        (None, [], "the Hub cannot be reached"),
        (None, ["--timeout", "nan"], "--timeout must be at least 0 and finite"),
    ],
    ids=["silent", "without Xet", "not there", "odd bound"],
)
def test_a_hub_that_does_not_go_on_is_given_up(hub, folder, tmp_path, fault, flags, message):
    hub.fault = fault
    there = hub if fault else Hub(address="http://127.0.0.1:9")  # where nobody listens
    done = push(there, folder, tmp_path / "cache", *flags, HF_HUB_DISABLE_XET="0")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    asked, left = f"POST /api/models/{NAME}/preupload/main", f"GONE /api/models/{NAME}/preupload/main"
    while fault is SILENT and hub.requests.count(left) < hub.requests.count(asked):
        time.sleep(0.01)  # nothing is left running


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("conversion.json", b"{", "cannot be read as JSON"),
        ("conversion.json", b"[]", "must hold a JSON object"),
        ("conversion.json", b"{}", "lacks 'origin'"),
        ("conversion.json", b"\xff", "must be text in UTF-8"),
        ("conversion.json", {"parameters": "many"}, "has other entries than it should"),
        ("README.md", b"\xff", "must be text in UTF-8"),
        ("README.md", b"---\n- a\n---\n", "must be a YAML mapping"),
        ("README.md", b"---\na: [\n---\n", "must be a YAML mapping"),
        ("labels.json", b'{"id2label": 5}', "has other entries than it should"),
        ("labels.json", b"nothing", "cannot be read as JSON"),
    ],
)
def test_damaged_files_of_the_folder_are_named_in_one_sentence(folder, capsys, monkeypatch, name, content, message):
    monkeypatch.setattr(publish, "_upload", None)  # nothing is sent
    if isinstance(content, dict):  # entries of other types
        content = json.dumps({**json.loads((folder / name).read_text()), **content}).encode()
    (folder / name).write_bytes(content)
    assert publish_command.main([str(folder), "--hub_model_id", NAME]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1

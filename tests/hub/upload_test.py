"""Uploads by the real client to a server on this machine."""

import hub_server
import huggingface_hub
import pytest

from dinov2_jax import errors
from dinov2_jax.hub import upload
from dinov2_jax.weights import hub_repository


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_server.serve() as (hub, endpoint):
        hub_server.use(monkeypatch, tmp_path / "cache", endpoint=endpoint)
        yield hub


def make_folder(path, *names):
    for name in ("README.md", "model.safetensors", *names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(f"content of {name}".encode())
    return path


def push(path, address="hf:org/name", private=False):
    return upload.upload(
        huggingface_hub, path, hub_repository.parse(address), private=private
    )


def test_all_files_arrive_in_one_commit_and_are_found_again(hub, tmp_path):
    folder = make_folder(tmp_path / "a", "native/model.json", "native/weights/d/1")
    where = push(folder)
    assert where.endswith(f"/commit/{hub.repositories['org/name']['branches']['main']}")
    assert hub.files("org/name") == {
        ".gitattributes": b"",
        **{
            name: f"content of {name}".encode()
            for name in (
                *("README.md", "model.safetensors"),
                *("native/model.json", "native/weights/d/1"),
            )
        },
    }
    assert sum("/commit/" in line for line in hub.requests) == 1
    found = hub_repository.find("hf:org/name", heads=True)
    assert (found / "weights/d/1").read_text() == "content of native/weights/d/1"


def test_a_second_push_removes_what_the_first_left(hub, tmp_path):
    hub.add("org/name", {"notes.txt": b"", "native/model.json": b"", "a.bin": b""})
    push(make_folder(tmp_path / "a"))
    assert hub.files("org/name").keys() == {
        *("notes.txt", "a.bin", "README.md", "model.safetensors")
    }


def test_a_branch(hub, tmp_path):
    push(make_folder(tmp_path / "a"), "hf:org/name@v2")
    assert "README.md" not in hub.files("org/name")
    assert "README.md" in hub.files("org/name", "v2")


def test_private(hub, tmp_path):
    folder = make_folder(tmp_path / "a")
    push(folder, "hf:org/hidden", private=True)
    assert hub.repositories["org/hidden"]["private"]
    hub.add("org/name", {})
    with pytest.raises(errors.UserError, match="exists and is public, so nothing"):
        push(folder, private=True)
    assert hub.files("org/name") == {}


def test_a_token_that_is_not_accepted(hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(errors.UserError) as caught:
        push(make_folder(tmp_path / "a"))
    assert "cannot upload to hf:org/name (" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not hub.repositories


def test_what_is_missing_is_said_before_the_work(monkeypatch, tmp_path):
    hub_server.use(monkeypatch, tmp_path, token="")
    with pytest.raises(errors.UserError, match="no token .* `hf auth login`"):
        upload.check_login(huggingface_hub)
    hub_server.use(monkeypatch, tmp_path, offline=True)
    with pytest.raises(errors.UserError, match="HF_HUB_OFFLINE is set"):
        upload.check_login(huggingface_hub)
    hub_server.use(monkeypatch, tmp_path)
    upload.check_login(huggingface_hub)

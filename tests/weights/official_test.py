"""Released backbones by name: addresses, cache, download from a real server."""

import functools
import http.server
import pathlib
import socket
import threading
import urllib.request

import pytest
import random_weights
from peers import torch

from dinov2_jax import errors
from dinov2_jax.weights import official, reading


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("DINOV2_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on this machine in the place of the official one."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{running.server_port}"
        monkeypatch.setattr(official, "_BASE_URL", address)
        yield folder
        running.shutdown()


def put(folder: pathlib.Path, name: str, content: bytes) -> None:
    path = folder / "/".join(official.url(name).rsplit("/", 2)[1:])
    path.parent.mkdir(parents=True)
    path.write_bytes(content)


def test_addresses_are_the_published():
    base = "https://dl.fbaipublicfiles.com/dinov2"
    assert official.url("dinov2_vits14") == (
        f"{base}/dinov2_vits14/dinov2_vits14_pretrain.pth"
    )
    assert official.url("dinov2_vitg14_reg") == (
        f"{base}/dinov2_vitg14/dinov2_vitg14_reg4_pretrain.pth"
    )
    assert len(official.NAMES) == 8


def test_the_folder_of_torch(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCH_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    address = official.url("dinov2_vits14")
    path = tmp_path / "xdg/torch/hub/checkpoints" / address.rpartition("/")[2]
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    assert official.cached(address) == path
    assert pathlib.Path(torch.hub.get_dir()) == path.parents[1]


def test_download_then_cache(server, caches):
    weights = random_weights.tensors(random_weights.shapes("dinov2_vits14_reg4"))
    file = caches / "made.pth"
    torch.save({k: torch.from_numpy(v) for k, v in weights.items()}, file)
    put(server, "dinov2_vits14_reg", file.read_bytes())
    found = reading.read("dinov2_vits14_reg")
    assert found.module.config == official.config("dinov2_vits14_reg")
    kept = caches / "cache" / "dinov2_vits14_reg4_pretrain.pth"
    assert [p.name for p in kept.parent.iterdir()] == [kept.name]
    assert kept.read_bytes() == file.read_bytes()
    for path in server.rglob("*.pth"):
        path.unlink()
    assert official.find("dinov2_vits14_reg") == kept  # no address is asked again


def test_where_torch_hub_keeps_its_files(caches):
    path = caches / "torch/hub/checkpoints/dinov2_vitb14_pretrain.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    assert official.find("dinov2_vitb14") == path


def test_the_file_of_another_model_is_refused(caches):
    weights = random_weights.tensors(random_weights.shapes("dinov2_vits14"))
    path = caches / "cache/dinov2_vits14_reg4_pretrain.pth"
    path.parent.mkdir()
    torch.save({k: torch.from_numpy(v) for k, v in weights.items()}, path)
    with pytest.raises(errors.UserError) as caught:
        reading.read("dinov2_vits14_reg")
    assert "it has 0 register tokens, not 4" in str(caught.value)


def test_a_damaged_download_is_not_kept(server, caches):
    weights = random_weights.tensors(random_weights.small_shapes("vits14"))
    file = caches / "made.pth"
    torch.save({k: torch.from_numpy(v) for k, v in weights.items()}, file)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    put(server, "dinov2_vits14", bytes(content))
    with pytest.raises(errors.UserError) as caught:
        official.find("dinov2_vits14")
    assert "CRC-32" in str(caught.value) and "put it at" in str(caught.value)
    assert not list((caches / "cache").iterdir())


def test_no_network_says_where_to_put_the_file(caches, monkeypatch):
    monkeypatch.setattr(official, "_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(errors.UserError) as caught:
        official.find("dinov2_vitl14")
    message = str(caught.value)
    assert "cannot download http://127.0.0.1:9/dinov2_vitl14/" in message
    assert str(caches / "cache/dinov2_vitl14_pretrain.pth") in message
    assert "\n" not in message


@pytest.mark.parametrize("closes", [True, False])
def test_a_server_that_closes_or_stalls_before_its_headers(caches, monkeypatch, closes):
    urlopen = urllib.request.urlopen
    monkeypatch.setattr(
        urllib.request, "urlopen", lambda address, timeout: urlopen(address, timeout=1)
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        monkeypatch.setattr(official, "_BASE_URL", f"http://127.0.0.1:{port}")

        def accept():
            connection, _ = listening.accept()
            connection.recv(2**16)
            if not closes:
                connection.recv(1)  # returns when the client has given up
            connection.close()

        thread = threading.Thread(target=accept)
        thread.start()
        with pytest.raises(errors.UserError, match="cannot download .*put it at"):
            official.find("dinov2_vits14")
        thread.join()


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(errors.UserError) as caught:
        reading.read("dinov2_vitb14_regs")
    assert "did you mean dinov2_vitb14_reg?" in str(caught.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("missing.pth", "there is no file or folder missing.pth"),
        ("facebook/dinov2-small", ": hf:facebook/dinov2-small is the one"),
    ],
)
def test_missing_paths(source, words):
    with pytest.raises(errors.UserError) as caught:
        reading.read(source)
    assert words in str(caught.value)

"""Files of onnxruntime-web: from where they are taken, and that others are refused."""

import base64
import hashlib
import http.server
import io
import tarfile
import threading

import pytest

from dinov2_jax import errors
from dinov2_jax.export_page import runtime_files

CONTENT = {name: f"content of {name}".encode() for name in runtime_files.FILES}
LOCATION = f"/{runtime_files.NAME}/-/{runtime_files.TARBALL}"


def integrity(data):
    return f"sha512-{base64.b64encode(hashlib.sha512(data).digest()).decode()}"


def tarball(content):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, data in {"README.md": b"", **content}.items():
            folder = "package/dist/" if name in content else "package/"
            entry = tarfile.TarInfo(folder + name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return file.getvalue()


PACKAGE = tarball(CONTENT)
CUT = PACKAGE[:50]


@pytest.fixture(autouse=True)
def small_package(monkeypatch, tmp_path):
    """A small package in place of the real one, an empty cache, and no registry."""
    monkeypatch.setattr(runtime_files, "_INTEGRITY", integrity(PACKAGE))
    digests = {name: integrity(data) for name, data in CONTENT.items()}
    monkeypatch.setattr(runtime_files, "FILES", digests)
    monkeypatch.setenv("DINOV2_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:1/")


@pytest.fixture
def registry(monkeypatch):
    """Requests to a registry, and what it answers with: ([paths], {path: content})."""
    requests, answers = [], {LOCATION: PACKAGE}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            content = answers.get(self.path)
            self.send_response(404 if content is None else 200)
            if content == CUT:
                self.send_header("Content-Length", str(len(PACKAGE)))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(
            target=server.serve_forever, kwargs=dict(poll_interval=0.01)
        )
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("npm_config_registry", address)
        yield requests, answers
        server.shutdown()
        thread.join()


def test_the_package_is_downloaded_once(registry, tmp_path):
    requests, _ = registry
    assert runtime_files.read() == CONTENT
    assert runtime_files.read() == CONTENT
    assert requests == [LOCATION]
    cached = tmp_path / "cache" / runtime_files.TARBALL
    cached.write_bytes(PACKAGE[:-1])  # damaged: fetched again
    assert runtime_files.read() == CONTENT
    assert requests == [LOCATION] * 2 and cached.read_bytes() == PACKAGE


def test_another_package_from_the_registry_is_not_kept(registry, tmp_path):
    _, answers = registry
    answers[LOCATION] = tarball(CONTENT | {"ort.wasm.min.mjs": b"evil"})
    with pytest.raises(errors.UserError, match="SHA-512 differs.*npm pack"):
        runtime_files.read()
    assert not any((tmp_path / "cache").iterdir())


def test_a_download_that_breaks_off(registry, tmp_path):
    registry[1][LOCATION] = CUT
    words = f"50 of {len(PACKAGE)} bytes received|IncompleteRead"
    with pytest.raises(errors.UserError, match=f"cannot download.*({words}).*npm pack"):
        runtime_files.read()
    assert not any((tmp_path / "cache").iterdir())


def test_a_registry_that_does_not_answer():
    with pytest.raises(errors.UserError, match="cannot download.*--runtime"):
        runtime_files.read()


def test_a_registry_without_the_package(registry):
    registry[1].clear()
    with pytest.raises(errors.UserError, match="404|Not Found"):
        runtime_files.read()


def test_a_registry_that_is_no_address(monkeypatch):
    monkeypatch.setenv("npm_config_registry", "file:///etc")
    with pytest.raises(errors.UserError, match="npm_config_registry"):
        runtime_files.read()


def test_a_tarball_needs_no_network(tmp_path):
    path = tmp_path / "package.tgz"
    path.write_bytes(PACKAGE)
    assert runtime_files.read(path) == CONTENT
    path.write_bytes(tarball(CONTENT | {"ort.wasm.min.mjs": b"evil"}))
    with pytest.raises(errors.UserError, match="is not the tarball.*npm pack"):
        runtime_files.read(path)


@pytest.mark.parametrize("inside", [".", "dist", "package/dist"])
def test_an_unpacked_package_needs_no_network(tmp_path, inside):
    folder = tmp_path / "unpacked"
    (folder / inside).mkdir(parents=True)
    for name, data in CONTENT.items():
        (folder / inside / name).write_bytes(data)
    assert runtime_files.read(folder) == CONTENT
    wasm = folder / inside / "ort-wasm-simd-threaded.wasm"
    wasm.write_bytes(b"evil")
    with pytest.raises(
        errors.UserError, match="wasm is not the file of onnxruntime-web"
    ):
        runtime_files.read(folder)
    wasm.unlink()
    with pytest.raises(errors.UserError, match="has no ort-wasm-simd-threaded.wasm"):
        runtime_files.read(folder)


def test_a_path_that_is_missing(tmp_path):
    with pytest.raises(errors.UserError, match="nowhere does not exist.*npm pack"):
        runtime_files.read(tmp_path / "nowhere")

"""Files of onnxruntime-web that a page needs: fetched once, pinned and verified.

The package is taken from the npm registry, which npm's own variable
`npm_config_registry` replaces, and kept in the cache. Wherever a file comes from, it is
used only if its SHA-512 is the one recorded here.
"""

import base64
import hashlib
import http.client
import os
import pathlib
import tarfile
import urllib.request
from typing import Any, BinaryIO

from dinov2_jax import errors, files, progress_bar

NAME, VERSION = "onnxruntime-web", "1.30.0"
TARBALL = f"{NAME}-{VERSION}.tgz"
_REGISTRY = "https://registry.npmjs.org"
_INTEGRITY = (
    "sha512-"
    "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfK"
    "YQ=="
)
FILES = {
    "ort.wasm.min.mjs": (
        "sha512-"
        "AnefQglyknuf4QnoyL8HFb54s1grWx7q6F6v2UZRr7RxVbsJeXd/k6siiXj1mlkQmpyHEnDIBJzx1Bta"
        "3J3ZCg=="
    ),
    "ort-wasm-simd-threaded.mjs": (
        "sha512-"
        "IboQh0Pwb+2CvUlaEljlBVLJWlFfGUCxCquU6kjywgW+qj9+DZtJYSU9pueGY4A4vT2W5rQ8Zt4CNNID"
        "L8Kf1g=="
    ),
    "ort-wasm-simd-threaded.wasm": (
        "sha512-"
        "Gt7e1iIDIZ/PXEhM/OVleqWHVom0kEI/hs8cod0crXcV9jDGM39B23HuQnlOOgDOC3x4k5pxIgtdgzaL"
        "9up3MA=="
    ),
}
_IN_PACKAGE = "package/dist"
_FOLDERS = (".", "dist", _IN_PACKAGE)  # where an unpacked package has the files
_ELSEWHERE = (
    f"where there is a network, run npm pack {NAME}@{VERSION}, and pass the file that "
    "it writes as --runtime"
)


def read(given: pathlib.Path | None = None) -> dict[str, bytes]:
    """Return the content of each of `FILES`.

    Args:
      given: An unpacked package or its tarball; None takes it from the cache, or
        downloads it.

    Raises:
      UserError: There is no such package, or it is another than the recorded one.
    """
    if given is None:
        return _from_tarball(_cached())
    if given.is_dir():
        return _from_folder(given)
    if not given.is_file():
        raise errors.UserError(f"--runtime={given} does not exist: {_ELSEWHERE}")
    with open(given, "rb") as file:
        if _integrity(file) != _INTEGRITY:
            raise errors.UserError(
                f"--runtime={given} is not the tarball of {NAME} {VERSION} (its "
                f"SHA-512 differs): {_ELSEWHERE}"
            )
    return _from_tarball(given)


def _from_folder(folder: pathlib.Path) -> dict[str, bytes]:
    inner = next(
        (folder / f for f in _FOLDERS if (folder / f / min(FILES)).is_file()), ""
    )
    found = {}
    for name, integrity in FILES.items():
        path = pathlib.Path(inner or folder, name)
        if not path.is_file():
            raise errors.UserError(
                f"--runtime={folder} has no {name}: pass the folder of {NAME} "
                f"{VERSION}, or {_ELSEWHERE}"
            )
        with open(path, "rb") as file:
            if _integrity(file) != integrity:
                raise errors.UserError(
                    f"{path} is not the file of {NAME} {VERSION} (its SHA-512 "
                    f"differs): {_ELSEWHERE}"
                )
        found[name] = path.read_bytes()
    return found


def _from_tarball(path: pathlib.Path) -> dict[str, bytes]:
    """Read single files of a verified tarball; nothing is unpacked to a disk."""
    with tarfile.open(path, "r:gz") as archive:
        return {
            name: archive.extractfile(f"{_IN_PACKAGE}/{name}").read() for name in FILES
        }


def _cached() -> pathlib.Path:
    """Return the tarball in the cache; download it if it is missing or damaged."""
    path = files.cache_folder() / TARBALL
    if path.is_file():
        with open(path, "rb") as file:
            if _integrity(file) == _INTEGRITY:
                return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.UserError(
            f"cannot make the cache {path.parent} ({error.strerror}): set "
            "DINOV2_JAX_CACHE"
        ) from error
    _download(path)
    return path


def _download(path: pathlib.Path) -> None:
    registry = os.environ.get("npm_config_registry") or _REGISTRY
    if not registry.startswith(("https://", "http://")):
        raise errors.UserError(
            "npm_config_registry is no address of a registry: it begins with https://"
        )
    address = f"{registry.rstrip('/')}/{NAME}/-/{TARBALL}"
    digest = hashlib.sha512()
    try:
        with (
            urllib.request.urlopen(address, timeout=30) as response,
            files.open_new(path) as file,
        ):
            size = int(response.headers.get("Content-Length") or 0)
            with progress_bar.Bar(
                size or None, what=TARBALL, unit="B", scaled=True
            ) as bar:
                while chunk := _read(response):
                    digest.update(chunk)
                    file.write(chunk)
                    bar.update(len(chunk))
            if size and file.tell() != size:
                raise _failed(f"{file.tell()} of {size} bytes received")
            if _encoded(digest) != _INTEGRITY:  # `open_new` keeps nothing then
                raise errors.UserError(
                    f"the npm registry sent another {TARBALL} than the recorded one "
                    f"(its SHA-512 differs), so nothing was kept: {_ELSEWHERE}"
                )
    except (OSError, http.client.HTTPException) as error:
        raise _failed(getattr(error, "reason", None) or error) from error


def _read(response: Any) -> bytes:
    try:
        return response.read(1 << 20)
    except (OSError, http.client.HTTPException) as error:
        raise _failed(error) from error


def _failed(reason: Any) -> errors.UserError:
    return errors.UserError(
        f"cannot download {TARBALL} from the npm registry ({reason}): {_ELSEWHERE}"
    )


def _integrity(file: BinaryIO) -> str:
    return _encoded(hashlib.file_digest(file, "sha512"))


def _encoded(digest: "hashlib._Hash") -> str:
    """Return a digest as npm writes it."""
    return f"sha512-{base64.b64encode(digest.digest()).decode()}"

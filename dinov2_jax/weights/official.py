"""Released backbones by name: their URLs and a local cache.

The publisher gives no hashes. A download is checked by the CRC-32 of every entry of its
archive and, like any other file, tensor by tensor against the architecture. pooch is
not used: it moves a file into place before such a check, and does not resume either.
"""

import difflib
import http.client
import os
import pathlib
import urllib.request
import zipfile
from typing import Any

from dinov2_jax import errors, files, progress_bar
from dinov2_jax.models import model_config

_BASE_URL = "https://dl.fbaipublicfiles.com/dinov2"
_ARCHS = {
    "vits14": "vit_small",
    "vitb14": "vit_base",
    "vitl14": "vit_large",
    "vitg14": "vit_giant2",
}
NAMES = tuple(f"dinov2_{arch}{reg}" for arch in _ARCHS for reg in ("", "_reg"))


def url(name: str) -> str:
    """Return the official URL of a released backbone."""
    backbone = name.removesuffix("_reg")
    registers = "_reg4" if name.endswith("_reg") else ""
    return f"{_BASE_URL}/{backbone}/{backbone}{registers}_pretrain.pth"


def config(name: str) -> model_config.ModelConfig:
    """Return the architecture of a released backbone."""
    arch = name.removeprefix("dinov2_").removesuffix("_reg")
    return model_config.released(_ARCHS[arch], registers=name.endswith("_reg"))


def find(name: str) -> pathlib.Path:
    """Return the local file of a released backbone; download it if missing.

    Looks in $DINOV2_JAX_CACHE (default ~/.cache/dinov2_jax), then in torch.hub's
    download folder.

    Raises:
      UserError: The name is unknown, or the download failed; the message says where to
        put the file.
    """
    if name not in NAMES:
        close = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise errors.UserError(
            f"there is no file or folder {name} in {os.getcwd()}, and no released "
            f"backbone of that name: {hint}the names are {', '.join(NAMES)}"
        )
    return cached(url(name))


def cached(address: str) -> pathlib.Path:
    """Return the local file of an official address; download it if missing.

    Raises:
      UserError: The download failed; the message says where to put the file.
    """
    cache = files.cache_folder()
    for folder in (cache, _torch_home() / "hub/checkpoints"):
        path = folder / address.rpartition("/")[2]
        if path.is_file():
            return path
    path = cache / address.rpartition("/")[2]
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.UserError(
            f"cannot make the cache {cache} ({error.strerror}): set DINOV2_JAX_CACHE"
        ) from error
    _download(address, path)
    return path


def _torch_home() -> pathlib.Path:
    """Return the folder of torch's downloads, chosen as torch does."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(os.environ.get("TORCH_HOME") or pathlib.Path(caches) / "torch")


def _download(address: str, path: pathlib.Path) -> None:
    try:
        with _open(address, path) as response, files.open_new(path) as file:
            size = int(response.headers.get("Content-Length") or 0)
            with progress_bar.Bar(
                size or None, what=path.name, unit="B", scaled=True
            ) as bar:
                while chunk := _read(response, address, path):
                    file.write(chunk)
                    bar.update(len(chunk))
            if size and file.tell() != size:
                raise _failed(f"{file.tell()} of {size} bytes received", address, path)
            file.flush()
            broken = zipfile.ZipFile(file.name).testzip()
            if broken:
                raise _failed(f"the CRC-32 of {broken} is wrong", address, path)
    except zipfile.BadZipFile as error:
        raise _failed(error, address, path) from error


def _open(address: str, path: pathlib.Path) -> Any:
    try:
        return urllib.request.urlopen(address, timeout=30)
    # A URLError, or what a server gives that closes or stalls before its headers.
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise _failed(reason, address, path) from error


def _read(response: Any, address: str, path: pathlib.Path) -> bytes:
    try:
        return response.read(1 << 20)
    except (OSError, http.client.HTTPException) as error:
        raise _failed(error, address, path) from error


def _failed(reason: Any, address: str, path: pathlib.Path) -> errors.UserError:
    return errors.UserError(
        f"cannot download {address} ({reason}): download it on a machine with network "
        f"access and put it at {path}"
    )

"""Repositories of the Hugging Face hub as sources of weights: hf:ORG/NAME[@REVISION].

Only the files that readers of folders use are downloaded, into the cache of
huggingface-hub, and never pickles.
"""

import dataclasses
import logging
import os
import pathlib
import re
from typing import Any

from dinov2_jax import errors

PREFIX = "hf:"
NATIVE = "native"  # folder with backbone and heads, an export of this project
_ADDRESS = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
FILES = (  # that are downloaded
    *("config.json", "preprocessor_config.json", "conversion.json"),
    *("model*.safetensors", "model.safetensors.index.json"),
    *("model.json", "weights/*"),  # an export of this project
)
_PICKLES = ("*.bin", "*.ckpt", "*.pickle", "*.pkl", "*.pt", "*.pth")


@dataclasses.dataclass(frozen=True)
class Repository:
    """A repository of the hub.

    Attributes:
      name: Its name, "ORG/NAME".
      revision: Branch, tag or commit; None for the main branch.
    """

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{PREFIX}{self.name}" + (f"@{self.revision}" if self.revision else "")


def is_address(source: str | os.PathLike) -> bool:
    """Return whether a source of weights is meant to be on the hub."""
    return os.fspath(source).startswith(PREFIX)


def parse(address: str | os.PathLike) -> Repository:
    """Return the repository that an address names.

    Raises:
      UserError: It is not hf:ORG/NAME or hf:ORG/NAME@REVISION.
    """
    match = _ADDRESS.fullmatch(os.fspath(address))
    if match is None:
        raise errors.UserError(
            f"{os.fspath(address)}: write a repository of the Hugging Face hub as "
            "hf:ORG/NAME or hf:ORG/NAME@REVISION, such as hf:facebook/dinov2-small"
        )
    return Repository(*match.groups())


def find(address: str | os.PathLike, *, heads: bool = False) -> pathlib.Path:
    """Return the local folder of a repository; download what it lacks.

    Args:
      address: hf:ORG/NAME or hf:ORG/NAME@REVISION.
      heads: Whether the projection heads are needed too: then it is the folder with
        them inside the repository, if there is one.

    Raises:
      UserError: huggingface-hub is not installed, there is no such repository, it
        cannot be reached, or it has no weights that are read.
    """
    repository = parse(address)
    client = import_client(str(repository))
    patterns = [*FILES, f"{NATIVE}/*"] if heads else list(FILES)
    try:
        folder = pathlib.Path(
            client.snapshot_download(
                repository.name,
                revision=repository.revision,
                allow_patterns=patterns,
                ignore_patterns=list(_PICKLES),
            )
        )
    except client.errors.GatedRepoError as error:
        raise errors.UserError(
            f"{repository} asks for consent: give it at {_page(client, repository)}, "
            "then log in with `hf auth login`"
        ) from error
    except client.errors.RepositoryNotFoundError as error:
        raise errors.UserError(
            f"{repository}: there is no such repository, or it is private: check the "
            "name, or log in with `hf auth login`"
        ) from error
    except client.errors.RevisionNotFoundError as error:
        raise errors.UserError(
            f"{repository}: the repository has no revision {repository.revision}: name "
            f"one of {_page(client, repository)}/commits"
        ) from error
    except Exception as error:  # the client, its HTTP library and the disk raise many
        raise _unreachable(client, repository, error) from error
    if heads and (folder / NATIVE / "model.json").is_file():
        folder = folder / NATIVE
    elif not (folder / "model.json").is_file() and not any(
        folder.glob("model*.safetensors")
    ):
        raise errors.UserError(
            f"{repository} has no model.safetensors, and pickles are not fetched: "
            "download its weights yourself and pass their file"
        )
    logging.info("%s is read from %s", repository, folder)
    return folder


def import_client(what: str) -> Any:
    """Return the package huggingface_hub.

    Args:
      what: What needs it, for the error.

    Raises:
      UserError: It is not installed.
    """
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        raise errors.UserError(
            f"{what} needs: pip install 'dinov2-jax[hub]' ({error})"
        ) from error
    return huggingface_hub


def _page(client: Any, repository: Repository) -> str:
    return f"{client.constants.ENDPOINT}/{repository.name}"


def _unreachable(
    client: Any, repository: Repository, error: Exception
) -> errors.UserError:
    """Return the error for a repository that is neither reached nor cached."""
    reason = " ".join(str(error.__cause__ or error).split())[:200]
    if client.constants.HF_HUB_OFFLINE:
        reason = "HF_HUB_OFFLINE is set"
    cached = pathlib.Path(client.constants.HF_HUB_CACHE) / (
        f"models--{repository.name.replace('/', '--')}"
    )
    return errors.UserError(
        f"cannot download {repository} ({reason}), and {cached} has no such snapshot: "
        f"on a machine with network access `hf download {repository.name}` and copy "
        f"that folder here, or download {_page(client, repository)} into a folder of "
        "your own and pass that folder"
    )

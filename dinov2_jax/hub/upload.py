"""Upload of a finished folder to a repository of the Hugging Face hub."""

import fnmatch
import pathlib
from typing import Any

from dinov2_jax import errors
from dinov2_jax.hub import card, folder
from dinov2_jax.weights import hub_repository

# What an earlier push may have left, of other weights.
_OURS = (
    *hub_repository.FILES,
    *(f"{hub_repository.NATIVE}/*", f"{folder.EVALUATIONS}/*", card.TRAINING_CONFIG),
)


def check_login(client: Any) -> None:
    """Check what an upload needs before the work for it begins.

    Args:
      client: The package huggingface_hub.

    Raises:
      UserError: There is no token, or network access is forbidden.
    """
    if client.constants.HF_HUB_OFFLINE:
        raise errors.UserError(
            "HF_HUB_OFFLINE is set: unset it, or write the folder alone with --out"
        )
    if not client.get_token():
        raise errors.UserError(
            "there is no token of the Hugging Face hub: log in with `hf auth login` or "
            "set HF_TOKEN; --out writes the folder without one"
        )


def upload(
    client: Any,
    path: pathlib.Path,
    repository: hub_repository.Repository,
    *,
    private: bool,
) -> str:
    """Upload a folder in one commit, and return the commit's address.

    The repository is made if it is missing. Files of an earlier push that the folder
    does not have are removed from it in the same commit.

    Args:
      client: The package huggingface_hub.
      path: The folder.
      repository: The repository, and the branch if it is not the main one.
      private: Whether the repository must be private.

    Raises:
      UserError: The hub refuses, or it cannot be reached.
    """
    api, name, revision = client.HfApi(), repository.name, repository.revision
    files = sorted(p for p in path.rglob("*") if p.is_file())
    names = [p.relative_to(path).as_posix() for p in files]
    try:
        api.create_repo(name, private=private or None, exist_ok=True)
        if private and not api.model_info(name).private:
            raise errors.UserError(
                f"{name} exists and is public, so nothing was uploaded: make it "
                "private in its settings, or leave out --private"
            )
        if revision:
            api.create_branch(name, branch=revision, exist_ok=True)
        stale = [
            old
            for old in api.list_repo_files(name, revision=revision)
            if old not in names and any(fnmatch.fnmatch(old, p) for p in _OURS)
        ]
        operations = [
            *(client.CommitOperationDelete(old) for old in stale),
            *(client.CommitOperationAdd(n, p) for n, p in zip(names, files)),
        ]
        commit = api.create_commit(
            name, operations, commit_message="Push from dinov2_jax", revision=revision
        )
    except errors.UserError:
        raise
    except Exception as error:  # the client and its HTTP library raise many kinds
        reason = " ".join(str(error).split())[:300]
        raise errors.UserError(
            f"cannot upload to {repository} ({reason}): check that the token may write "
            "there (`hf auth whoami`), then repeat the command; the files appear "
            "together or not at all"
        ) from error
    return commit.commit_url

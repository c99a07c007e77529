"""The weights that weights come from, and the licences of those that are known."""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Iterator

from dinov2_jax import errors
from dinov2_jax.hub import run_record
from dinov2_jax.weights import hub_repository, official
from dinov2_jax.weights import report as report_lib

CONTINUES = "continue from"  # the relation to weights that training started from
RELEASED_LICENSE = "apache-2.0"  # of the released backbones
_SIZES = {"vits14": "small", "vitb14": "base", "vitl14": "large", "vitg14": "giant"}


@dataclasses.dataclass(frozen=True)
class Ancestor:
    """A source that weights come from.

    Attributes:
      relation: How, as a verb: "continue from", "were distilled from", ...
      source: The source, as the run or the conversion named it.
      child: What came from it; "" for the weights themselves.
      released: Name of the released backbone that it is; "" if it is none.
      is_run: Whether it is a run of this project that was found.
    """

    relation: str
    source: str
    child: str
    released: str
    is_run: bool = False


def trace(source: str | os.PathLike) -> list[Ancestor]:
    """Return everything that a source came from, as far as files here tell.

    A run that is damaged or has no checkpoints any more is not followed.
    """
    source = os.fspath(source)
    return list(_trace(source, _find_run(source), "", set()))


def _find_run(source: str) -> run_record.Run | None:
    try:
        return run_record.find(source)
    except errors.UserError as error:
        logging.warning("what %s came from is not traced: %s", source, error)
        return None


def _trace(
    source: str, run: run_record.Run | None, child: str, seen: set[str]
) -> Iterator[Ancestor]:
    if source in seen or released_name(source):
        return
    seen.add(source)
    for relation, parent in _parents(source, run):
        parent_run = _find_run(parent)
        is_run = parent_run is not None
        yield Ancestor(relation, parent, child, released_name(parent), is_run)
        yield from _trace(parent, parent_run, parent, seen)


def _parents(source: str, run: run_record.Run | None) -> Iterator[tuple[str, str]]:
    if run is None:
        path = report_lib.path_of(pathlib.Path(os.path.expanduser(source)))
        origin = run_record.read_json(path).get("source")
        if isinstance(origin, str):
            yield "were converted from", origin
        return
    if run.config.get("init.source"):
        yield CONTINUES, run.config["init.source"]
    teacher = run.teacher.get("source") or run.config.get("distill.source")
    if teacher:
        yield "were distilled from", teacher
    if run.config.get("gram.loss_weight") and run.config.get("gram.source"):
        yield "were held near the Gram matrices of", run.config["gram.source"]


def released_name(source: str | os.PathLike) -> str:
    """Return the name of the released backbone that a source is; "" if it is none.

    It is one by its name, by the name of its file, or as the publisher's repository on
    the hub. A folder, such as a run's, is none whatever its name.
    """
    text = os.fspath(source)
    if hub_repository.is_address(text):
        repository = hub_repository.parse(text)
        return {hub_name(name): name for name in official.NAMES}.get(
            repository.name, ""
        )
    path = pathlib.Path(os.path.expanduser(text))
    if path.is_dir():
        return ""
    files = {official.url(name).rpartition("/")[2]: name for name in official.NAMES}
    return text if text in official.NAMES else files.get(path.name, "")


def hub_name(released: str) -> str:
    """Return the publisher's repository on the hub of a released backbone."""
    size = released.removeprefix("dinov2_").removesuffix("_reg")
    registers = "with-registers-" if released.endswith("_reg") else ""
    return f"facebook/dinov2-{registers}{_SIZES[size]}"

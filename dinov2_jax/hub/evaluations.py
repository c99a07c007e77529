"""Results of evaluations for a model card, each with its protocol."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from dinov2_jax import errors
from dinov2_jax.hub import run_record

_FILE = "results.json"  # as `evaluate` writes it
# What a card says once for all results, or what is only of interest where they were
# computed.
_ELSEWHERE = ("weights", "digest", "backbone", "versions", "devices")
_PROTOCOLS = {
    "reference": "the reference's",
    "paper": "the paper's",
    "ours": "the reference's, changed",
}
_UNMEASURED = ("every", "batch_size", "picture_size")  # fields that change no number
_BASELINES = ("_random_init", "_pixels", "_pixels_mean_removed", "_color_histogram")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The numbers of an evaluation, and what they stand for.

    Attributes:
      task: Name of the task.
      protocol: Whose protocol, and what differs from it.
      settings: The protocol's settings, {name: value}.
      numbers: {name: value}; None for a value that is not finite.
      notes: Caveats.
      content: The whole results.json; {} for an evaluation during training.
    """

    task: str
    protocol: str
    settings: dict[str, Any]
    numbers: dict[str, float | None]
    notes: Sequence[str] = ()
    content: dict[str, Any] = dataclasses.field(default_factory=dict)


def given(paths: Sequence[pathlib.Path], digest: str) -> list[Evaluation]:
    """Read results that the user names.

    Args:
      paths: Files results.json, or folders with one.
      digest: SHA-256 of the weights, `embed.extraction.digest`.

    Raises:
      UserError: A file is missing, is no result, or is one of other weights.
    """
    found = []
    for path in paths:
        path = path / _FILE if path.is_dir() else path
        evaluation = _read(path)
        if evaluation is None:
            raise errors.UserError(
                f"--results={path} is no {_FILE} of `dinov2-jax evaluate`: name the "
                "folder of its --out"
            )
        measured = evaluation.content["card"].get("digest")
        if measured != _short(digest):
            raise errors.UserError(
                f"--results={path} measures other weights ({measured}) than those to "
                f"push ({_short(digest)}): evaluate these, or leave it out"
            )
        found.append(evaluation)
    return found


def inside(workdir: pathlib.Path, digest: str) -> list[Evaluation]:
    """Return the results in a run's folder that measure these weights.

    Args:
      workdir: The run's folder; results are up to two folders deep.
      digest: SHA-256 of the weights, `embed.extraction.digest`.
    """
    paths = sorted([*workdir.glob(f"*/{_FILE}"), *workdir.glob(f"*/*/{_FILE}")])
    found = [evaluation for evaluation in map(_read, paths) if evaluation]
    return [
        e
        for e in found
        if e.numbers and e.content["card"].get("digest") == _short(digest)
    ]


def during_training(run: run_record.Run) -> list[Evaluation]:
    """Return what a run measured at the step of its weights; empty if nothing.

    It measures the teachers alone, and if there are several students, each one's.
    """
    prefix = f"{run.student}/" if run.student else ""
    numbers: dict[str, float | None] = {}
    try:
        lines = (run.workdir / "events.jsonl").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:  # a line that was cut off
            continue
        if event.get("event") == "evaluate" and event.get("step") == run.step:
            found = event["accuracies"].items()
            own = {k.removeprefix(prefix): v for k, v in found if k.startswith(prefix)}
            numbers = own or numbers
    if not numbers:
        return []
    settings = {
        name.removeprefix("evaluation."): value
        for name, value in run.config.items()
        if name.startswith("evaluation.") and value not in ("", [], None)
    }
    for name in _UNMEASURED:
        settings.pop(name, None)
    notes = []
    if run.is_best:
        notes.append(
            "The step was chosen by these numbers, so they are somewhat too high."
        )
    if any(name.endswith(_BASELINES) for name in numbers):
        names = ", ".join(f"`{name}`" for name in _BASELINES)
        notes.append(
            f"Names ending in {names} are baselines: the same ViT untrained, and "
            "pixels."
        )
    task = f"during training, after step {run.step:,}"
    return [Evaluation(task, "in the training loop", settings, numbers, notes)]


def _short(digest: str) -> str:
    return f"sha256 {digest[:16]}"


def _read(path: pathlib.Path) -> Evaluation | None:
    """Read a results.json; return None if it is none."""
    content = run_record.read_json(path)
    kinds = {"task": str, "protocol": str, "card": dict, "numbers": dict}
    if not all(isinstance(content.get(name), kind) for name, kind in kinds.items()):
        return None
    changed = content.get("changed") or {}
    protocol = _PROTOCOLS.get(content["protocol"], content["protocol"])
    if changed:
        differing = ", ".join(f"{name} {value}" for name, value in changed.items())
        protocol = f"{protocol} ({differing})"
    settings = {k: v for k, v in content["card"].items() if k not in _ELSEWHERE}
    return Evaluation(
        content["task"],
        protocol,
        settings,
        content["numbers"],
        content.get("notes") or (),
        content,
    )

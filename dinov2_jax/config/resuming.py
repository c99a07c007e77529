"""The config of a run against the one that it began with, WORKDIR/config.json."""

import json
import os
import pathlib
from typing import Any

from dinov2_jax import errors
from dinov2_jax.augment import policies
from dinov2_jax.config import combinations, flattening

# Fields, or prefixes of fields, that may change when a run is resumed.
HARMLESS = (
    "train.steps",
    "train.max_nonfinite_steps",
    "train.max_rollbacks",
    "train.hang_timeout",
    "train.micro_batches",
    "data.workers",
    "data.prefetch",
    "data.timeout",
    "data.max_bad_share",
    "model.attention",
    "model.block",
    "model.remat",
    "model.scan_unroll",
    "mesh.",
    "checkpoint.every",
    "checkpoint.minutes",
    "checkpoint.keep_last",
    "checkpoint.keep_every",
    "log.",
    "evaluation.",
)
# Fields of `evaluation` that change no measure, so a run that keeps its best may too.
_UNMEASURED = ("evaluation.every", "evaluation.batch_size", "evaluation.picture_size")
_PLACES = ("data.path", "data.mixture")  # of the images; a run may follow them
_PATHS = (
    *("data.path", "init.source", "gram.source"),
    *("evaluation.train_path", "evaluation.val_path"),
)
# Fields missing from the config.json of older runs, with the values those runs used.
_DISTILL = {
    "distill.source": "",
    "distill.students": [],
    **combinations.OF_TEACHER,
}
_ADDED = {
    **combinations.STARTS_FROM,
    "data.mixture": [],
    "data.augmentation": "host",
    "data.exif_orientation": False,
    "data.value_range": [],
    "data.mean": [],
    "data.std": [],
    "crops.policy": "rgb",
    "crops.sizes": [],
    "log.trackers": [],
    "log.project": "",
    "log.run_name": "",
    "evaluation.other_sizes": [],
    "optim.name": "adamw",
    "optim.trainable": "all",
    "optim.last_blocks": 4,
    "optim.lora_rank": 16,
    "optim.lora_alpha": 16.0,
    "optim.lora_ffn": False,
    "checkpoint.keep_best": "",
    "model.block": "folded",
    "train.micro_batches": 1,
    **_DISTILL,
    "train.objective": "prototypes",
    "dino.sinkhorn_queue": 0,
    "ibot.sinkhorn_queue": 0,
    "coding_rate.weight": 1.0,
    "coding_rate.eps": 0.05,
    "dino.local_loss_weight": 1.0,
    "gram.loss_weight": 0.0,
    "gram.source": "",
    "gram.start": 0,
    "gram.refresh_every": 10_000,
    "gram.refreshes": 3,
    "gram.scale": 1.0,
    "gram.undistorted": True,
    **{f"crops.{name}": None for name in policies.FIELDS},
}


def _same_kind(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether `data.source` went from "auto" to a kind it may detect, or back."""
    kinds = {before.get("data.source"), now.get("data.source")}
    return "auto" in kinds and "photos" not in kinds


def check_resume(config: Any, workdir: pathlib.Path) -> None:
    """Refuse to resume a run with a config that would make it a different run.

    Raises:
      UserError: Fields outside `HARMLESS` differ from WORKDIR/config.json.
    """
    fields = differing(config, workdir)
    if fields:
        raise errors.UserError(
            f"the run in {workdir} was started with another config "
            f"({'; '.join(fields)}): undo the change or choose another --workdir"
        )


def differing(config: Any, workdir: pathlib.Path) -> list[str]:
    """List the fields that differ from WORKDIR/config.json and make another run.

    Those in `HARMLESS` and the places of the images do not. The list is empty if there
    is no such file.

    Raises:
      UserError: The file is damaged.
    """
    return [text for name, text in _changes(config, workdir) if name not in _PLACES]


def moved(config: Any, workdir: pathlib.Path) -> list[str]:
    """List the fields that name other places of the images than WORKDIR/config.json.

    Whether the images are the same, their fingerprint tells. Raises as `differing`.
    """
    return [text for name, text in _changes(config, workdir) if name in _PLACES]


def _changes(config: Any, workdir: pathlib.Path) -> list[tuple[str, str]]:
    """Return (name, description) of the fields that differ and are not harmless."""
    path = pathlib.Path(workdir) / "config.json"
    if not path.exists():
        return []
    before = read_saved(path)
    now = flattening.flatten(json.loads(config.to_json_best_effort()))
    keeps_best = before["checkpoint.keep_best"] and now.get("checkpoint.keep_best")
    # All values that choose the best weights must be measured alike.
    harmless = (
        (*(n for n in HARMLESS if n != "evaluation."), *_UNMEASURED)
        if keeps_best
        else HARMLESS
    )
    return [
        (
            name,
            f"{name}: {before.get(name, 'not set')!r} -> {now.get(name, 'not set')!r}",
        )
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
        and not name.startswith(harmless)
        and not (name == "data.source" and _same_kind(before, now))
        and not (name in _PATHS and _same_path(before.get(name), now.get(name)))
        # WORKDIR/teacher.json tells whether it is the same teacher.
        and not (name == "distill.source" and before.get(name) and now.get(name))
    ]


def read_saved(path: pathlib.Path) -> dict[str, Any]:
    """Read the config.json of a run, flattened, with the names of today.

    Fields that it lacks because it is older have the values that such runs used.

    Raises:
      UserError: The file is damaged.
    """
    try:
        saved = flattening.flatten(json.loads(path.read_text()))
    except (ValueError, AttributeError) as error:  # no object
        raise errors.UserError(
            f"{path} is not valid JSON ({error}): restore it or use another --workdir"
        ) from error
    return _ADDED | {
        new: value
        for name, value in saved.items()
        for new in flattening.RENAMED.get(name, (name,))
    }


def _same_path(before: Any, now: Any) -> bool:
    """Return whether two paths name the same file or folder, perhaps by a link."""
    if not (isinstance(before, str) and isinstance(now, str) and before and now):
        return False
    paths = (os.path.realpath(os.path.expanduser(path)) for path in (before, now))
    return len(set(paths)) == 1

"""Which metrics are drawn, in which figures."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

_BASELINES = ("_random_init", "_pixels", "_pixels_mean_removed", "_color_histogram")
_TITLES = {
    "knn": "k-NN",
    "logreg": "Logistic regression",
    "matching": "Patches matched",
}
# Shown beside the loss itself where they matter.
_HIDDEN = ("skipped_in_a_row",)
_FIXED = {  # section: figures, each a title, a unit and its metrics
    "Schedules": (
        ("Learning rate", "", ("lr", "backbone_lr", "last_layer_lr")),
        ("Weight decay", "", ("weight_decay",)),
        ("Momentum of the teacher", "", ("momentum_teacher",)),
        ("Temperature of the teacher", "", ("teacher_temp",)),
    ),
    "Speed": (
        ("Throughput", "images/s", ("images_per_second",)),
        ("MFU", "%", ("mfu",)),
        ("Time spent waiting for data", "%", ("data_wait",)),
    ),
}


@dataclasses.dataclass(frozen=True)
class Panel:
    """A figure.

    Attributes:
      title: Title.
      metrics: Names of the metrics, {name: name in the legend}.
      unit: Unit of the values, "%" for shares.
      log_scale: Whether the vertical axis is logarithmic.
    """

    title: str
    metrics: Mapping[str, str]
    unit: str = ""
    log_scale: bool = False


def is_baseline(name: str) -> bool:
    """Return whether a metric is what the trained model is compared with."""
    return name.endswith((*_BASELINES, "/chance"))


def arrange(
    values: Mapping[str, np.ndarray], *, one_metric: bool = False
) -> dict[str, list[Panel]]:
    """Return the figures of each section.

    Args:
      values: {metric: its values in all runs}.
      one_metric: Whether a figure shows a single metric, as when runs are compared.
    """
    left = [name for name in values if _last(name) not in _HIDDEN]
    left = [name for name in left if _last(name) != "skipped" or values[name].any()]

    def take(pattern: str) -> list[str]:
        found = [name for name in left if re.fullmatch(pattern, name)]
        left[:] = [name for name in left if name not in found]
        return found

    losses = sorted(take(r"(.+/)?loss/.+"), key=lambda n: not n.endswith("/total"))
    norms = take(r"(.+/)?grad_norm/.+")
    fixed = {
        section: [
            Panel(title, {n: n for n in take("|".join(names))}, unit)
            for title, unit, names in figures
        ]
        for section, figures in _FIXED.items()
    }
    skipped = take(r"(.+/)?skipped")
    evaluations = take(r"(?!crops/).+/.+")
    sections = {
        "Losses": [Panel(_title(name, "loss"), {name: name}) for name in losses],
        "Evaluation": _evaluations({name: values[name] for name in evaluations}),
        **fixed,
        "Stability": [
            Panel("Gradient norm", _named(norms, "grad_norm"), log_scale=True),
            Panel("Skipped steps, in all", {name: name for name in skipped}),
        ],
        "Other metrics": [Panel(name, {name: name}) for name in left],
    }
    return {
        section: shown
        for section, figures in sections.items()
        if (shown := [p for f in figures if f.metrics for p in _split(f, one_metric)])
    }


def _last(name: str) -> str:
    """Return a metric's name without that of a student."""
    return name.rpartition("/")[2]


def _evaluations(values: Mapping[str, np.ndarray]) -> list[Panel]:
    """Return a figure for each evaluation, and one more for its cosines."""
    groups: dict[tuple[str, bool], list[str]] = {}
    for name in values:
        task = name.rpartition("/")[0]
        groups.setdefault((task, name.endswith("_cosine")), []).append(name)
    return [
        Panel(
            f"{_task_title(task)}{', cosines' if cosines else ''}",
            {name: _words(name.rpartition("/")[2]) for name in group},
            unit="%" if not cosines and _are_shares(values, group) else "",
        )
        for (task, cosines), group in groups.items()
    ]


def _are_shares(values: Mapping[str, np.ndarray], names: Sequence[str]) -> bool:
    """Return whether all values are between 0 and 1, as accuracies are."""
    all_values = np.concatenate([values[name] for name in names])
    all_values = all_values[np.isfinite(all_values)]
    return bool(np.all((all_values >= 0) & (all_values <= 1)))


def _split(panel: Panel, one_metric: bool) -> list[Panel]:
    if not one_metric or len(panel.metrics) < 2:
        return [panel]
    return [
        dataclasses.replace(panel, title=f"{panel.title}: {text}", metrics={name: text})
        for name, text in panel.metrics.items()
        if not is_baseline(name)
    ]


def _task_title(task: str) -> str:
    """Return the title of an evaluation, perhaps of one of several students."""
    student, _, name = task.rpartition("/")
    return (
        f"{student}: {_TITLES.get(name, name)}" if student else _TITLES.get(name, name)
    )


def _named(names: Sequence[str], what: str) -> dict[str, str]:
    return {name: _title(name, what) for name in names}


def _title(name: str, what: str) -> str:
    """Return a name such as student/loss/dino_global in words."""
    return _words(name.replace(f"{what}/", ""))


def _words(name: str) -> str:
    return name.replace("_", " ")

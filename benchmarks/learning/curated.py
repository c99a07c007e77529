"""Training on curated images of a long-tailed set against random ones of it.

All arms train equally long: on all images of the set (`long_tail`), or on `CHOSEN` of
them.

* `random`: chosen without regard to anything.
* `flat`: as many from each cluster of one k-means as it has, with as many clusters as
  the lowest level of `curated`.
* `curated`: what `dinov2-jax curate` chooses, by a hierarchy and without duplicates.
* `oracle`: as many of each photograph as it has, without the planted duplicates.

The features that are clustered are those of `all`, the model of the whole set.
"""

import functools
import pathlib
from typing import Any

from benchmarks.learning import long_tail, pretraining, selections, study

CHOSEN = 800
_CLUSTERED = ("flat", "curated")


def _pool(setting: study.Setting) -> pathlib.Path:
    return setting.folder / "curated" / "pool" / f"seed{setting.seed}"


def _list(setting: study.Setting, name: str) -> pathlib.Path:
    return setting.workdir("curated/lists") / f"{name}.csv"


def _config(setting: study.Setting) -> Any:
    """Return the config of a pretraining that is measured only afterwards."""
    c = pretraining.make_config(setting.seed, setting.steps)
    c.evaluation.tasks = ()
    return c


def _whole(setting: study.Setting) -> study.Run:
    """Return the training on the whole set."""
    c, pool = _config(setting), _pool(setting)
    c.data.update(source="folder", path=str(pool))
    prepare = functools.partial(long_tail.write, pool, setting.seed)
    return study.Run(setting.workdir("curated/all"), c, prepare)


def _chosen(setting: study.Setting, name: str) -> study.Run:
    """Return the training on a selection."""
    c, path = _config(setting), _list(setting, name)
    c.data.update(source="manifest", path=str(path))
    prepare = functools.partial(_select, setting, name)
    return study.Run(setting.workdir(f"curated/{name}"), c, prepare)


def _select(setting: study.Setting, name: str) -> None:
    pool, path, seed = _pool(setting), _list(setting, name), setting.seed
    long_tail.write(pool, seed)
    if name in selections.KNOWN:
        selections.write_known(pool, path, CHOSEN, seed)
    else:
        run = _whole(setting)
        selections.write_curated(
            pool,
            path.parent,
            run.workdir,
            size=run.config.evaluation.image_size,
            count=CHOSEN,
            seed=seed,
        )


def _describe(setting: study.Setting, name: str) -> dict[str, float]:
    pool = _pool(setting)
    names = long_tail.names(pool)
    chosen = names if name == "all" else selections.read(_list(setting, name), pool)
    oracle = selections.choose_oracle(names, CHOSEN, setting.seed)
    return selections.describe(chosen, oracle)


def _arm(setting: study.Setting, *, name: str) -> study.Arm:
    runs = []
    if name == "all" or name in _CLUSTERED:
        runs.append(_whole(setting))
    if name != "all":
        runs.append(_chosen(setting, name))
    return study.Arm(
        tuple(runs),
        judge=pretraining.make_config(setting.seed, setting.steps),
        describe=functools.partial(_describe, setting, name),
    )


STUDY = study.Study(
    question=(
        "Does training on a curated fifth of a long-tailed set beat training on a "
        "random fifth of it, or on one that is balanced by clusters of one level?"
    ),
    arms={
        name: functools.partial(_arm, name=name)
        for name in ("all", "random", *_CLUSTERED, "oracle")
    },
    pairs=(
        ("curated", "random"),
        ("curated", "flat"),
        ("flat", "random"),
        ("oracle", "random"),
        ("curated", "all"),
    ),
)

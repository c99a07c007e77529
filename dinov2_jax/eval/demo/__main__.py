"""Evaluations on real data that needs no download: python -m dinov2_jax.eval.demo.

Small images and short trainings, minutes on two cores. Compare numbers only with
those in the same row: of the same ViT untrained, and of pixels.
"""

import dataclasses
import pathlib
from typing import Any

from dinov2_jax import cli, errors
from dinov2_jax.data.decode import pillow_setup
from dinov2_jax.eval import __main__ as program

_PICTURES = 3  # of a backbone in a task


@dataclasses.dataclass(frozen=True)
class Case:
    """A task of the demonstration.

    Attributes:
      task: Name of the task.
      data: What it runs on, for people.
      flags: Flags of the task; "{data}" is the folder of all data.
      numbers: Numbers to show, and whether higher is better.
    """

    task: str
    data: str
    flags: tuple[str, ...]
    numbers: dict[str, bool]


_DIGITS = (
    "--train-path={data}/digits/train",
    "--val-path={data}/digits/val",
    "--resize=84",
    "--size=84",
)
_DIGITS_ABOUT = "scikit-learn's digits, 1,197 to learn from, 600 to test on"
CASES = (
    Case("knn", _DIGITS_ABOUT, (*_DIGITS, "--ks", "20"), {"knn/top1_k20": True}),
    Case(
        "linear",
        _DIGITS_ABOUT,
        (
            *_DIGITS,
            "--augmentation=none",
            "--select-on=train",
            "--steps=400",
            "--every=400",
        ),
        {"linear/top1": True},
    ),
    Case(
        "logreg",
        _DIGITS_ABOUT,
        (*_DIGITS, "--cs", *"1e-2 1e-1 1 10 100".split()),
        {"logreg/accuracy": True},
    ),
    Case(
        "finetune",
        _DIGITS_ABOUT,
        (
            *_DIGITS[:2],
            "--resize=48",
            "--size=48",
            "--augmentation=none",
            "--steps=600",
            "--train-batch-size=32",
            "--lr=2e-3",
            "--layerwise-decay=1",
            "--mixup=0",
            "--cutmix=0",
            "--every=600",
        ),
        {"finetune/top1": True},
    ),
    Case(
        "segmentation",
        "three textures, horses and discs, 24 images to learn from, 8 to test on",
        (
            "--data={data}/masks",
            "--short=192",
            "--stride=192",
            "--steps=200",
            "--train-batch-size=8",
            "--lr=1e-2",
            "--warmup-steps=10",
            "--save-every=200",
        ),
        {"segmentation/mIoU": True},
    ),
    Case(
        "depth",
        "the left part of a stereo picture to learn from, its right part to test on",
        (
            "--data={data}/depth",
            "--head-kind=lin1",
            "--max-depth=6",
            "--crop",
            "144",
            "144",
            "--steps=150",
            "--train-batch-size=8",
            "--lr=3e-3",
            "--warmup-steps=10",
            "--save-every=150",
        ),
        {"depth/rmse": False, "depth/abs_rel": False},
    ),
    Case(
        "matching",
        "crops of two photographs that the model never saw",
        ("--data={data}/unseen", "--size=144", "--crops=16"),
        {"matching/accuracy": True},
    ),
    Case(
        "retrieval",
        "parts of eight photographs under homographies, and of a stereo pair",
        (
            "--benchmark=revisited",
            "--data={data}/pairs",
            "--resize=84",
            "--size=84",
        ),
        {f"retrieval/{name}/map": True for name in ("easy", "medium", "hard")},
    ),
)


def main(argv: list[str] | None = None) -> int:
    """Run the demonstration and return the exit code."""
    parser = cli.Parser(
        prog="python -m dinov2_jax.eval.demo",
        description="Runs evaluations on data that needs no download.",
    )
    parser.add_argument("--model", required=True, help="as of dinov2-jax evaluate")
    parser.add_argument("--out", required=True, type=cli.path, metavar="DIR")
    parser.add_argument("--tasks", nargs="+", choices=[case.task for case in CASES])
    args = parser.parse_args(argv)
    return cli.exit_code(
        lambda: _run(args.model, args.out, args.tasks),
        interrupted="the same command resumes the demonstration",
    )


def _run(model: str, out: pathlib.Path, tasks: list[str] | None) -> None:
    run(model, out, tasks)


def run(model: str, out: pathlib.Path, tasks: list[str] | None = None) -> Any:
    """Evaluate a model on everything, write a page and return it.

    Args:
      model: Whatever `dinov2_jax.load` takes.
      out: Folder for data, results and report.html.
      tasks: Names of the tasks; None for all.

    Returns:
      A `report.Result`.

    Raises:
      UserError: The model cannot be read, or a file cannot be written.
    """
    from dinov2_jax.eval import report

    data = out / "data"
    try:
        if not data.exists():
            _write_data(out / "data.unfinished")
            (out / "data.unfinished").rename(data)
    except OSError as error:
        raise errors.UserError(
            f"cannot write into {out} ({error.strerror or error}): choose another --out"
        ) from error
    found = [
        (case, _evaluate(case, model, out))
        for case in CASES
        if tasks is None or case.task in tasks
    ]
    result = _summary(found)
    print(report.text(result))
    report.write(result, out)
    print(f"look at {out / 'report.html'}")
    return result


def _write_data(folder: pathlib.Path) -> None:
    from dinov2_jax.data.sources import photos
    from dinov2_jax.eval.demo import labelled_images, pair_images

    labelled_images.write_digits(folder / "digits")
    labelled_images.write_masks(folder / "masks")
    labelled_images.write_depth(folder / "depth")
    labelled_images.write_images(folder / "unseen", photos.load_unseen())
    pair_images.write(folder / "pairs")


def _evaluate(case: Case, model: str, out: pathlib.Path) -> Any:
    flags = [flag.replace("{data}", str(out / "data")) for flag in case.flags]
    common = [
        f"--model={model}",
        f"--out={out / case.task}",
        f"--cache={out / 'features'}",
        "--baselines",
    ]
    return program.evaluate(program.parse_arguments([case.task, *common, *flags]))


def _summary(found: list[tuple[Case, Any]]) -> Any:
    """Return a result with one table of all tasks, and some pictures of each."""
    from dinov2_jax.eval import baselines, protocol_card, report

    rows, numbers, pictures = [], {}, []
    for case, result in found:
        for name, higher in case.numbers.items():
            shown = {
                key: result.numbers[key]
                for key in (name, *(f"{name}_{b}" for b in baselines.BASELINES))
            }
            numbers |= shown
            better = "higher" if higher else "lower"
            rows.append((name, *shown.values(), better, case.data))
        own: dict[str, int] = {}
        for picture in result.pictures:
            prefix = picture.caption.partition(":")[0]
            kind = prefix if prefix in baselines.BASELINES else ""
            own[kind] = own.get(kind, 0) + 1
            if own[kind] <= _PICTURES:
                caption = f"{case.task}: {picture.caption}"
                pictures.append(dataclasses.replace(picture, caption=caption))
    table = report.Table(
        "All tasks",
        ("number", "model", *baselines.BASELINES, "better", "data"),
        rows,
    )
    first = found[0][1].card
    kept = ("weights", "digest", "backbone", "baselines", "versions", "devices")
    card = protocol_card.Card(
        "demo", "ours", {}, {name: first.fields[name] for name in kept}
    )
    notes = ["small data and short trainings: compare the columns only with each other"]
    return report.Result(card, numbers, notes, pictures=pictures, summary=table)


if __name__ == "__main__":
    cli.keep_freed_memory()
    pillow_setup.configure()
    cli.start(main)

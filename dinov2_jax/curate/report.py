"""Draw what the steps did, in one HTML file without scripts.

    dinov2-jax curate report --features features.parquet --dups dups.parquet \\
      --clusters clusters.parquet --manifest curated.csv --out report.html

The page has the number of images after each step; how similar images are to their
nearest, with pairs just above and below the threshold; the largest groups of
duplicates; the sizes of clusters before and after sampling; a picture of each of the
largest clusters; and the settings of every step. Tables that are not named are left
out.
"""

import argparse
import collections
from typing import Any

import numpy as np

from dinov2_jax import cli, files, html_page
from dinov2_jax.curate import (
    balance,
    charts,
    contact_sheets,
    neighbours,
    report_inputs,
    tables,
)
from dinov2_jax.curate import features as features_lib

_SAMPLE = 2000  # images whose nearest is searched for
_PAIRS = 18  # on each side of the threshold
_COMPONENTS, _MEMBERS = 30, 5
_CLUSTERS = 100
_TYPICAL_OF = 32  # members of a cluster among which its picture is chosen


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of this step."""
    add = parser.add_argument
    add(
        "--features",
        nargs="+",
        required=True,
        type=cli.path,
        help="--out of dinov2-jax embed",
    )
    add("--dups", type=cli.path, help="--out of curate dedup")
    add("--clusters", type=cli.path, help="--out of curate cluster")
    add("--manifest", type=cli.path, help="--out of curate sample")
    add("--out", required=True, type=cli.path, help="the page, *.html")
    add(
        "--seed",
        type=cli.seed,
        default=0,
        help="seed of the samples (default: 0)",
    )


def run(args: argparse.Namespace) -> None:
    """Write the page that the flags ask for.

    Raises:
      UserError: A file cannot be read or written, or is of other images.
    """
    tables.check_out(args.out, suffix=".html")
    steps = report_inputs.read(args)
    parts = [*_stages(steps), *_calibration(steps), *_similarities(steps)]
    parts += [*_components(steps), *_clusters(steps), *_settings(steps)]
    page = html_page.page("Curation", parts, style=contact_sheets.STYLE)
    with files.open_new(args.out) as file:
        file.write(page.encode(errors="backslashreplace"))  # paths need not be UTF-8
    print(f"wrote {args.out}")


def _stages(steps: report_inputs.Inputs) -> list[str]:
    total = len(steps.features)
    rows = [("embedded", total)]
    skipped = len(steps.features.description.get("skipped", {}))
    if skipped:
        rows.insert(0, ("files that could not be read", skipped))
    if steps.levels and (clustered := int((steps.levels[0] >= 0).sum())) < total:
        rows.append(("in clusters", clustered))
    if steps.dups is not None:
        rows.append(("kept by dedup", int(steps.dups["kept"].sum())))
        leaks = steps.dups.get("leak", np.array([""]))
        for test in sorted(set(leaks) - {""}):
            rows.append((f"in {test} too, not kept", int((leaks == test).sum())))
    if steps.times is not None:
        rows.append(("chosen", int((steps.times > 0).sum())))
        if steps.times.max() > 1:
            rows.append(("places in a pass, with repeats", int(steps.times.sum())))
    cells = [(name, count, f"{count / total:.1%}") for name, count in rows]
    return [
        html_page.heading("Images after each step"),
        html_page.table(("step", "images", "of those embedded"), cells),
        *(
            []
            if steps.pictures.available
            else [
                html_page.note(
                    "There are no pictures, because the features file has no paths of "
                    "images: embed files instead of shards to see them."
                )
            ]
        ),
    ]


def _calibration(steps: report_inputs.Inputs) -> list[str]:
    found = steps.records.get("dedup", {}).get("calibration")
    if not found:
        return []
    rows = [
        (change, *(f"{share:.1%}" for share in shares.values()))
        for change, shares in found["recall"].items()
    ]
    names = [list(shares) for shares in found["recall"].values()][0]
    return [
        html_page.heading("Planted duplicates that dedup finds"),
        html_page.table(("change", *names), rows),
        html_page.paragraph(
            f"The price: {found['price']:.1%} of {found['images']:,} images have "
            "another image, not planted, above the threshold."
        ),
    ]


def _similarities(steps: report_inputs.Inputs) -> list[str]:
    if len(steps.features) < 2:
        return []
    found = neighbours.find(steps.features, count=_SAMPLE, seed=steps.seed)
    dedup = steps.records.get("dedup", {})
    threshold = dedup.get("parameters", {}).get("threshold")
    inputs = dedup.get("inputs") or [{}]
    others = inputs[0].get("digest") not in (None, steps.features.digest)
    if others:  # a threshold belongs to the features that it was chosen for
        threshold = None
    marks = {} if threshold is None else {f"threshold {threshold:.4f}": threshold}
    parts = [
        html_page.heading("Similarity to the nearest other image"),
        charts.histogram(
            found.similarity,
            marks=marks,
            label=f"cosine; heights are square roots of numbers of images; "
            f"{len(found.images):,} random images",
        ),
    ]
    if others:
        parts.append(
            html_page.note(
                "The duplicates were found by other features, whose threshold says "
                "nothing about these similarities."
            )
        )
    if threshold is None or not steps.pictures.available:
        return parts
    pairs, similarity = neighbours.distinct_pairs(found)
    above = np.flatnonzero(similarity > threshold)
    below = np.flatnonzero(similarity <= threshold)
    sides = {
        "Pairs just above the threshold: these should show the same": above[
            np.argsort(similarity[above], kind="stable")[:_PAIRS]
        ],
        "Pairs just below the threshold: these should not": below[
            np.argsort(-similarity[below], kind="stable")[:_PAIRS]
        ],
    }
    for title, chosen in sides.items():
        parts.append(html_page.heading(title))
        if not len(chosen):
            parts.append(html_page.paragraph("None in the sample."))
            continue
        groups = [
            steps.pictures.group(pairs[i], f"{similarity[i]:.4f}") for i in chosen
        ]
        parts.append(contact_sheets.sheet(groups))
    return parts


def _components(steps: report_inputs.Inputs) -> list[str]:
    if steps.dups is None:
        return []
    component, kept = steps.dups["component"], steps.dups["kept"]
    numbers, sizes = np.unique(component[component >= 0], return_counts=True)
    order = np.argsort(-sizes, kind="stable")[:_COMPONENTS]
    parts = [html_page.heading("Largest groups of duplicates")]
    if not len(order):
        return [*parts, html_page.paragraph("There are none.")]
    counts = collections.Counter(sizes.tolist())
    rows = [(size, number) for size, number in sorted(counts.items())[:20]]
    parts.append(html_page.table(("images in a group", "groups"), rows))
    if not steps.pictures.available:
        return parts
    parts.append(html_page.paragraph("The image that is kept comes first, framed."))
    groups = []
    for at in order:
        members = np.flatnonzero(component == numbers[at])
        members = members[np.argsort(~kept[members].astype(bool), kind="stable")]
        more = len(members) - _MEMBERS
        caption = f"{len(members)} images" + (f", {more} not shown" * (more > 0))
        groups.append(
            steps.pictures.group(
                members[:_MEMBERS], caption, mark_first=bool(kept[members[0]])
            )
        )
    return [*parts, contact_sheets.sheet(groups)]


def _clusters(steps: report_inputs.Inputs) -> list[str]:
    if not steps.levels:
        return []
    rows, series = [], {}
    for level, clusters in enumerate(steps.levels, 1):
        used = clusters >= 0
        sizes = np.bincount(clusters[used])
        series[f"level {level}"] = sizes[sizes > 0]
        rows.append(_balance(f"{level}", "pool", sizes))
        if steps.times is not None:
            chosen = np.bincount(
                clusters[used], steps.times[used], minlength=len(sizes)
            )
            rows.append(_balance(f"{level}", "chosen", chosen.astype(np.int64)))
    columns = ("level", "images", "clusters", "smallest", "median", "largest")
    parts = [
        html_page.heading("Clusters"),
        html_page.table((*columns, "Gini", "entropy"), rows),
        html_page.paragraph(
            "Gini is 0 and entropy 1 if all clusters have equally many images."
        ),
        charts.sizes(series, label="clusters of the pool, from the largest on"),
    ]
    if not steps.pictures.available:
        return parts
    top = steps.levels[-1]
    sizes = np.bincount(top[top >= 0])
    order = np.argsort(-sizes, kind="stable")
    order = order[: int((sizes > 0).sum())]
    if len(order) > _CLUSTERS:  # from the largest to the smallest
        order = order[np.linspace(0, len(order) - 1, _CLUSTERS).astype(int)]
    groups = [
        steps.pictures.group(
            [_typical(steps, np.flatnonzero(top == cluster))], f"{sizes[cluster]:,}"
        )
        for cluster in order
    ]
    title = f"A picture of each of {len(order)} clusters of the highest level"
    return [*parts, html_page.heading(title), contact_sheets.sheet(groups)]


def _balance(level: str, which: str, sizes: np.ndarray) -> tuple[Any, ...]:
    """Return a row about the sizes of clusters, [K]."""
    return (
        level,
        which,
        len(sizes),
        int(sizes.min()),
        int(np.median(sizes)),
        int(sizes.max()),
        balance.gini(sizes),
        balance.entropy(sizes),
    )


def _typical(steps: report_inputs.Inputs, members: np.ndarray) -> int:
    """Return the member that is closest to the mean of some members of a cluster."""
    rng = np.random.default_rng(steps.seed)
    size = min(len(members), _TYPICAL_OF)
    members = np.sort(rng.choice(members, size, replace=False))
    rows = features_lib.unit(steps.features.take(members))
    return int(members[(rows @ rows.mean(axis=0)).argmax()])


def _settings(steps: report_inputs.Inputs) -> list[str]:
    settings = steps.features.description.get("settings", {})
    shown = ("weights", "features", "images", "dtype", "shard")
    rows = [("embed", key, settings[key]) for key in shown if key in settings]
    for step, record in steps.records.items():
        for part in ("parameters", "counts"):
            rows += [
                (step, key, _text(value))
                for key, value in (record.get(part) or {}).items()
            ]
        if "seed" in record:
            rows.append((step, "seed", _text(record["seed"])))
    if not rows:
        return []
    return [
        html_page.heading("Settings and counts"),
        html_page.table(("step", "setting", "value"), rows),
    ]


def _text(value: Any) -> str:
    """Return a value of a record for people."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 300 else f"{text[:300]}..."

"""Instance retrieval by cosine similarity of class tokens.

The reference has no code for it and the paper states no resolution, so every protocol
is called "ours", with the benchmark's own definitions of what counts.
"""

import argparse
from typing import Any

from dinov2_jax import cli, errors
from dinov2_jax.eval.tasks import data_flags

BENCHMARKS = ("folders", "revisited", "amstertime", "met")
_NEEDS = {"folders": "--database and --queries"}
_RANKED = 8  # images of a row in the report
_SHOWN = 10  # queries in the report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the task.

    Args:
      parser: The task's parser.
    """
    data_flags.add_transform(parser)
    data_flags.add_baselines(parser)
    add = parser.add_argument
    add(
        "--benchmark",
        choices=BENCHMARKS,
        default="folders",
        help="folders: images of one folder against those of another, relevant if "
        "their sub-folders have the same name; revisited: Revisited Oxford or Paris; "
        "amstertime; met (default: %(default)s)",
    )
    add(
        "--data",
        type=data_flags.path,
        metavar="PATH",
        help="folder of the benchmark: roxford5k or rparis6k with gnd_*.pkl and jpg/, "
        "AmsterTime's with old/ and new/, the Met's with ground_truth/",
    )
    add("--database", type=data_flags.path, metavar="PATH", help="images to rank")
    add("--queries", type=data_flags.path, metavar="PATH", help="images to find")
    add(
        "--query-crop",
        choices=("on", "off"),
        default="on",
        help="revisited: crop queries to their boxes, as the benchmark says",
    )
    add("--mini", action="store_true", help="met: the small training set")
    add("--max-images", type=cli.positive, default=0, help="folders: images per set")


def run(args: argparse.Namespace, backbone: Any) -> Any:
    """Rank, measure and return a `report.Result`.

    Args:
      args: The parsed flags.
      backbone: The model, a `features.Backbone`.

    Raises:
      UserError: The images do not fit.
    """
    from dinov2_jax import errors
    from dinov2_jax.eval import protocol_card, report

    prepare = backbone.prepare(args.resize, args.size)
    if args.benchmark == "folders":
        given = bool(args.database and args.queries)
    else:
        given = bool(args.data)
    if not given:
        raise errors.UserError(
            f"--benchmark={args.benchmark} needs "
            f"{_NEEDS.get(args.benchmark, '--data')}: add the path"
        )
    measure = {
        "folders": _folders,
        "revisited": _revisited,
        "amstertime": _amstertime,
        "met": _met,
    }[args.benchmark]
    numbers, fields, tables, pictures = measure(args, backbone, prepare)
    settings = {"benchmark": args.benchmark, "features": "class token, cosine"}
    card = protocol_card.make_card(
        "retrieval",
        backbone,
        settings,
        reference={"benchmark": None},  # it has none
        prepare=prepare,
        fields=fields,
    )
    notes = [
        "the paper states neither resolution nor query crop for its retrieval numbers, "
        "so these may differ from them"
    ]
    return report.Result(card, numbers, notes, tables, pictures)


def _extract(backbone, prepare, *sources):
    """Return features of sources in which every image can be read."""
    from dinov2_jax import errors
    from dinov2_jax.eval import feature_cache

    found = []
    for source in sources:
        features = feature_cache.extract(backbone, source, kind="cls", prepare=prepare)
        if features.skipped:
            index, reason = next(iter(features.skipped.items()))
            raise errors.UserError(
                f"{len(features.skipped)} benchmark images cannot be read, such "
                f"as {source.name(index)} ({reason}): unpack the benchmark again"
            )
        found.append(features.rows)
    return found


def _folders(args, backbone, prepare):
    import numpy as np

    from dinov2_jax.eval import feature_cache, report
    from dinov2_jax.eval.classification import labelled
    from dinov2_jax.eval.retrieval import ranked_pictures, retrieval

    sources = [
        labelled.open_labelled(path, flag, max_images=args.max_images)
        for flag, path in (("--database", args.database), ("--queries", args.queries))
    ]
    names = list(sources[0].label_names)
    mapping = labelled.class_mapping(
        names,
        sources[1].label_names,
        args.queries,
        known="--database",
        by_number=False,
    )
    database, queries = (
        feature_cache.extract(backbone, source, kind="cls", prepare=prepare)
        for source in sources
    )
    labels = queries.labels if mapping is None else mapping[queries.labels]
    # A query in its own data base finds itself, which does not count.
    same = sources[0].fingerprint == sources[1].fingerprint
    aps, first, rows, relevant = [], [], [], []
    shown = set(np.linspace(0, len(labels) - 1, _SHOWN).astype(int).tolist())
    units, query_units = retrieval.unit(database.rows), retrieval.unit(queries.rows)
    for query in range(len(labels)):
        (ranking,) = retrieval.rankings(query_units[query : query + 1] @ units.T)
        junk = [query] if same else []
        positives = np.setdiff1d(np.flatnonzero(database.labels == labels[query]), junk)
        places = retrieval.positions(ranking, positives, junk)
        if len(positives):
            aps.append(retrieval.average_precision(places, len(positives)))
            first.append(places[0])
        if query in shown:
            rows.append(ranking[~np.isin(ranking, junk)][:_RANKED])
            relevant.append(database.labels[rows[-1]] == labels[query])
    if not aps:
        raise errors.UserError(
            f"no image of --queries={args.queries} shares its class with another image "
            f"in --database={args.database}: use classes with several images"
        )
    numbers = {"retrieval/map": float(np.mean(aps))}
    for k in (1, 5, 10):
        share = float(np.mean(np.array(first) < k))
        numbers[f"retrieval/found_in_{k}"] = share
    picture = report.Picture(
        "Queries (gray) and the images ranked first: green of the same class, red of "
        "another",
        ranked_pictures.sheet(
            sources[1],
            sources[0],
            queries.indices[sorted(shown)],
            [database.indices[row] for row in rows],
            relevant,
        ),
    )
    fields = {
        "database": f"{len(database)} images of {args.database}",
        "queries": f"{len(queries)} images of {args.queries}, {len(aps)} with a "
        "relevant image",
    }
    return numbers, fields, [], [picture]


def _revisited(args, backbone, prepare):
    import numpy as np

    from dinov2_jax.eval import report
    from dinov2_jax.eval.retrieval import (
        ranked_pictures,
        retrieval,
        retrieval_data,
    )

    data = retrieval_data.read_revisited(args.data, query_crop=args.query_crop == "on")
    database, queries = _extract(backbone, prepare, data.database, data.queries)
    ranking = retrieval.rankings(retrieval.similarities(database, queries))
    numbers = {}
    for setup, name in (("E", "easy"), ("M", "medium"), ("H", "hard")):
        found = retrieval.revisited(ranking, data.truth, setup)
        numbers[f"retrieval/{name}/map"] = float(found.mean_average_precision)
        for k, value in zip((1, 5, 10), found.mean_precisions):
            numbers[f"retrieval/{name}/mp_{k}"] = float(value)
    shown = np.linspace(0, len(ranking) - 1, min(_SHOWN, len(ranking))).astype(int)
    rows = [ranking[i][:_RANKED] for i in shown]
    relevant = [
        np.isin(row, [*data.truth[i]["easy"], *data.truth[i]["hard"]])
        for i, row in zip(shown, rows)
    ]
    picture = report.Picture(
        "Queries (gray) and the images ranked first, junk included: green easy or hard",
        ranked_pictures.sheet(data.queries, data.database, shown, rows, relevant),
    )
    fields = {
        "database": f"{len(database)} images of {args.data}, no distractors",
        "queries": f"{len(queries)}, crop {args.query_crop}",
    }
    return numbers, fields, [], [picture]


def _amstertime(args, backbone, prepare):
    import numpy as np

    from dinov2_jax.eval.retrieval import retrieval, retrieval_data

    old, new = _extract(backbone, prepare, *retrieval_data.read_amstertime(args.data))
    cosines = retrieval.similarities(new, old)
    partners = np.arange(len(old))
    numbers = {}
    for name, similar in (("old_to_new", cosines), ("new_to_old", cosines.T)):
        ranks = retrieval.ranks_of_partners(similar, partners)
        numbers[f"retrieval/{name}/map"] = float((1 / ranks).mean())
    numbers["retrieval/map"] = float(np.mean(list(numbers.values())))
    return numbers, {"pairs": f"{len(old)} of {args.data}"}, [], []


def _met(args, backbone, prepare):
    from dinov2_jax.eval.retrieval import retrieval, retrieval_data

    data = retrieval_data.read_met(args.data, mini=args.mini)
    train, val, test = _extract(backbone, prepare, data.train, data.val, data.test)
    most = max(retrieval.MET_KS)
    tuning = retrieval.met_neighbours(train, data.train.labels, val, most)
    k, temperature, val_gap = retrieval.tune_met(
        *tuning, data.val.labels, num_classes=data.num_classes
    )
    found = retrieval.met_predictions(
        *retrieval.met_neighbours(train, data.train.labels, test, k),
        k=k,
        temperature=temperature,
        num_classes=data.num_classes,
    )
    labels = data.test.labels
    numbers = {
        "retrieval/gap": retrieval.global_average_precision(found, labels),
        "retrieval/gap_minus": retrieval.global_average_precision(
            found, labels, distractors=False
        ),
        "retrieval/accuracy": retrieval.met_accuracy(found, labels),
    }
    fields = {
        "train": f"{len(train)} images of {data.num_classes} exhibits, {args.data}",
        "test": f"{len(test)} queries, {int((labels < 0).sum())} distractors",
        "k and temperature": f"{k} and {temperature:g}, selected on {len(val)} "
        f"validation queries (GAP {val_gap:.4f}), no whitening",
    }
    return numbers, fields, [], []

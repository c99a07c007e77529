"""Tables of a study in Markdown, from its rows."""

import math
import re
from collections.abc import Iterator, Sequence

from benchmarks.learning import results, statistics, study

METRICS = {"k-NN": "knn/top1", "matching": "matching/accuracy"}  # on `test`
NOT_RUN = "Not yet run."


def markdown(made: study.Study, rows: Sequence[results.Row]) -> str:
    """Return a study's question and tables, a set for each length that was run."""
    parts = [made.question]
    if not rows:
        parts.append(NOT_RUN)
    for steps in sorted({row["steps"] for row in rows}, reverse=True):
        chosen = [row for row in rows if row["steps"] == steps]
        parts += [_arms(made, chosen, steps), _differences(made, chosen)]
        parts += [_shares(made, chosen), _images(made, chosen), _method(chosen)]
    return "\n\n".join(filter(None, parts))


def _arms(made: study.Study, rows: Sequence[results.Row], steps: int) -> str:
    short = "" if steps == made.steps else f", of {made.steps} in the full study"
    header = [f"`--steps {steps}`{short}", "seeds", "steps", "images", "MFLOP/image"]
    header += ["TFLOP in all", "s", *(f"{name}, %" for name in METRICS)]
    lines = []
    for name in made.arms:
        of_arm = [row for row in rows if row["arm"] == name]
        good = [row for row in of_arm if "failed" not in row]
        failed = len(of_arm) - len(good)
        seeds = str(len(of_arm)) + f", {failed} failed" * bool(failed)
        if not of_arm:
            continue
        if not good:
            lines.append([name, seeds, *[""] * 7])
            continue
        last = good[0]["runs"][-1]
        spent = sum(run["images"] * run["flops_per_image"] for run in good[0]["runs"])
        seconds = statistics.mean([row["runs"][-1]["seconds"] for row in good]).value
        cost = [f"{last['steps']:,}", f"{last['images']:,}"]
        cost += [f"{last['flops_per_image'] / 1e6:.0f}", f"{spent / 1e12:.1f}"]
        values = [
            _percent(statistics.mean(list(by_seed(rows, name, metric).values())))
            for metric in METRICS.values()
        ]
        lines.append([name, seeds, *cost, f"{seconds:.0f}", *values])
    return _table(header, lines)


def _differences(made: study.Study, rows: Sequence[results.Row]) -> str:
    header = ["difference, in points", "seeds"]
    for name in METRICS:
        header += [name, "falls in"]
    lines = []
    for arm, other in made.pairs:
        cells, count = [], 0
        for metric in METRICS.values():
            found = statistics.differences(
                by_seed(rows, arm, metric), by_seed(rows, other, metric)
            )
            if count := len(found):
                falls = sum(value < 0 for value in found)
                cells += [_percent(statistics.mean(found), "+"), f"{falls} of {count}"]
        if count:
            lines.append([f"{arm} - {other}", str(count), *cells])
    return _table(header, lines) if lines else ""


def _shares(made: study.Study, rows: Sequence[results.Row]) -> str:
    lines, metric = [], METRICS["matching"]
    for what, (arm, low, high) in made.shares.items():
        found = statistics.shares(
            *(by_seed(rows, name, metric) for name in (arm, low, high))
        )
        if found:
            lines.append([what, str(len(found)), _percent(statistics.mean(found))])
    return _table(["share of matching", "seeds", "%"], lines) if lines else ""


def _images(made: study.Study, rows: Sequence[results.Row]) -> str:
    field, lines = "training_images", []
    described = [row for row in rows if field in row]
    names = list(dict.fromkeys(name for row in described for name in row[field]))
    for arm in made.arms:
        found = [row[field] for row in described if row["arm"] == arm]
        if found:
            means = [statistics.mean([row[name] for row in found]) for name in names]
            lines.append([arm, str(len(found)), *map(_percent, means)])
    header = ["training images, in %", "seeds", *names]
    return _table(header, lines) if lines else ""


def _method(rows: Sequence[results.Row]) -> str:
    found = {
        name: ", ".join(sorted({str(row[name]) for row in rows}))
        for name in ("date", "commit", "machine")
    }
    return f"*Run:* {found['date']}; {found['machine']}; commit {found['commit']}."


def by_seed(rows: Sequence[results.Row], arm: str, metric: str) -> dict[int, float]:
    """Return a metric of an arm on `test` by seed, without the runs that failed."""
    return {
        row["seed"]: row["test"][metric]
        for row in rows
        if row["arm"] == arm and "failed" not in row
    }


def _percent(found: statistics.Mean, sign: str = "") -> str:
    text = f"{100 * found.value:{sign}.1f}"
    return text if math.isnan(found.half) else f"{text} ± {100 * found.half:.1f}"


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(header)
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *lines))


def fill(text: str, tables: dict[str, str]) -> str:
    """Return a page with its tables between the comments `NAME: begin` and `NAME: end`.

    Args:
      text: The page.
      tables: Tables by the name of the study.

    Raises:
      ValueError: A study has no place on the page.
    """
    for name, table in tables.items():
        begin, end = (f"<!-- {name}: {word} -->" for word in ("begin", "end"))
        if begin not in text or end not in text:
            raise ValueError(f"the page has no {begin} ... {end}")
        block = f"{begin}\n{table}\n{end}"
        text = re.sub(f"{begin}.*{end}", lambda _: block, text, flags=re.S)  # noqa: B023
    return text


def on_page(text: str) -> Iterator[str]:
    """Yield the names of the studies that have a place on a page."""
    yield from re.findall(r"<!-- (\w+): begin -->", text)

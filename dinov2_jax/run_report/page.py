"""WORKDIR/report.html: curves of a run, what happened to it, its config and pictures.

One file that loads nothing, from what the run writes. Several runs are drawn over each
other.
"""

import contextlib
import datetime
import html
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from dinov2_jax import errors, files, html_page, svg_plot
from dinov2_jax.run_report import happenings, panels, pictures, preset, series
from dinov2_jax.runtime import event_log, timing, workdir
from dinov2_jax.status import summary

NAME = "report.html"
_MOST_ROWS = 200  # of a run in a table
_SPIKE = 2.0  # times the 99th percentile, from which an axis is logarithmic
_STYLE = """
:root { color-scheme: light dark; }
body { max-width: 84em; margin: 1em auto 3em; padding: 0 1em; }
h1 { font-size: 1.5em; overflow-wrap: anywhere; } h2 { margin: 1.4em 0 .5em; }
td, th { border-bottom-color: #8886; vertical-align: top; }
td { overflow-wrap: anywhere; } .wide { overflow-x: auto; }
td.number, .wide td:first-child { white-space: nowrap; }
.wide td:last-child { min-width: 9em; }
.bar { height: .8em; min-width: 1px; background: #d9742b; }
.bar.useful { background: #2f9e62; }
td.share { width: 45%; }
figcaption { font-weight: 600; } figcaption small { font-weight: 400; opacity: .7; }
p.note { color: #c60; } figure img { border-radius: 4px; }
@media (max-width: 40em) { td, th { padding: .2em .4em; } }
"""


def write(run: pathlib.Path) -> str:
    """Write the report of a run into its folder, whatever state the run is in.

    Args:
      run: The run's folder.

    Returns:
      One line if that failed, else "".
    """
    try:
        files.write_text(run / NAME, make([run], datetime.datetime.now(datetime.UTC)))
    except Exception as error:  # a run must not end because of its report
        return f"cannot write {run / NAME} ({type(error).__name__}: {error})"
    return ""


def make(runs: Sequence[pathlib.Path], now: datetime.datetime) -> str:
    """Return the page about one or more runs.

    Args:
      runs: Folders of the runs.
      now: The time of writing.

    Raises:
      UserError: A folder has neither metrics nor events.
    """
    found = [_Run(folder) for folder in runs]
    names = _names(runs)
    title = f"Run {names[0]}" if len(runs) == 1 else f"{len(runs)} runs compared"
    written = f"Written at {now:%Y-%m-%d %H:%M:%S} UTC."
    parts = [html_page.paragraph(written)]
    if len(runs) == 1:
        run = found[0]
        parts += [_summary(run, now), *_curves(found, names), *_happenings([run], [""])]
        parts += [*_goodput(run, now), *_config(run), *_machines(run)]
        parts += pictures.part(run.folder)
    else:
        parts += [*_states(found, names, now), *_curves(found, names)]
        parts += _happenings(found, names)
    return html_page.page(title, parts, style=svg_plot.STYLE + _STYLE)


class _Run:
    """What is known of a run; any file may be missing.

    Args:
      folder: The run's folder.

    Raises:
      UserError: There is neither metrics.jsonl nor events.jsonl with content.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.metrics = series.read(folder)
        log = event_log.read(folder)
        kinds = [event["event"] for event in log]
        self.log = log[kinds.index("start") :] if "start" in kinds else []
        if not self.metrics and not self.log:
            raise errors.UserError(
                f"there is no run in {folder}: pass the --workdir of a training run, "
                "which has metrics.jsonl or events.jsonl"
            )
        self.happenings: list[happenings.Happening] = []
        with contextlib.suppress(KeyError, TypeError, ValueError):
            self.happenings = happenings.of_run(folder, self.log)

    def status(self, now: datetime.datetime) -> dict[str, str]:
        """Return the lines of `dinov2-jax status`; {} without its files."""
        try:
            return summary.fields(self.folder, now)
        except errors.UserError:
            return {}


def _names(runs: Sequence[pathlib.Path]) -> list[str]:
    """Return the shortest ends of the paths that differ."""
    paths = [run.absolute().parts for run in runs]
    for length in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-length:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    return [str(run) for run in runs]


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    return f"<div class='wide'>{html_page.table(columns, rows)}</div>"


def _summary(run: _Run, now: datetime.datetime) -> str:
    lines = run.status(now)
    if not lines:
        return html_page.note(
            "No summary: config.json or events.jsonl is missing or damaged."
        )
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>"
        for name, text in lines.items()
    )
    return f"<table>{rows}</table>"


def _states(
    runs: Sequence[_Run], names: Sequence[str], now: datetime.datetime
) -> list[str]:
    """Return a table of a row for each run."""
    shown = ("state", "step", "loss", "accuracy", "speed", "trouble")
    rows = []
    for name, run in zip(names, runs):
        status = run.status(now)
        rows.append([name, *(status.get(field, "") for field in shown)])
    return [_table(("run", *shown), rows)]


def _curves(runs: Sequence[_Run], names: Sequence[str]) -> list[str]:
    """Return the sections of figures."""
    several = len(runs) > 1
    found: dict[str, list[np.ndarray]] = {}
    for run in runs:
        for name, metric in run.metrics.items():
            found.setdefault(name, []).append(metric.values)
    values = {name: np.concatenate(parts) for name, parts in found.items()}
    last = max([1.0, *(s.steps[-1] for r in runs for s in r.metrics.values())])
    marks = [] if several else _marks(runs[0])
    text = "Dashed red lines: restarts and rollbacks, listed below."
    parts = [html_page.paragraph(text)] if marks else []
    for section, figures in panels.arrange(values, one_metric=several).items():
        plots = [
            svg_plot.plot(
                _lines(panel, runs, names),
                title=panel.title,
                unit=panel.unit,
                log_scale=panel.log_scale or _spikes(panel, runs),
                x_range=(0.0, float(last)),
                marks=marks,
            )
            for panel in figures
        ]
        parts += [html_page.heading(section), "<div class='plots'>", *plots, "</div>"]
    return parts


def _spikes(panel: panels.Panel, runs: Sequence[_Run]) -> bool:
    """Return whether single values of a loss would flatten all others."""
    if not any("loss/" in metric for metric in panel.metrics):
        return False
    values = [
        run.metrics[m].values for run in runs for m in panel.metrics if m in run.metrics
    ]
    finite = np.concatenate(values)
    finite = finite[np.isfinite(finite)]
    return bool(len(finite) and finite.min() > 0) and bool(
        finite.max() > _SPIKE * np.quantile(finite, 0.99)
    )


def _lines(
    panel: panels.Panel, runs: Sequence[_Run], names: Sequence[str]
) -> list[svg_plot.Line]:
    lines = []
    for name, (metric, text) in itertools.product(
        range(len(runs)), panel.metrics.items()
    ):
        values = runs[name].metrics.get(metric)
        if values is None:
            continue
        several = len(runs) > 1
        lines.append(
            svg_plot.Line(
                names[name] if several else text,
                values.steps,
                values.values,
                colour=name if several else len(lines),
                dashed=panels.is_baseline(metric),
            )
        )
    return lines


def _marks(run: _Run) -> list[tuple[float, str]]:
    """Return the marks in the curves, at most a hundred."""
    return [
        (float(h.step), f"step {h.step:,}: {h.text}")
        for h in run.happenings
        if h.mark and h.step is not None
    ][-100:]


def _happenings(runs: Sequence[_Run], names: Sequence[str]) -> list[str]:
    rows = [
        [*([name] if name else []), h.time, "" if h.step is None else h.step, h.text]
        for name, run in zip(names, runs)
        for h in run.happenings[-_MOST_ROWS:]
    ]
    parts = [html_page.heading("Events")]
    if any(len(run.happenings) > _MOST_ROWS for run in runs):
        text = f"The last {_MOST_ROWS} of each run; events.jsonl has all."
        parts.append(html_page.paragraph(text))
    if not rows:
        return [*parts, html_page.paragraph("None.")]
    columns = ("run", "time (UTC)", "step", "what happened")
    return [*parts, _table(columns if names[0] else columns[1:], rows)]


def _goodput(run: _Run, now: datetime.datetime) -> list[str]:
    """Return the table of where the time went."""
    try:
        total, shares = timing.goodput(run.log, now)
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError):
        return []
    rows = []
    for name, share in sorted(shares.items(), key=lambda item: -item[1]):
        if share < 0.0005:
            continue
        useful = name == timing.STEP
        kind, text = ("bar useful", "useful steps") if useful else ("bar", name)
        rows.append(
            f"<tr><td>{html.escape(text)}</td><td class='number'>{share:.1%}</td>"
            f"<td class='number'>{timing.duration(share * total)}</td>"
            f"<td class='share'><div class='{kind}' "
            f"style='width:{100 * share:.1f}%'></div></td></tr>"
        )
    return [html_page.heading("Where the time went"), f"<table>{''.join(rows)}</table>"]


def _config(run: _Run) -> list[str]:
    """Return the difference from a preset, and the images."""
    parts = [html_page.heading("Config and images")]
    images = workdir.read_images_record(run.folder)
    if images:
        text = f"{images.get('description')}; fingerprint {images.get('fingerprint')}"
        parts.append(html_page.paragraph(text))
    try:
        name, fields = preset.difference(run.folder / "config.json")
    except (errors.UserError, OSError):
        return [*parts, html_page.note("config.json cannot be read.")]
    if not fields:
        return [*parts, html_page.paragraph(f"The config is the preset {name}.")]
    text = f"The closest preset is {name}; these fields differ."
    rows = [(field, _value(before), _value(now)) for field, before, now in fields]
    return [*parts, html_page.paragraph(text), _table(("field", name, "run"), rows)]


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _machines(run: _Run) -> list[str]:
    """Return the table of processes, with their devices and versions."""
    starts = [event for event in run.log if event["event"] == "start"]
    if not starts:
        return []
    fields = ("host", "processes", "devices", "device", "dinov2_jax", "jax", "python")
    rows = [
        [f"{event['time']:%Y-%m-%d %H:%M:%S}", event.get("step", "")]
        + [event.get(field, "") for field in fields]
        for event in starts[-_MOST_ROWS:]
    ]
    columns = ("start (UTC)", "step", *fields)
    return [html_page.heading("Devices and versions"), _table(columns, rows)]

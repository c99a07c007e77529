"""The compiler's predictions of whole steps on machines that are not present.

Runs `python -m dinov2_jax.aot` for the shipped ViT-L/14 and ViT-g/14 on TPU slices and
tabulates whether they fit, their memory, the bytes that a device sends, and the
predicted step time with all and with no communication hidden behind arithmetic. None of
this was run on such a machine.
"""

import dataclasses
import json
import math
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks import report, workers
from benchmarks.settings import Settings

ROOT = pathlib.Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Case:
    """A config on a slice, with one group of `images` images per device."""

    config: str
    topology: str
    images: int
    overrides: tuple[str, ...] = ()

    @property
    def devices(self) -> int:
        """Number of devices of the slice."""
        return math.prod(map(int, self.topology.split(":")[1].split("x")))


_SELECTIVE = ("model.remat=selective",)
_UNROLLED = (*_SELECTIVE, "model.scan_unroll=24")
CASES = (
    Case("vitl", "v5e:4x4", 12, _SELECTIVE),
    Case("vitl", "v6e:4x4", 32, _UNROLLED),
    Case("vitl", "v5p:2x2x2", 32, _UNROLLED),
    Case("vitg", "v5e:16x16", 12, (*_SELECTIVE, "mesh.replica=16")),
    Case("vitg", "v5p:2x2x2", 32, _SELECTIVE),
    Case("vitg", "v6e:4x4", 12, _SELECTIVE),
)


def run(args: Settings) -> None:
    """Compile, print the table and write the results."""
    rows: list[report.Row] = []
    for case in [Case("debug", "v5e:2x2", 4)] if args.tiny else CASES:
        name = f"{case.config}, {case.topology}"
        if args.only and case.config not in args.only:
            continue
        print(f"  {name}", file=sys.stderr, flush=True)
        settings = {"images": case.images, "overrides": list(case.overrides)}
        rows.append({"case": name} | settings | plan(case, args))
        report.write("aot", args, rows)
    report.show(COLUMNS, rows)


def plan(case: Case, args: Settings) -> dict[str, Any]:
    """Return the JSON of `dinov2_jax.aot`, or the error."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "plan.json"
        command = [
            *(sys.executable, "-m", "dinov2_jax.aot", "--no-search", f"--out={out}"),
            f"--config={ROOT / 'configs' / case.config}.py",
            f"--topology={case.topology}",
            f"--config.train.batch_size={case.devices * case.images}",
            f"--config.train.group_size={case.images}",
            *(f"--config.{text}" for text in (*case.overrides, *args.overrides)),
        ]
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=args.seconds_left(),
            )
        except subprocess.TimeoutExpired:
            return {"error": "out of time"}
        if not out.exists():  # the exit code also says that it does not fit
            return {"error": workers.last_error(done.stderr)}
        return json.loads(out.read_text())


def _predicted(row: report.Row, key: str, form: str, factor: float) -> str:
    """Format a number with all communication hidden and with none; "-" if missing."""
    if not row.get("prediction"):
        return "-"  # does not fit
    pair = (row["prediction"][bound][key] for bound in ("hidden", "exposed"))
    return " to ".join(format(factor * value, form) for value in pair)


COLUMNS = {
    "config, machine": lambda row: row["case"],
    "images each": lambda row: str(row["images"]),
    "memory GB": lambda row: (
        row.get("error") or report.gigabytes(row["memory"]["needed"])
    ),
    "of": lambda row: f"{row['memory']['share']:.0%}",
    "sent GB": lambda row: (
        report.gigabytes(row["prediction"]["link_bytes"])
        if row.get("prediction")
        else "-"
    ),
    "predicted ms": lambda row: _predicted(row, "step_seconds", ".0f", 1e3),
    "predicted MFU %": lambda row: _predicted(row, "mfu", ".0f", 100),
    "compile s": lambda row: f"{row['compile_seconds']:.0f}",
}

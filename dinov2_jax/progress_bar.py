"""The progress bar of all programs."""

import io
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TextIO, TypeVar

import tqdm

from dinov2_jax import console

_Item = TypeVar("_Item")
_LINE_SECONDS = 10.0  # between lines if there is no terminal


class Bar:
    """A bar on a terminal; elsewhere a line now and then.

    Args:
      total: Number of items at the end; None if unknown.
      what: What is done, such as "scanning".
      unit: Name of the items, such as "images".
      done: Number of items that earlier processes finished, left out of the rate.
      scaled: Whether numbers are shortened, such as 1.5M.
      stream: Where to write; standard error by default.
      enabled: False shows nothing.
      delay: Seconds until the bar appears.
      bar_format: Layout of the bar, as tqdm describes it; None: tqdm's own.
    """

    def __init__(
        self,
        total: int | None,
        *,
        what: str = "",
        unit: str = "images",
        done: int = 0,
        scaled: bool = False,
        stream: TextIO | None = None,
        enabled: bool = True,
        delay: float = 0.0,
        bar_format: str | None = None,
    ):
        self._total, self._what, self._unit, self._scaled = total, what, unit, scaled
        self._first = self._done = done
        self._start = self._shown = time.monotonic()
        self._stream = console.messages(
            (stream or sys.stderr) if enabled else io.StringIO()
        )
        self._bar = None
        if self._stream.isatty():
            # tqdm's own detection shows nothing if the terminal reports a size of 0.
            columns, rows = shutil.get_terminal_size()
            self._bar = tqdm.tqdm(
                total=total,
                initial=done,
                desc=what or None,
                unit=unit if scaled else f" {unit}",
                unit_scale=scaled,
                file=self._stream,
                ncols=columns - 1,
                nrows=rows,
                delay=delay,
                bar_format=bar_format,
            )

    @property
    def failure(self) -> str:
        """Why a line could not be written, "" if all were; the bar never fails."""
        return self._stream.failure

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def update(self, count: int = 1) -> None:
        """Show that `count` more items are done."""
        self.update_to(self._done + count)

    def update_to(self, done: int) -> None:
        """Show how many items are done, including those of earlier processes."""
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(done - self._done)
        elif now - self._shown >= _LINE_SECONDS:
            self._shown = now
            print(self._line(done, now), file=self._stream, flush=True)
        self._done = done

    def show(self, done: int, text: str) -> None:
        """Show at once how many items are done, with a text in place of the rate."""
        if self._bar is not None:
            self._bar.set_description_str(text, refresh=False)
            self._bar.update(done - self._done)
            self._bar.refresh()
        else:
            line = f"{self._what} {done}/{self._total}  {text}"
            print(line, file=self._stream, flush=True)
        self._done = done

    def message(self, text: str) -> None:
        """Print a line without breaking the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the bar as it stands and end its line; may be called twice."""
        if self._bar is not None:
            self._bar.close()

    def _line(self, done: int, now: float) -> str:
        rate = (done - self._first) / (now - self._start)
        number = tqdm.tqdm.format_sizeof if self._scaled else "{:,}".format
        text = f"{self._what}: " if self._what else ""
        text += number(done)
        if self._total is not None:
            text += f"/{number(self._total)}"
        text += f" {self._unit}  {rate:,.1f} {self._unit}/s"
        if self._total is not None and rate > 0:
            left = tqdm.tqdm.format_interval((self._total - done) / rate)
            text += f"  ETA {left}"
        return text


def track(items: Sequence[_Item], *, what: str) -> Iterator[_Item]:
    """Yield items, which are images, and show how many were taken."""
    with Bar(len(items), what=what) as bar:
        for item in items:
            yield item
            bar.update()

"""Progress of a run on standard error."""

import shutil
import sys
import time

import tqdm

_LINE_SECONDS = 10.0  # between lines if there is no terminal


class Progress:
    """A bar on a terminal, otherwise a line every `_LINE_SECONDS`.

    Args:
      total: Number of images.
      done: Number of images done by earlier processes.
    """

    def __init__(self, total: int, done: int):
        self._total, self._first, self._done = total, done, done
        self._start = self._shown = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            # tqdm's own guess shows nothing if the terminal reports a size of 0.
            columns, lines = shutil.get_terminal_size()
            self._bar = tqdm.tqdm(
                total=total,
                initial=done,
                unit=" images",
                ncols=columns - 1,
                nrows=lines,
            )

    def update(self, done: int) -> None:
        """Show how many images are done."""
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(done - self._done)
        elif now - self._shown >= _LINE_SECONDS:
            self._shown = now
            rate = (done - self._first) / (now - self._start)
            left = tqdm.tqdm.format_interval((self._total - done) / rate)
            text = f"{done:,}/{self._total:,} images  {rate:.1f} images/s  ETA {left}"
            print(text, file=sys.stderr, flush=True)
        self._done = done

    def close(self) -> None:
        """Close the bar and leave it on the screen."""
        if self._bar is not None:
            self._bar.close()

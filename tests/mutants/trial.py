"""The quick tests of one tree in a process of their own, and what came of them."""

import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from xml.etree import ElementTree

_QUICK = ("-m", "not slow and not extra")
_QUICK += ("-x", "-q", "-p", "no:cacheprovider", "--no-header")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of some tests.

    Attributes:
      verdict: "passed", "failed", "timeout", or "broken" where no test could tell: a
        file of tests was not imported, no test was run, or pytest itself ended.
      test: The first test that failed, as FILE::NAME below tests/.
      message: Its error in one line, or the end of the output.
      passed: The tests that passed, as FILE::NAME[PARAMETERS].
      seconds: How long it took.
    """

    verdict: str
    test: str = ""
    message: str = ""
    passed: tuple[str, ...] = ()
    seconds: float = 0.0


class Trial:
    """pytest on some tests of a tree, begun at once.

    Args:
      folder: A folder of this trial, which holds the tree as `tree`.
      tests: Files or node ids below tests/.
      compilations: The folder of the compilation cache that all trials share.
      limit: Seconds after which it ends, on a busy machine.
      processes: How many processes of pytest divide the tests.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        tests: Sequence[str],
        compilations: pathlib.Path,
        *,
        limit: float = 600.0,
        processes: int = 1,
    ):
        self._limit = limit
        self._report, self._output = folder / "report.xml", folder / "output"
        self._started = time.monotonic()
        tree = folder / "tree"
        workers = ["-n", str(processes)] if processes > 1 else []
        with open(self._output, "wb") as output:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.mutants.watched_pytest"),
                    *_QUICK,
                    *workers,
                    *(f"--basetemp={folder / 'tmp'}", f"--junitxml={self._report}"),
                    *(f"tests/{test}" for test in tests),
                ],
                cwd=tree,
                env=os.environ
                | {
                    "PYTHONPATH": str(tree),
                    "JAX_COMPILATION_CACHE_DIR": str(compilations),
                },
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def outcome(self) -> Outcome | None:
        """What came of the tests; None while they run."""
        seconds = time.monotonic() - self._started
        if self._process.poll() is None:
            if seconds < self._limit:
                return None
            self.end()
            return Outcome("timeout", message=self.tail(1), seconds=seconds)
        self.end()
        return dataclasses.replace(self._read(), seconds=seconds)

    def end(self) -> None:
        """Kills pytest and whatever it started and left behind."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process.stdin.close()

    def tail(self, count: int) -> str:
        """The last lines of the output."""
        lines = self._output.read_text(errors="replace").splitlines()
        return "\n".join([line for line in lines if line.strip()][-count:])

    def _read(self) -> Outcome:
        try:
            cases = list(ElementTree.parse(self._report).iter("testcase"))
        except (OSError, ElementTree.ParseError):
            return Outcome("broken", message=self.tail(1))
        passed = []
        for case in cases:
            problem = case.find("failure")
            if problem is None:
                problem = case.find("error")
            if problem is not None:
                message = " ".join(problem.get("message", "").split())
                verdict = "broken" if message == "collection failure" else "failed"
                if verdict == "broken":
                    message = self.tail(1)
                return Outcome(verdict, _name(case).partition("[")[0], message)
            if case.find("skipped") is None:
                passed.append(_name(case))
        if self._process.returncode or not passed:
            return Outcome("broken", message=self.tail(1))
        return Outcome("passed", passed=tuple(passed))


def _name(case: ElementTree.Element) -> str:
    """FILE::NAME of a case, whose class is the path of its file with dots."""
    path = case.get("classname", "").removeprefix("tests.").replace(".", "/")
    return f"{path}.py::{case.get('name')}"

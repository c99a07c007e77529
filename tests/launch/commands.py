"""Runs the launchers with stand-ins for the programs of clusters."""

import os
import pathlib
import subprocess

import processes

LAUNCH = processes.ROOT / "launch"
EXPECTED = pathlib.Path(__file__).with_name("expected")
# Writes each call as a line of words, those with blanks in brackets. What it prints and
# its exit code are lines of the file NAME.answers, "CODE TEXT", the last one for all
# further calls; without the file it is silent and succeeds.
STAND_IN = r"""#!/usr/bin/env bash
here=$(dirname -- "$0") name=$(basename -- "$0")
{
  printf %s "$name"
  for word in "$@"; do
    if [[ $word == *[[:space:]]* ]]; then word="[$word]"; fi
    printf ' %s' "$word"
  done
  echo
} >>"$here/calls"
if [[ $* == *"-f -"* ]]; then cat >>"$here/standard_input"; fi
[[ -f $here/$name.answers ]] || exit 0
count=$(grep -c "^$name" "$here/calls")
answer=$(sed -n "${count}p" "$here/$name.answers")
[[ $answer ]] || answer=$(tail -n 1 "$here/$name.answers")
text=${answer#* }
if [[ $text != "$answer" ]]; then printf '%b\n' "$text"; fi
exit "${answer%% *}"
"""


def environment(**changes: str) -> dict[str, str]:
    """This process's, less what would make it a job."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    return kept | changes


class Programs:
    """Stand-ins on the PATH."""

    def __init__(self, folder: pathlib.Path, *names: str):
        self.folder = folder
        for name in names:
            (folder / name).write_text(STAND_IN)
            (folder / name).chmod(0o755)

    def answer(self, name: str, *answers: str) -> None:
        (self.folder / f"{name}.answers").write_text("\n".join(answers) + "\n")

    def run(self, script: str, *arguments: str, **changes: str):
        path = f"{self.folder}:{os.environ['PATH']}"
        return subprocess.run(
            ["bash", LAUNCH / script, *arguments],
            env=environment(PATH=path, PYTHON="python", **changes),
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self) -> list[str]:
        path = self.folder / "calls"
        text = path.read_text() if path.exists() else ""
        return text.replace(str(processes.ROOT), "ROOT").splitlines()


def assert_as_recorded(text: str, name: str) -> None:
    """Compares with expected/NAME.txt, which RECORD=1 writes anew."""
    text = text.replace(str(processes.ROOT), "ROOT")
    path = EXPECTED / f"{name}.txt"
    if os.environ.get("RECORD"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()

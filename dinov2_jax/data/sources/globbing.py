"""Patterns of paths: `*`, `?`, `[..]` within a name, `**` for any folders, `{a,b}`.

`{0000..0099}` counts, padded with zeros to the width of its first number. braceexpand
is not used: it has no limit for `{0..999999999}`, and replaces twenty lines.
"""

import fnmatch
import functools
import os
import re

_BRACES = re.compile(r"\{(?!\])([^{}]*)\}")  # but not [{], a brace in a name
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MAGIC = re.compile(r"[*?\[]")
_MOST = 1_000_000  # most numbers in one `{first..last}`


def is_pattern(path: str) -> bool:
    """Return whether a path that does not exist is meant as a pattern."""
    return bool(_MAGIC.search(path)) or any(
        "," in inner or _RANGE.fullmatch(inner) for inner in _BRACES.findall(path)
    )


def expand_braces(pattern: str) -> list[str]:
    """Expand `a{1..3}{x,y}` to [a1x, a1y, a2x, ...]; other braces are kept."""
    for found in _BRACES.finditer(pattern):
        counted = _RANGE.fullmatch(found[1])
        if counted:
            first, last = counted.groups()
            low, high = int(first), int(last)
            if abs(high - low) >= _MOST:
                continue
            step = 1 if low <= high else -1
            inner = [str(n).zfill(len(first)) for n in range(low, high + step, step)]
        elif "," in found[1]:
            inner = found[1].split(",")
        else:
            continue
        before, after = pattern[: found.start()], pattern[found.end() :]
        return [before + i + rest for i in inner for rest in expand_braces(after)]
    return [pattern]


class Rule:
    """A compiled pattern: which folders below `root` to enter, which files to take.

    Args:
      pattern: An absolute path with wildcards. Names that begin with a dot are matched
        only by a part that begins with one.

    Attributes:
      root: The deepest folder that holds everything the pattern can match.
    """

    def __init__(self, pattern: str):
        across = any("/" in inner for inner in _BRACES.findall(pattern))
        expanded = expand_braces(pattern) if across else [pattern]
        split = [p.strip("/").split("/") for p in expanded]
        shortest = min(len(parts) for parts in split) - 1
        same = 0
        while (
            same < shortest
            and not is_pattern(split[0][same])
            and all(parts[same] == split[0][same] for parts in split)
        ):
            same += 1
        self.root = "/" + "/".join(split[0][:same])
        self._patterns = [
            tuple(os.fsencode(part) for part in parts[same:]) for parts in split
        ]

    def start(self) -> frozenset:
        """Return the state at the root: (pattern, part) pairs to match names with."""
        return frozenset(
            state for p in range(len(self._patterns)) for state in self._skip(p, 0)
        )

    def _skip(self, pattern: int, part: int) -> list[tuple[int, int]]:
        """Return a part, and the next one if `**` may stand for nothing."""
        parts = self._patterns[pattern]
        states = [(pattern, part)]
        while parts[part] == b"**" and part + 1 < len(parts):
            part += 1
            states.append((pattern, part))
        return states

    def enter(self, state: frozenset, name: bytes) -> frozenset:
        """Return the state inside a sub-folder; empty if nothing there can match."""
        found = set()
        for pattern, part in state:
            parts = self._patterns[pattern]
            if parts[part] == b"**":
                if not name.startswith(b"."):
                    found.add((pattern, part))
                    found.update(self._skip(pattern, part))
            elif part + 1 < len(parts) and _matches(name, parts[part]):
                found.update(self._skip(pattern, part + 1))
        return frozenset(found)

    def takes(self, state: frozenset, name: bytes) -> bool:
        """Return whether a file in a folder with this state matches."""
        for pattern, part in state:
            parts = self._patterns[pattern]
            if part == len(parts) - 1:
                last = b"*" if parts[part] == b"**" else parts[part]
                if _matches(name, last):
                    return True
        return False

    @property
    def names_extensions(self) -> bool:
        """Whether the pattern itself specifies the files' extensions."""
        return all(re.search(rb"\.[^*?]+$", parts[-1]) for parts in self._patterns)


def _matches(name: bytes, part: bytes) -> bool:
    if name.startswith(b".") and not part.startswith(b"."):
        return False
    plain, compiled = _compiled(part)
    return name in plain or any(regex.match(name) for regex in compiled)


@functools.lru_cache(maxsize=4096)
def _compiled(part: bytes) -> tuple[frozenset[bytes], list[re.Pattern[bytes]]]:
    """Return a part's alternatives without wildcards, and regexes of the others."""
    texts = expand_braces(part.decode("latin-1"))
    plain = [text.encode("latin-1") for text in texts if not _MAGIC.search(text)]
    wild = [fnmatch.translate(text) for text in texts if _MAGIC.search(text)]
    return frozenset(plain), [re.compile(text.encode("latin-1")) for text in wild]

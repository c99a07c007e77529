"""Packages that tests compare with and not every Python has.

A test that uses one skips where that is not installed; so does a file that uses one
outside its tests.
"""

from typing import Any

import pytest


class _Peer:
    """A package, imported when it is used, and what it needs itself."""

    def __init__(self, name: str, needs: str | None = None):
        self._name, self._needs = name, needs

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith(("_", "pytest")):  # pytest looks at whatever a file has
            raise AttributeError(attribute)
        if self._needs:
            pytest.importorskip(self._needs)
        return getattr(pytest.importorskip(self._name), attribute)


torch = _Peer("torch")
transformers = _Peer("transformers", needs="torch")

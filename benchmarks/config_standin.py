"""A stand-in for ml_collections on machines that do not have it.

Benchmark machines have JAX and little else. If the package is missing, `install` adds a
module with the part of `ml_collections.config_dict` that the files in configs/ use.
"""

import sys
import types
from typing import Any


class ConfigDict:
    """Fields by attribute or item; once locked, it rejects unknown fields."""

    def __init__(self):
        object.__setattr__(self, "_fields", {})
        object.__setattr__(self, "_locked", False)

    def __getattr__(self, name: str) -> Any:
        try:
            return object.__getattribute__(self, "_fields")[name]
        except KeyError:
            raise AttributeError(f"no field {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        if self._locked and name not in self._fields:
            raise AttributeError(f"no field {name!r}, and the config is locked")
        self._fields[name] = value

    def __getitem__(self, name: str) -> Any:
        return self._fields[name]

    __setitem__ = __setattr__

    def update(self, *others: dict[str, Any], **fields: Any) -> None:
        """Set many fields."""
        for other in (*others, fields):
            for name, value in other.items():
                setattr(self, name, value)

    def lock(self) -> None:
        """Reject unknown fields from now on, in nested dicts too."""
        object.__setattr__(self, "_locked", True)
        for value in self._fields.values():
            if isinstance(value, ConfigDict):
                value.lock()


def placeholder(kind: type) -> None:
    """Return None, the value of a field that is not set."""
    del kind


def install() -> None:
    """Make `import ml_collections` work."""
    try:
        import ml_collections  # noqa: F401
    except ImportError:
        package: Any = types.ModuleType("ml_collections")
        config_dict: Any = types.ModuleType("ml_collections.config_dict")
        config_dict.ConfigDict = package.ConfigDict = ConfigDict
        config_dict.placeholder = placeholder
        package.config_dict = config_dict
        sys.modules["ml_collections"] = package
        sys.modules["ml_collections.config_dict"] = config_dict

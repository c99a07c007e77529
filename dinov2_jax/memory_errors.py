"""Tells errors about too little memory from others, without importing jax."""

import re

_BYTES_OF_JAX = re.compile(r"allocat\w+ (\d+) bytes")
_SIZE_OF_NUMPY = re.compile(r"allocate (\S+ \wi?B) for")


def size_asked(error: MemoryError | RuntimeError) -> str | None:
    """Return what there was no memory for, as in " (for 8.6 GB more)".

    Args:
      error: An error of Python, NumPy or jax.

    Returns:
      Nothing, "", where the error does not say; None if it is about something else.
    """
    if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
        return None
    if found := _BYTES_OF_JAX.search(str(error)):
        return f" (for {int(found[1]) / 1e9:,.1f} GB more)"
    found = _SIZE_OF_NUMPY.search(str(error))
    return f" (for {found[1]} more)" if found else ""

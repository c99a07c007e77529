"""The files that names of images stand for; without jax or NumPy."""

import os
import re

_BYTE = re.compile(rb"\\x([0-9a-f]{2})")


def path(root: str | bytes | os.PathLike, name: str) -> bytes:
    r"""Return the path of an image below a folder.

    Args:
      root: The folder.
      name: The image's name: its path below the folder, with \xff for bytes that are
        not UTF-8. A file whose name has these four characters itself comes first.
    """
    written = os.path.join(os.fsencode(root), os.fsencode(name))
    if b"\\x" not in written or os.path.lexists(written):
        return written
    raw = _BYTE.sub(lambda found: bytes([int(found[1], 16)]), os.fsencode(name))
    meant = os.path.join(os.fsencode(root), raw)
    return meant if os.path.lexists(meant) else written

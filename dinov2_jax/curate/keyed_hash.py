"""A hash of a seed and a text that databases compute too.

Rows with the smallest hashes are a random choice that depends neither on the order of
the rows nor on how they are divided into files.
"""

import hashlib
from collections.abc import Iterable

import numpy as np


def hash64(seed: int, texts: Iterable[str]) -> np.ndarray:
    """Return the first 16 hexadecimal digits of md5("SEED:TEXT") as numbers.

    In SQL, `substr(md5('SEED:' || text), 1, 16)` sorts rows in the same order.

    Args:
      seed: The seed.
      texts: The texts.

    Returns:
      uint64, one for each text.
    """
    prefix = hashlib.md5(f"{seed}:".encode(), usedforsecurity=False)

    def one(text: str) -> int:
        state = prefix.copy()
        state.update(text.encode("utf-8", "backslashreplace"))
        return int.from_bytes(state.digest()[:8], "big")

    return np.fromiter((one(text) for text in texts), np.uint64)

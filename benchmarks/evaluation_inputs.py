"""Random inputs of `benchmarks.evaluation`, the same for all contestants."""

import argparse
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks import timing

C = 1.0  # of the logistic regression


def features(count: int, width: int, seed: int) -> np.ndarray:
    """Return random features, float32 [count, width]."""
    return np.random.default_rng(seed).standard_normal((count, width), np.float32)


def clusters(images: int, width: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return features around the centres of overlapping classes, and their labels."""
    rng = np.random.default_rng(0)
    centres = 0.3 * rng.standard_normal((classes, width))
    labels = rng.integers(0, classes, images)
    return centres[labels] + rng.standard_normal((images, width)), labels


def main(description: str, cases: Mapping[str, Callable[..., Any]]) -> None:
    """Measure a case as the command line says and print one JSON object.

    Args:
      description: What the program measures.
      cases: Function of the sizes for each case; it returns the function to measure,
        and what else to report, a function of no arguments, or None.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("case", choices=cases)
    parser.add_argument("sizes", type=json.loads)
    parser.add_argument("--samples", type=int, default=5)
    args = parser.parse_args()
    call, also = cases[args.case](**args.sizes)
    seconds = timing.samples(call, count=args.samples, warmup=1)
    print(json.dumps({"seconds": seconds} | (also() if also else {})))

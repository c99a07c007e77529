"""The best of the heads that a training passes through, by abs_rel on test images.

The released heads were chosen like this (`save_best=abs_rel`).
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable

import numpy as np

from dinov2_jax import files
from dinov2_jax.eval.dense import pairs
from dinov2_jax.eval.depth import depth_metrics, depth_model
from dinov2_jax.eval.heads import head_files


class BestHead:
    """Function that measures a head, and keeps it if it is the best so far.

    Args:
      estimate: Function that makes an estimator of a head.
      test: Images and depth maps in metres to choose on.
      protocol: Which pixels count.
      path: File of the best head, so that a killed run resumes.
      fingerprint: Text of all that the choice depends on; a file of another is
        replaced.

    Attributes:
      step: Steps that the best head was trained for; 0 before the first one.
      abs_rel: Its mean error relative to the depth.
    """

    def __init__(
        self,
        estimate: Callable[[head_files.Head], depth_model.DepthEstimator],
        test: pairs.Pairs,
        protocol: depth_metrics.Protocol,
        *,
        path: pathlib.Path,
        fingerprint: str,
    ):
        self._estimate, self._test, self._protocol = estimate, test, protocol
        self._path, self._fingerprint = path, fingerprint
        self._estimator: depth_model.DepthEstimator | None = None
        self._params: dict[str, np.ndarray] = {}
        self.step, self.abs_rel = 0, np.inf
        self._resume()

    def __call__(self, step: int, head: head_files.Head) -> None:
        """Measure a head.

        Args:
          step: Steps that it was trained for.
          head: The head.
        """
        if self._estimator is None:
            self._estimator = self._estimate(head)
        estimator = self._estimator.with_params(head.params)
        rows = list(depth_model.evaluate(estimator, self._test, self._protocol))
        found = depth_metrics.mean_metrics(
            [row.metrics for row in rows], [row.count for row in rows]
        )["abs_rel"]
        print(f"step {step:,}: abs_rel {found:.4f}")
        if found < self.abs_rel:
            self.step, self.abs_rel = step, found
            self._params = {k: np.array(v) for k, v in head.params.items()}
            self._save()

    def of(self, last: head_files.Head) -> head_files.Head:
        """Return the best head.

        Args:
          last: The head at the end of the training.
        """
        return dataclasses.replace(last, params=self._params) if self.step else last

    def _save(self) -> None:
        about = {
            "fingerprint": self._fingerprint,
            "step": self.step,
            "abs_rel": self.abs_rel,
        }
        with files.open_new(self._path) as file:
            np.savez(file, about=np.array(json.dumps(about)), **self._params)

    def _resume(self) -> None:
        try:
            with np.load(self._path, allow_pickle=False) as arrays:
                about = json.loads(str(arrays["about"]))
                params = {k: arrays[k] for k in arrays.files if k != "about"}
        except (OSError, ValueError, KeyError):
            return
        if about["fingerprint"] == self._fingerprint:
            self.step, self.abs_rel = about["step"], about["abs_rel"]
            self._params = params

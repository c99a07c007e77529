"""Runs in MLflow, on a server or in a local store (MLFLOW_TRACKING_URI)."""

import json
import time
from collections.abc import Mapping

from dinov2_jax import errors
from dinov2_jax.trackers import backends

_PARAMS_PER_CALL = 100  # a limit of MLflow
_MOST_CHARACTERS = 5000  # of a parameter or tag
_STATUS = {errors.DONE: "FINISHED", None: "KILLED", errors.REQUEUE: "KILLED"}


class MlflowRun:
    """An open run of MLflow, see `backends.Tracker`.

    Parameters of an MLflow run never change, so they are those of the first process;
    the file config.json of the run is the current one.

    Args:
      run: The run.
    """

    def __init__(self, run: backends.RunInfo):
        from mlflow import entities, tracking  # optional

        self._entities, self._client = entities, tracking.MlflowClient()
        self.id = run.id or self._create(run)
        self.url = ""
        self._client.update_run(self.id, status="RUNNING")
        text = json.dumps(run.config, indent=2)
        self._client.log_text(self.id, text, "config.json")

    def _create(self, run: backends.RunInfo) -> str:
        """Create the run with its parameters and return its id."""
        client = self._client
        experiment = client.get_experiment_by_name(run.project)
        number = (
            experiment.experiment_id
            if experiment
            else client.create_experiment(run.project)
        )
        tags = {f"images.{k}": str(v)[:_MOST_CHARACTERS] for k, v in run.images.items()}
        created = client.create_run(number, run_name=run.name, tags=tags).info.run_id
        params = [
            self._entities.Param(name, str(value)[:_MOST_CHARACTERS])
            for name, value in run.config.items()
        ]
        for i in range(0, len(params), _PARAMS_PER_CALL):
            client.log_batch(created, params=params[i : i + _PARAMS_PER_CALL])
        return created

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add values of a step; steps never decrease."""
        now = int(time.time() * 1000)
        metrics = [
            self._entities.Metric(name, value, now, step)
            for name, value in values.items()
        ]
        self._client.log_batch(self.id, metrics=metrics)

    def picture(self, step: int, name: str, path: str) -> None:
        """Add an image file."""
        self._client.log_artifact(self.id, path)

    def finish(self, code: int | None, reason: str) -> None:
        """End the run, see `backends.Tracker`."""
        self._client.set_tag(self.id, "end", reason[:_MOST_CHARACTERS])
        self._client.set_terminated(self.id, _STATUS.get(code, "FAILED"))

"""The folder that becomes a repository: weights, run record, results and card."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from dinov2_jax import files
from dinov2_jax.convert import destination, export
from dinov2_jax.embed import extraction
from dinov2_jax.hub import card, evaluations, lineage, private_paths, run_record
from dinov2_jax.weights import hub_repository, reading

EVALUATIONS = "evaluation"  # folder of the results


def write(
    path: pathlib.Path,
    name: str,
    source: str,
    weights: reading.Weights,
    *,
    results: Sequence[pathlib.Path] = (),
    license: str = "",
    skip: str = "",
) -> dict[str, Any]:
    """Write everything that a repository gets, and verify its weights.

    Heads among the parameters go into a folder of their own, an export of this project
    with the backbone, because transformers has no place for them.

    Args:
      path: Folder to make.
      name: The repository, "ORG/NAME".
      source: Source of the weights, as the user named it.
      weights: The weights, and the heads that are to be in it.
      results: Results of evaluations, see `evaluations.given`.
      license: Licence of the weights as the hub writes it; "" if none was chosen.
      skip: Reason not to verify the weights; empty verifies them.

    Returns:
      The report of the export, see `convert.export.export`.

    Raises:
      UserError: A record is damaged, results are of other weights, transformers has no
        such model, or it computes other features.
    """
    run = run_record.find(source)
    backbone = weights.params["backbone"]
    digest = extraction.digest(backbone)
    found = [*evaluations.given(results, digest)]
    if run:
        found += [
            e
            for e in evaluations.inside(run.workdir, digest)
            if e.content not in [other.content for other in found]
        ]
        if weights.which != "student":
            found += evaluations.during_training(run)
    ancestors = lineage.trace(source)
    heads = sorted(weights.params.keys() - {"backbone"})
    public_source = private_paths.remove(source)
    alone = dataclasses.replace(weights, params={"backbone": backbone})
    report = export.export(
        {weights.which: alone},
        destination.Destination(path, is_file=False, target="huggingface"),
        source=public_source,
        skip=skip,
    )
    if heads:
        export.export(
            {weights.which: weights},
            destination.Destination(
                path / hub_repository.NATIVE, is_file=False, target="orbax"
            ),
            source=public_source,
            heads=True,
            skip=skip,
        )
    if run:
        config = json.loads((run.workdir / "config.json").read_text())
        _write_json(path / card.TRAINING_CONFIG, config)
    for i, evaluation in enumerate(e for e in found if e.content):
        (path / EVALUATIONS).mkdir(exist_ok=True)
        file = path / EVALUATIONS / f"{i + 1}-{evaluation.task}.json"
        _write_json(file, evaluation.content)
    facts = card.Facts(
        name=name,
        source=source,
        weights=weights,
        num_params=sum(int(np.size(leaf)) for leaf in jax.tree.leaves(backbone)),
        digest=digest,
        heads=heads,
        report=report,
        run=run,
        ancestors=ancestors,
        evaluations=found,
        license=license,
    )
    files.write_text(path / "README.md", card.text(facts))
    return report


def _write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    files.write_text(path, json.dumps(private_paths.remove(content), indent=1) + "\n")

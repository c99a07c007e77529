"""The model card, README.md of a repository: what the model is and how it was made."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import yaml

from dinov2_jax.hub import card_code, evaluations, lineage, private_paths, run_record
from dinov2_jax.models import model_config
from dinov2_jax.weights import reading

TRAINING_CONFIG = "training_config.json"
_PROJECT = "https://github.com/dinov2-jax/dinov2_jax"
_NAMES = {
    "vit_small": "ViT-S",
    "vit_base": "ViT-B",
    "vit_large": "ViT-L",
    "vit_giant2": "ViT-g",
}


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a card is about.

    Attributes:
      name: The repository, "ORG/NAME".
      source: Source of the weights, as the user named it.
      weights: The weights.
      num_params: Number of parameters of the backbone.
      digest: SHA-256 of the backbone, `embed.extraction.digest`.
      heads: Names of the heads that are in the repository.
      report: Report of the export, see `convert.export.export`.
      run: The run that made the weights; None if they are of no run.
      ancestors: What the weights came from.
      evaluations: What was measured of them.
      license: Licence that the user chose, as the hub writes it; "" for none.
    """

    name: str
    source: str
    weights: reading.Weights
    num_params: int
    digest: str
    heads: Sequence[str]
    report: dict[str, Any]
    run: run_record.Run | None
    ancestors: Sequence[lineage.Ancestor]
    evaluations: Sequence[evaluations.Evaluation]
    license: str = ""


def text(facts: Facts) -> str:
    """Return the card, Markdown with the hub's metadata in front."""
    metadata = yaml.safe_dump(_metadata(facts), sort_keys=False)
    parts = [
        f"# {facts.name.partition('/')[2]}",
        _summary(facts),
        "## Model",
        _table(_model(facts)),
        "## Use",
        card_code.usage(facts.name, facts.weights.module.config, facts.report),
        "## Training",
        _training(facts.run),
        "## Evaluation",
        _evaluations(facts.evaluations),
        "## Origin and licence",
        _origin(facts),
    ]
    body = private_paths.remove_from_prose("\n\n".join(parts))
    return f"---\n{metadata}---\n\n{body}\n"


def license_of(facts: Facts) -> str:
    """Return the licence of the weights as the hub writes it; "" if it is unknown."""
    released = lineage.released_name(facts.source)
    return facts.license or (lineage.RELEASED_LICENSE if released else "")


def _metadata(facts: Facts) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["dinov2", "dinov2_jax", "jax"],
    }
    if license_of(facts):
        fields["license"] = license_of(facts)
    continued = [
        lineage.hub_name(a.released)
        for a in facts.ancestors
        if a.released and a.relation == lineage.CONTINUES
    ]
    if continued:
        fields |= {"base_model": continued[0], "base_model_relation": "finetune"}
    return fields


def _summary(facts: Facts) -> str:
    m = facts.weights.module.config
    return (
        f"A {_architecture(m)} of the DINOv2 family with {_count(facts.num_params)} "
        "parameters, which turns images into features. Written by "
        f"[dinov2_jax]({_PROJECT})."
    )


def _architecture(m: model_config.ModelConfig) -> str:
    """Return a name such as "ViT-S/14 with 4 registers"."""
    sizes = {size: _NAMES[arch] for arch, size in model_config.ARCHS.items()}
    name = sizes.get((m.embed_dim, m.depth, m.num_heads), "ViT")
    registers = f" with {m.num_register_tokens} registers" * bool(m.num_register_tokens)
    return f"{name}/{m.patch_size}{registers}"


def _count(number: int) -> str:
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number:,}"


def _model(facts: Facts) -> dict[str, Any]:
    m, prepare = facts.weights.module.config, facts.weights.preprocessing
    ffn = {"mlp": "MLP (GELU)", "swiglufused": "SwiGLU"}[m.ffn_layer]
    fields = {
        "Architecture": f"{_architecture(m)}: width {m.embed_dim}, {m.depth} blocks, "
        f"{m.num_heads} heads, {ffn}",
        "Parameters": f"{facts.num_params:,}",
        "Patch size": f"{m.patch_size} px",
        "Resolution": f"position embeddings for {m.image_size} x {m.image_size} px; "
        f"other multiples of {m.patch_size} px are interpolated",
        "Preparation of images": f"short side to {prepare.resize_size} px, central "
        f"crop of {prepare.crop_size} px, mean {_numbers(prepare.mean)}, deviation "
        f"{_numbers(prepare.std)}",
    }
    if m.in_chans != 3:
        fields["Channels"] = m.in_chans
    if facts.weights.which:
        owner = {"teacher": "teacher (EMA of the student)"}
        fields["Weights of"] = owner.get(facts.weights.which, facts.weights.which)
    if facts.heads:
        fields["Heads"] = f"{', '.join(facts.heads)}, in the folder `native`"
    fields["Digest of the weights"] = f"sha256 {facts.digest[:16]}"
    fields["Check of these files"] = describe_check(facts.report)
    return fields


def describe_check(report: dict[str, Any]) -> str:
    """Return how an export was verified, and with what result."""
    checked = report["verified"]
    if "skipped" in checked:
        return f"not verified: {checked['skipped']}"
    packages = " and ".join(f"{k} {v}" for k, v in checked["packages"].items())
    worst = max(checked["relative_error"].values())
    return f"features compared with those of {packages}: relative error {worst:.1e}"


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _training(run: run_record.Run | None) -> str:
    if run is None:
        return (
            "Unknown: the weights were pushed from a file or a folder without the "
            "record of a training run."
        )
    config, data = run.config, run.data
    batch = config["train.batch_size"]
    crops = (
        f"2 of {config['crops.global_crops_size']} px and "
        f"{config['crops.local_crops_number']} of {config['crops.local_crops_size']} px"
    )
    fields = {
        "Objective": "distillation from a frozen teacher "
        f"({config['distill.objective']})"
        if config["distill.source"]
        else "DINOv2 (self-distillation, without labels)"
        if config["train.objective"] == "prototypes"
        else config["train.objective"],
        "Steps": f"{run.step:,} of {config['train.steps']:,}"
        + ", the best of the run's evaluations" * run.is_best,
        "Batch": f"{batch:,} images; {batch * run.step:,} seen in all",
        "Images": private_paths.remove_known(
            data.get("description", "unknown"), config
        ),
        "Digest of the data": data.get("fingerprint", "unknown"),
        "Crops": crops,
        "Trained": {"all": "the whole backbone"}.get(
            config["optim.trainable"], config["optim.trainable"]
        ),
        "Optimizer": f"{config['optim.name']}, base learning rate "
        f"{config['optim.base_lr']:g}",
    }
    every = f"Every field of the config is in `{TRAINING_CONFIG}`."
    return f"{_table(fields)}\n\n{every}"


def _evaluations(found: Sequence[evaluations.Evaluation]) -> str:
    if not found:
        return "No results were given for these weights."
    parts = [_evaluation(evaluation) for evaluation in found]
    if any(evaluation.content for evaluation in found):
        parts.append("The folder `evaluation` has the whole results.")
    return "\n\n".join(parts)


def _evaluation(found: evaluations.Evaluation) -> str:
    numbers = {
        f"`{name}`": "not finite" if value is None else f"{value:.4f}"
        for name, value in found.numbers.items()
    }
    settings = "; ".join(
        f"{name}: {', '.join(map(str, v)) if isinstance(v, list) else v}"
        for name, v in private_paths.remove(found.settings).items()
    )
    parts = [
        f"### {found.task}",
        _table(numbers, ("Number", "Value")),
        *(f"Note: {note}" for note in private_paths.remove(found.notes)),
        f"Protocol: {found.protocol}. {settings}.",
    ]
    return "\n\n".join(parts)


def _origin(facts: Facts) -> str:
    license_name = license_of(facts)
    first = f"Licence of these weights: {license_name or 'unknown, none was stated'}."
    released = lineage.released_name(facts.source)
    if released:
        origin = f"They are those of {_released(released)}."
    elif facts.ancestors:
        lines = [f"- {_ancestor(a)}" for a in facts.ancestors]
        origin = "\n".join(lines)
    elif facts.run:
        origin = (
            "The run started from random weights, and had no teacher but the moving "
            "average of its own: no other weights are in these."
        )
    else:
        origin = (
            f"They were read from `{private_paths.remove(facts.source)}`; where that "
            "came from is not recorded."
        )
    images = "The licences of the training images are not recorded."
    return "\n\n".join([first, origin, images])


def _ancestor(ancestor: lineage.Ancestor) -> str:
    child, source = private_paths.remove([ancestor.child, ancestor.source])
    child = f"Those of `{child}`" if child else "They"
    text = f"{child} {ancestor.relation} "
    if ancestor.released:
        return f"{text}{_released(ancestor.released)}."
    known = "a run of dinov2_jax" if ancestor.is_run else "licence and origin unknown"
    return f"{text}`{source}` ({known})."


def _released(name: str) -> str:
    page = f"https://huggingface.co/{lineage.hub_name(name)}"
    return f"[{name}]({page}), released by Meta under Apache-2.0"


def _table(rows: dict[str, Any], columns: Sequence[str] = ("", "")) -> str:
    lines = [f"| {' | '.join(columns)} |", "|---|---|"]
    for name, value in rows.items():
        cell = " ".join(str(value).split()).replace("|", "\\|")
        lines.append(f"| {name} | {cell} |")
    return "\n".join(lines)

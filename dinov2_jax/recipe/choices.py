"""The values of a run's config, each with its reason."""

import dataclasses
from typing import Any

from dinov2_jax.config import checking, config_file
from dinov2_jax.recipe import plan, rules, sizing
from dinov2_jax.recipe import request as request_lib

_NAMES = {
    "vit_small": "ViT-S",
    "vit_base": "ViT-B",
    "vit_large": "ViT-L",
    "vit_giant2": "ViT-g",
}
_PASSES = 200  # of the reference's short run over ImageNet-1k: 256 of 1.28 M images


@dataclasses.dataclass(frozen=True)
class Choice:
    """Fields that are set for the same reason.

    Attributes:
      reason: Why they have these values, a sentence.
      fields: Name of a field, such as "optim.base_lr" -> its value.
    """

    reason: str
    fields: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A config with the reasons for what differs from the default.

    Attributes:
      request: What was asked for.
      title: The run in a line.
      choices: The choices, in the order of the config's sections.
      default: The default config.
      config: The config with all choices, checked.
    """

    request: request_lib.Request
    title: str
    choices: list[Choice]
    default: Any
    config: Any

    @property
    def images_seen(self) -> int:
        """Images that the run sees, repetitions included."""
        return self.config.train.steps * self.config.train.batch_size

    @property
    def images_per_second(self) -> float:
        """Images per second, by estimate."""
        peak = plan.peak_flops(self.request.peak_name)
        return plan.images_per_second(self.config, peak, self.request.mfu)

    @property
    def hours(self) -> float:
        """Hours of the steps alone, by estimate."""
        return self.images_seen / self.images_per_second / 3600

    @property
    def advice(self) -> list[str]:
        """What to consider before the run starts, a sentence each."""
        advice = []
        if self.request.images < rules.FEW_IMAGES:
            advice.append(
                f"Use frozen features first: {self.request.images:,} images are few, "
                "and training is unlikely to beat the features of a released model. "
                "See dinov2-jax embed and dinov2-jax evaluate."
            )
        if self.request.trained:
            advice.append(
                "Compare knn/top1 with its value at step 0: continued training may "
                "lower it."
            )
        passes = self.images_seen / self.request.images
        if passes > 2 * _PASSES:
            advice.append(
                f"The run sees every image {passes:,.0f} times; the reference's short "
                f"run makes {_PASSES} passes over ImageNet-1k. Fewer hours may do."
            )
        return advice


def make_recipe(request: request_lib.Request) -> Recipe:
    """Choose all values for a request.

    Raises:
      UserError: The request does not fit the memory or the hours.
    """
    default = config_file.read("default", [])
    config = default.copy_and_resolve_references()
    choices = [*_model(request), *_heads(request)]
    _apply(config, choices)
    config = sizing.choose_batch(config, request)
    steps = sizing.choose_steps(config, request)
    choices += [
        *_batch(request, config),
        *_length(request, config, steps),
        *_teacher(request, config, steps),
        *_optimizer(request, steps),
    ]
    _apply(config, choices)
    checking.check(config)
    start = f"from {request.source}" if request.trained else "from scratch"
    model = f"{_NAMES[request.size]}/{request.model.patch_size}"
    title = f"{model} {start} on {request.images:,} images, one {request.memory:g} GB"
    return Recipe(request, f"{title} device.", choices, default, config)


def _apply(config: Any, choices: list[Choice]) -> None:
    for choice in choices:
        for name, value in choice.fields.items():
            section, field = name.split(".")
            config[section][field] = value


def _model(request: request_lib.Request) -> list[Choice]:
    """Choose the weights to start from, the architecture and the crops."""
    found = []
    if request.trained:
        found.append(
            Choice(
                "Released weights. Their heads were not released: heads are new.",
                {"init.source": request.source},
            )
        )
    model = request.model
    fields: dict[str, Any] = {f"model.{k}": v for k, v in _options(model).items()}
    words = "Size by --arch, patches as in the released models."
    if request.trained:
        words = "That of the weights."
    found.append(Choice(words, {"model.arch": request.size, **fields}))
    found.append(
        Choice("A multiple of the patch size.", {"crops.local_crops_size": 98})
    )
    found.append(
        Choice(
            "0.6 of the memory of keeping all activations, and hardly slower.",
            {"model.remat": "selective"},
        )
    )
    return found


def _options(model: Any) -> dict[str, Any]:
    """Return the options of an architecture that a recipe may have to set."""
    names = (
        *("patch_size", "ffn_layer", "num_register_tokens"),
        *("interpolate_offset", "interpolate_antialias"),
    )
    return {name: getattr(model, name) for name in names}


def _heads(request: request_lib.Request) -> list[Choice]:
    prototypes = rules.num_prototypes(request.images)
    return [
        Choice(
            f"Prototypes: the power of two nearest to an eighth of {request.images:,} "
            "images, from 1,024 to 65,536. A guess.",
            {"dino.head_n_prototypes": prototypes},
        )
    ]


def _batch(request: request_lib.Request, config: Any) -> list[Choice]:
    """Choose the batch, its groups and what depends on them."""
    batch, group = config.train.batch_size, config.train.group_size
    parts = config.train.micro_batches
    needed = plan.needed_bytes(config) / 1e9
    why = (
        f"the largest that fits and, above {sizing.WANTED_BATCH}, leaves "
        f"{sizing.MANY_STEPS:,} steps"
    )
    if request.batch:
        why = "the batch asked for"
    elif parts > 1:
        why = f"{batch}, although fewer fit at once"
    found = [
        Choice(
            f"Images per step: {why}. It needs about {needed:.1f} GB of "
            f"{request.memory:g}.",
            {"train.batch_size": batch},
        )
    ]
    if parts > 1:
        at_once = plan.needed_bytes(sizing.with_batch(config, request, batch)) / 1e9
        found.append(
            Choice(
                f"Parts of {batch // parts} images, one after the other, with the "
                f"numbers of the whole batch, which would need {at_once:.1f} GB.",
                {"train.micro_batches": parts},
            )
        )
    if group == 1:
        found += [
            Choice(
                "Images per group: no other number up to 32 divides the batch.",
                {"train.group_size": group},
            ),
            Choice(
                "KoLeo is off. It keeps an image away from its nearest neighbour in "
                "the group, and a group of one image has no neighbour.",
                {"dino.koleo_loss_weight": 0.0},
            ),
        ]
    else:
        found.append(
            Choice(
                "Images among which KoLeo looks for neighbours; 32 in the reference's "
                "ViT-L/14.",
                {"train.group_size": group},
            )
        )
    rate = config.model.drop_path_rate
    why = "0.1 for S and B, 0.3 for L, so that small models learn. A guess."
    if request.trained:
        why = "off, as in the distillation from which the released S, B and L come."
    elif not rate:
        why = f"off: a group of {group} has too few crops to drop so small a share."
    found.append(Choice(f"Stochastic depth: {why}", {"model.drop_path_rate": rate}))
    prototypes = config.dino.head_n_prototypes
    mode, queued = rules.balancing(prototypes, batch)
    limit = f"{rules.MOST_PROTOTYPES_PER_ROW} times the {2 * batch:,} class tokens"
    targets: dict[str, Any] = {"train.centering": mode}
    if mode == "centering":
        why = (
            f"{prototypes:,} prototypes are more than {limit} of a batch, even with "
            f"those of {rules.MOST_QUEUED} others: targets of Sinkhorn-Knopp would "
            "follow noise. A guess."
        )
    elif queued:
        targets["dino.sinkhorn_queue"] = queued
        why = (
            f"{prototypes:,} prototypes are more than {limit} of a batch, so "
            "Sinkhorn-Knopp balances those of the last batches too: the best targets "
            "at 8 images in a small study (docs/learning.md). Masked patches are "
            "numerous enough without a queue."
        )
    else:
        why = f"{prototypes:,} prototypes are at most {limit} of a batch. A guess."
    found.append(Choice(why, targets))
    return found


def _length(request: request_lib.Request, config: Any, steps: int) -> list[Choice]:
    """Choose the steps and what happens every so many of them."""
    peak = plan.peak_flops(request.peak_name)
    rate = plan.images_per_second(config, peak, request.mfu)
    seen = steps * config.train.batch_size
    hours = f"{seen / rate / 3600:.1f} hours at {rate:,.0f} images/s"
    why = (
        f"{hours}, which is {request.mfu:.0%} of {peak / 1e12:g} TFLOP/s: an "
        f"assumption. {seen / 1e6:,.1f} M images, {seen / request.images:,.0f} passes "
        "over yours."
    )
    if request.trained and steps == sizing.MANY_STEPS:
        why = f"As in the paper's high-resolution phase, not more. {why}"
    every = steps // 10
    labelled = "if evaluation.train_path and val_path name labelled images"
    found = [
        Choice(why, {"train.steps": steps}),
        Choice(f"Ten evaluations, {labelled}.", {"evaluation.every": every}),
        Choice("Besides one every ten minutes.", {"checkpoint.every": every}),
    ]
    if request.trained:
        found[1] = Choice(
            f"Ten evaluations: patches matched, and k-NN {labelled}. The best weights "
            "are kept, so that the result is not worse than the start, as in "
            "configs/adapt.py.",
            {
                "evaluation.every": every,
                "evaluation.tasks": ("knn", "matching"),
                "checkpoint.keep_best": "all",
            },
        )
    return found


def _teacher(request: request_lib.Request, config: Any, steps: int) -> list[Choice]:
    """Choose the momentum and the temperatures of the teacher."""
    batch = config.train.batch_size
    seen = steps * batch
    horizon = rules.ema_horizon(seen)
    first, last = rules.teacher_temperatures(request.images)
    if request.images < rules.SMALL_SET:
        why = f"Sharp targets: fewer than {rules.SMALL_SET:,} images. A guess."
    else:
        why = f"The reference's: {rules.SMALL_SET:,} images or more."
    return [
        Choice(
            f"The teacher averages over {horizon:,.0f} images, 1 - batch / images: "
            "256,000 as in the reference's short run, or "
            f"{100 * rules.HORIZON_SHARE:g} % of the images of a run if that is less. "
            "A guess.",
            {
                "teacher.momentum_teacher": round(
                    rules.ema_momentum(batch, seen), ndigits=6
                )
            },
        ),
        Choice(
            why,
            {"teacher.warmup_teacher_temp": first, "teacher.teacher_temp": last},
        ),
        Choice(
            "30 % of the steps, as in the reference.",
            {"teacher.warmup_teacher_temp_steps": round(0.3 * steps)},
        ),
    ]


def _optimizer(request: request_lib.Request, steps: int) -> list[Choice]:
    """Choose learning rates, their warm-up and weight decay."""
    end = rules.last_weight_decay(request.images, trained=request.trained)
    if request.trained:
        rates = [
            Choice(
                "Only the new heads learn in the first tenth.",
                {"init.heads_only_steps": steps // 10},
            ),
            Choice(
                "At batch 1024, scaled by sqrt(batch / 1024): low, and lower towards "
                "the input, as in configs/adapt.py. A guess.",
                {"optim.base_lr": 2e-4, "optim.layerwise_decay": 0.8},
            ),
            Choice(
                "A fifth of the steps. The backbone starts half-way.",
                {"optim.warmup_steps": steps // 5},
            ),
            Choice(
                "The prototypes learn with the heads.",
                {"optim.freeze_last_layer_steps": 0},
            ),
        ]
        why = "Constant, as in configs/adapt.py."
    else:
        rates = [
            Choice(
                "At batch 1024, scaled by sqrt(batch / 1024): half the reference's, "
                "for batches a tenth of its. A guess.",
                {"optim.base_lr": 2e-3},
            ),
            Choice(
                "10 % of the steps, as in the reference.",
                {"optim.warmup_steps": steps // 10},
            ),
            Choice(
                "1 % of the steps, as in the reference.",
                {"optim.freeze_last_layer_steps": steps // 100},
            ),
        ]
        why = f"Constant: fewer than {rules.MEDIUM_SET:,} images. A guess."
        if request.images >= rules.MEDIUM_SET:
            why = "Rises from 0.04, as in the reference's ViT-L/14."
    decay = Choice(f"Weight decay. {why}", {"optim.weight_decay_end": end})
    return [*rates, decay]

"""The training steps that are measured, and their sizes for each contestant."""

import ast
import dataclasses
import importlib
from collections.abc import Sequence
from typing import Any

from benchmarks import settings


@dataclasses.dataclass(frozen=True)
class Workload:
    """A config at a batch size, which is one group.

    Attributes:
      name: Name for `--only`.
      config: Name of a file in configs/.
      batch_size: Images per step.
      overrides: Overridden fields, such as "model.drop_path_rate=0.0".
    """

    name: str
    config: str
    batch_size: int
    overrides: tuple[str, ...] = ()

    def arguments(self) -> list[str]:
        """Return the flags from which another process calls `make_config`."""
        return [
            f"--config={self.config}",
            f"--batch_size={self.batch_size}",
            *(f"--set={text}" for text in self.overrides),
        ]


CPU = (
    Workload("vits14-drop0", "vits", 4, ("model.drop_path_rate=0.0",)),
    Workload("vits14-drop0.3", "vits", 4, ("model.drop_path_rate=0.3",)),
)
GPU = (  # the most important first, in case time runs out
    Workload("vitl14", "vitl", 64),
    Workload("vitl16-short", "vitl16_short", 64),
    Workload("vitg14", "vitg", 32),
    Workload("vits14", "vits", 128),
    Workload("vitb14", "vitb", 128),
)
_TINY = (
    "model.arch=custom",
    "model.embed_dim=32",
    "model.depth=2",
    "model.num_heads=2",
    "crops.global_crops_size=56",
    "crops.local_crops_size=28",
    "crops.local_crops_number=2",
    "model.patch_size=14",
    *(
        f"{head}.{field}"
        for head in ("dino", "ibot")
        for field in (
            "head_n_prototypes=64",
            "head_bottleneck_dim=16",
            "head_hidden_dim=32",
        )
    ),
)


def chosen(args: settings.Settings) -> list[Workload]:
    """Return the workloads of a run."""
    found = []
    for workload in CPU if args.plan == "cpu" else GPU:
        if args.only and workload.name not in args.only:
            continue
        workload = tiny(workload) if args.tiny else workload
        overrides = (*workload.overrides, *args.overrides)
        found.append(dataclasses.replace(workload, overrides=overrides))
    return found


def tiny(workload: Workload) -> Workload:
    """Shrink a workload to a size that only tests the program."""
    overrides = (*workload.overrides, *_TINY)
    return dataclasses.replace(workload, batch_size=4, overrides=overrides)


def make_config(name: str, batch_size: int, overrides: Sequence[str]) -> Any:
    """Return a workload's config, with Sinkhorn-Knopp, which all contestants use."""
    config = importlib.import_module(f"configs.{name}").get_config()
    config.train.update(
        batch_size=batch_size, group_size=batch_size, centering="sinkhorn_knopp"
    )
    config.data.augmentation = "host"  # the contestants' steps take finished crops
    for text in overrides:
        path, _, value = text.partition("=")
        *sections, field = path.split(".")
        section = config
        for key in sections:
            section = section[key]
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            pass  # a string
        section.update({field: value})
    return config


def torch_sizes(config: Any) -> dict[str, Any]:
    """Return the arguments of `torch_peer.TorchPeer` for a config."""
    from dinov2_jax.models import model_config

    model, crops = config.model, config.crops
    dim, depth, heads = (
        (model.embed_dim, model.depth, model.num_heads)
        if model.arch == "custom"
        else model_config.ARCHS[model.arch]
    )

    def head(section: Any) -> list[int]:
        return [
            section.head_hidden_dim,
            section.head_bottleneck_dim,
            section.head_n_prototypes,
        ]

    return {
        "drop_path_rate": model.drop_path_rate,
        "embed_dim": dim,
        "depth": depth,
        "num_heads": heads,
        "patch_size": model.patch_size,
        "ffn_layer": model.ffn_layer,
        "global_size": crops.global_crops_size,
        "local_size": crops.local_crops_size,
        "num_local_crops": crops.local_crops_number,
        "layerscale": model.layerscale,
        "dino_head": head(config.dino),
        "ibot_head": head(config.ibot) if config.ibot.separate_head else None,
        "layerwise_decay": config.optim.layerwise_decay,
    }


def reference_sizes(config: Any) -> dict[str, Any]:
    """Return the arguments of `reference_peer.make_config` for a config."""
    model, crops = config.model, config.crops
    return {
        "arch": model.arch,
        "drop_path_rate": model.drop_path_rate,
        "num_prototypes": config.dino.head_n_prototypes,
        "patch_size": model.patch_size,
        "global_size": crops.global_crops_size,
        "local_size": crops.local_crops_size,
        "num_local_crops": crops.local_crops_number,
    }

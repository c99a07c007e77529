"""What users ask of a recipe, and the model that they mean."""

import dataclasses

from dinov2_jax import errors
from dinov2_jax.models import model_config
from dinov2_jax.weights import official

_LARGE_DEVICE = 40.0  # GB, from which a device is taken for an A100


@dataclasses.dataclass(frozen=True)
class Request:
    """The circumstances of a run on one device.

    Attributes:
      images: Images of the data set.
      memory: Memory of the device, GB.
      hours: Hours that training may take.
      device: Name in `flops.PEAK_FLOPS`, TFLOP/s as a text, or "": by the memory.
      mfu: Share of the device's peak FLOP/s that a step reaches.
      source: Released backbone to start from; "": random weights.
      arch: Size of the model, a key of `model_config.ARCHS`, unless there is a source.
      batch: Images of a step; 0: the recipe chooses.
    """

    images: int
    memory: float
    hours: float
    device: str = ""
    mfu: float = 0.45
    source: str = ""
    arch: str = "vit_small"
    batch: int = 0

    def __post_init__(self):
        if self.source and self.source not in official.NAMES:
            raise errors.UserError(
                f"--source={self.source}: no released backbone: give the one that your "
                f"weights are like, of {', '.join(official.NAMES)}, and set "
                "init.source in the config that is printed"
            )

    @property
    def trained(self) -> bool:
        """Whether the run starts from trained weights."""
        return bool(self.source)

    @property
    def peak_name(self) -> str:
        """The device, as `plan.peak_flops` takes it; 165 TFLOP/s is an RTX 4090."""
        return self.device or ("A100" if self.memory >= _LARGE_DEVICE else "165")

    @property
    def model(self) -> model_config.ModelConfig:
        """The architecture: that of the source, or patch 14 and the reference's MLP."""
        if self.source:
            return official.config(self.source)
        return model_config.ModelConfig(*model_config.ARCHS[self.arch])

    @property
    def size(self) -> str:
        """The name of the model's size in `model_config.ARCHS`."""
        model = self.model
        sizes = (model.embed_dim, model.depth, model.num_heads)
        return next(k for k, v in model_config.ARCHS.items() if v == sizes)

    def smaller(self) -> list["Request"]:
        """Return the same request for each smaller model, the largest first."""
        if not self.source:
            archs = list(model_config.ARCHS)
            names = archs[: archs.index(self.arch)][::-1]
            return [dataclasses.replace(self, arch=name) for name in names]
        registers = self.source.endswith("_reg")
        sources = [n for n in official.NAMES if n.endswith("_reg") == registers]
        names = sources[: sources.index(self.source)][::-1]
        return [dataclasses.replace(self, source=name) for name in names]

    @property
    def command(self) -> str:
        """The command line with this request."""
        flags = [f"--images {self.images} --device-memory {self.memory:g}"]
        flags.append(f"--hours {self.hours:g}")
        for field in dataclasses.fields(self)[3:]:
            value = getattr(self, field.name)
            if value != field.default and not (field.name == "arch" and self.source):
                flags.append(f"--{field.name} {value}")
        return " ".join(["dinov2-jax recipe", *flags])

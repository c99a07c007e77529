"""The architecture of a ViT: every option once, with its default and valid values.

The module, the readers and writers of weights, `convert` and the validation of configs
take the options from here. Mirrors the arguments of `DinoVisionTransformer` in the
reference's `models/vision_transformer.py`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

LARGEST = 2**20  # largest number accepted in a file


@dataclasses.dataclass(frozen=True)
class Rule:
    """The valid values of an option.

    Attributes:
      is_valid: Whether a value, of any type, is one of them.
      words: Description of them in messages, such as "true or false".
      in_tensors: Whether the names and shapes of a model's tensors determine the value.
    """

    is_valid: Callable[[Any], bool]
    words: str
    in_tensors: bool = True


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number of moderate size."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and -LARGEST <= value <= LARGEST  # false for NaN
    )


def whole_number(minimum: int, in_tensors: bool = True) -> Rule:
    """Return the rule for whole numbers from `minimum` to `LARGEST`."""
    return Rule(
        lambda value: type(value) is int and minimum <= value <= LARGEST,
        f"a whole number from {minimum} to {LARGEST}",
        in_tensors,
    )


def _flag(in_tensors: bool = True) -> Rule:
    return Rule(lambda value: isinstance(value, bool), "true or false", in_tensors)


def _one_of(*choices: str) -> Rule:
    return Rule(
        lambda value: isinstance(value, str) and value in choices, " or ".join(choices)
    )


def _option(rule: Rule, default: Any = dataclasses.MISSING) -> Any:
    return dataclasses.field(default=default, metadata={"rule": rule})


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The architecture of a ViT.

    Attributes:
      embed_dim: Width D of the tokens.
      depth: Number of blocks.
      num_heads: Number of attention heads; it divides `embed_dim`.
      patch_size: Side of a patch, px.
      image_size: Side of the square image that the position embeddings fit, px.
      in_chans: Number of channels of the images.
      ffn_layer: Kind of the FFN: "mlp" (exact GELU) or "swiglufused".
      ffn_ratio: Hidden width of the FFN over `embed_dim`.
      qkv_bias: Whether the projections to queries, keys and values have a bias.
      proj_bias: Whether the attention's output projection has a bias.
      ffn_bias: Whether the layers of the FFN have a bias.
      layerscale: Initial gamma of LayerScale; 0 builds none.
      num_register_tokens: Number of registers R.
      interpolate_offset: Offset of the interpolation of position embeddings, see
        `models.pos_embed`.
      interpolate_antialias: Whether to antialias it, see `models.pos_embed`.
    """

    embed_dim: int = _option(whole_number(1))
    depth: int = _option(whole_number(1))
    num_heads: int = _option(whole_number(1, in_tensors=False))
    patch_size: int = _option(whole_number(1), 14)
    image_size: int = _option(whole_number(1), 224)
    in_chans: int = _option(whole_number(1), 3)
    ffn_layer: str = _option(_one_of("mlp", "swiglufused"), "mlp")
    ffn_ratio: float = _option(
        Rule(lambda value: is_number(value) and value > 0, "a number above 0"), 4.0
    )
    qkv_bias: bool = _option(_flag(), True)
    proj_bias: bool = _option(_flag(), True)
    ffn_bias: bool = _option(_flag(), True)
    layerscale: float = _option(
        Rule(lambda value: is_number(value) and value >= 0, "0 or a number"), 1e-5
    )
    num_register_tokens: int = _option(whole_number(0), 0)
    interpolate_offset: float = _option(
        Rule(is_number, "a number", in_tensors=False), 0.1
    )
    interpolate_antialias: bool = _option(_flag(in_tensors=False), False)

    @property
    def grid_size(self) -> int:
        """Patches along a side of the image that the position embeddings fit."""
        return self.image_size // self.patch_size

    @property
    def hidden_dim(self) -> int:
        """Width of the hidden layer of an "mlp"."""
        return int(self.embed_dim * self.ffn_ratio)

    @property
    def gated_dim(self) -> int:
        """Width of the hidden layer of a "swiglufused" that replaces such an MLP."""
        return gated_width(self.hidden_dim)

    def replace(self, **options: Any) -> "ModelConfig":
        """Return a copy with other values of some options."""
        return dataclasses.replace(self, **options)

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain values."""
        return dataclasses.asdict(self)


RULES: dict[str, Rule] = {
    field.name: field.metadata["rule"] for field in dataclasses.fields(ModelConfig)
}
# Options that no tensor determines, so files must state them.
NOT_IN_TENSORS = tuple(name for name, rule in RULES.items() if not rule.in_tensors)
SIZES = ("embed_dim", "depth", "num_heads")

# Name -> `SIZES` of the reference's `vit_small` ... `vit_giant2`.
ARCHS = {
    "vit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
    "vit_giant2": (1536, 40, 24),
}


def gated_width(hidden_dim: int) -> int:
    """Return two thirds of an MLP's hidden width, rounded up to a multiple of 8."""
    return (int(hidden_dim * 2 / 3) + 7) // 8 * 8


def inconsistency(options: Mapping[str, Any]) -> str:
    """Describe a conflict between options that are valid one by one; "" if none.

    Args:
      options: Some or all options.
    """
    width, heads = options.get("embed_dim", 0), options.get("num_heads", 1)
    if width % heads:
        return f"the width {width} is not a multiple of {heads} heads"
    side, patch = options.get("image_size", LARGEST), options.get("patch_size", 1)
    if side < patch:
        return f"images of {side} px are smaller than patches of {patch} px"
    return ""


def assumed_interpolation(registers: bool) -> dict[str, Any]:
    """Return the interpolation of position embeddings for files that do not state it.

    As in the reference's hub: antialiased with registers, with an offset of 0.1 without
    them.
    """
    return {
        "interpolate_offset": 0.0 if registers else 0.1,
        "interpolate_antialias": registers,
    }


def released(arch: str, registers: bool) -> ModelConfig:
    """Return the architecture of a released model.

    Args:
      arch: Name of its size, a key of `ARCHS`.
      registers: Whether it has the four registers.
    """
    return ModelConfig(
        *ARCHS[arch],
        image_size=518,
        ffn_layer="swiglufused" if arch == "vit_giant2" else "mlp",
        num_register_tokens=4 if registers else 0,
        **assumed_interpolation(registers),
    )


def make_model_config(config: Any) -> ModelConfig:
    """Return the architecture in `config.model`, for global crops of `config.crops`."""
    model = config.model
    options = {name: getattr(model, name) for name in RULES if name != "image_size"}
    if model.arch != "custom":
        options |= dict(zip(SIZES, ARCHS[model.arch], strict=True))
    return ModelConfig(image_size=config.crops.global_crops_size, **options)

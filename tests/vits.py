"""ViTs of any options, those of the architecture beside those of its execution."""

from dinov2_jax.models import model_config, vision_transformer


def make(**options):
    """Return a module with any options of `ModelConfig` and `VisionTransformer`."""
    architecture = {n: options.pop(n) for n in model_config.RULES if n in options}
    return vision_transformer.VisionTransformer(
        model_config.ModelConfig(**architecture), **options
    )


def changed(module, **options):
    """Return a copy of a module with some options changed."""
    architecture = {n: options.pop(n) for n in model_config.RULES if n in options}
    return module.clone(config=module.config.replace(**architecture), **options)

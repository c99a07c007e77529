"""The configs of several students that learn from one teacher in one program."""

from typing import Any

from dinov2_jax import errors
from dinov2_jax.config import checking, config_file
from dinov2_jax.runtime import workdir

# Parts of a config in which students may differ, and fields there that batches and
# targets depend on, which are shared.
_OWN = ("model.", "optim.", "dino.", "ibot.", "distill.features.")
_SHARED = (
    *("model.patch_size", "model.in_chans", "model.dtype", "dino.head_n_prototypes"),
    *("dino.loss_weight", "dino.local_loss_weight"),
    *("ibot.loss_weight", "ibot.mask_"),
    *("ibot.separate_head", "ibot.head_n_prototypes"),
    *("distill.features.standardize", "distill.features.calibration_images"),
)


def configs(config: Any) -> dict[str, Any]:
    """Return the config of each student; {"": config} if there is one without a name.

    Args:
      config: A checked config.

    Raises:
      UserError: A student's entry is not of the form that `distill.students` takes.
    """
    found: dict[str, Any] = {}
    for entry in config.distill.students:
        pair = isinstance(entry, list | tuple) and len(entry) == 2
        if not (pair and all(isinstance(part, str) for part in entry)):
            raise errors.UserError(
                f"distill.students has {entry!r}: each entry is a name and settings, "
                "('small', 'model.arch=vit_small')"
            )
        name, settings = entry
        if not name.isidentifier() or name in found:
            raise errors.UserError(
                f"distill.students: {name!r} must be a name of letters, digits and _, "
                "different for each student"
            )
        if name in workdir.FOLDERS:
            raise errors.UserError(
                f"distill.students: {name!r} is a folder of every run, where the "
                "student would be exported: choose another name"
            )
        for setting in settings.split():
            field = setting.partition("=")[0]
            if not field.startswith(_OWN) or field.startswith(_SHARED):
                raise errors.UserError(
                    f"distill.students: {name} sets {field}, which all students share: "
                    f"set --config.{field} instead"
                )
        own = config.copy_and_resolve_references()
        own.distill.students = ()
        try:
            config_file.apply(own, [f"--config.{text}" for text in settings.split()])
            checking.check(own)
        except errors.UserError as error:
            raise errors.UserError(f"distill.students: {name}: {error}") from error
        found[name] = own
    return found or {"": config}

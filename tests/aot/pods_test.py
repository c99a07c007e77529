"""ViT-L and ViT-g train steps compiled for TPU pods that nobody here has.

Quick compilations, which send what full ones send or more. Each takes a minute or more
of a core; depth costs nothing, because the blocks are a scan. `aot_program_test` has a
small model for eight chips with the same demands, in every run of the tests.
"""

import programs
import pytest

from dinov2_jax.models.model_config import ARCHS

# Config, slice, images a chip, and what it needs to fit there.
PODS = {
    "vitl-v5e": ("vitl", "v5e:4x4", 12, ("model.remat=selective",)),
    "vitl-v5p": ("vitl", "v5p:2x2x2", 32, ()),
    "vitl-v6e": ("vitl", "v6e:4x4", 32, ("model.remat=selective",)),
    "vitg-v5e-256": (
        "vitg",
        "v5e:16x16",
        12,
        ("model.remat=selective", "mesh.replica=16"),
    ),
    "vitg-v5p": ("vitg", "v5p:2x2x2", 32, ("model.remat=selective",)),
    "vitg-v6e": ("vitg", "v6e:4x4", 12, ("model.remat=selective",)),
}
# Stages at 518 and 98 px: preset, images a device and remat policy on each machine.
HIGH = {
    "v5p:2x2x2": {
        "vits": (64, "none"),
        "vitb": (64, "none"),
        "vitl": (32, "none"),
        "vitg": (12, "selective"),
    },
    "v6e:4x4": {
        "vits": (48, "none"),
        "vitb": (32, "selective"),
        "vitl": (12, "selective"),
        "vitg": (6, "selective"),
    },
    "h200:8": {
        "vits": (128, "none"),
        "vitb": (64, "none"),
        "vitl": (64, "selective"),
        "vitg": (12, "selective"),
    },
}


@pytest.mark.slow
@programs.needs_libtpu
@pytest.mark.parametrize(
    "config, topology, images, overrides", PODS.values(), ids=PODS.keys()
)
def test_a_step_for_a_pod(config, topology, images, overrides, tmp_path):
    devices = programs.devices(topology)
    report = programs.report(
        tmp_path,
        f"--config=configs/{config}.py",
        f"--topology={topology}",
        "--quick",
        "--no-search",
        f"--config.train.batch_size={devices * images}",
        f"--config.train.group_size={images}",
        *(f"--config.{override}" for override in overrides),
    )
    table = report["stdout"]
    assert report["memory"]["share"] <= 0.95, table
    # Weights travel in bfloat16; images, and what is computed of them, stay.
    # The one exception: the gradients of the vectors of norms and LayerScale, at most
    # six a block, which come divided as the matrices that they are folded into.
    in_float32 = sum(row["bytes"] for row in report["float32_weight_gathers"])
    width, depth, _ = ARCHS[{"vitl": "vit_large", "vitg": "vit_giant2"}[config]]
    assert in_float32 <= 4 * 6 * depth * width, table
    assert report["activation_all_to_alls"] == [], table
    assert report["activation_gathers"] == [], table
    # Two gathers of the student, one of the teacher, one sum of the gradients, all in
    # bfloat16; a quarter more where the gradients are summed whole and then cut.
    needed = 4 * 2 * report["config"]["parameters"]
    sent = sum(row["sent"] for row in report["collectives"])
    assert sent <= 1.25 * needed, table


@pytest.mark.slow
@pytest.mark.parametrize("config", ["vits", "vitb", "vitl", "vitg"])
@pytest.mark.parametrize("topology", HIGH)
def test_a_high_resolution_step(config, topology, tmp_path):
    if "h200" in topology and not programs.has_cuda():
        pytest.skip("needs the compiler for GPUs")
    if "h200" not in topology and not programs.has_libtpu():
        pytest.skip("needs libtpu: pip install -r requirements-aot.txt")
    images, remat = HIGH[topology][config]
    report = programs.report(
        tmp_path,
        f"--config=highres:{config}",
        "--config.init.source=unread",
        f"--topology={topology}",
        "--quick",
        "--no-search",
        f"--config.train.batch_size={programs.devices(topology) * images}",
        f"--config.train.group_size={images}",
        f"--config.model.remat={remat}",
    )
    assert report["memory"]["share"] <= 0.95, report["stdout"]
    assert report["config"]["crops"] == [518, 98]
    kernel = "cudnn" if "h200" in topology else "pallas_tpu"
    assert report["attention"] == {"1370": kernel, "50": kernel}

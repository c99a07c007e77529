"""Estimates against compiled steps and against a table made before them."""

import re
import subprocess
import sys

import processes
import pytest

from configs import vits
from dinov2_jax import errors
from dinov2_jax.aot import machines
from dinov2_jax.recipe import compiled, plan
from dinov2_jax.runtime import flops

PROTOTYPES = {"vit_small": 16_384, "vit_base": 16_384, "vit_large": 65_536}
# Parts, parameters and GB of quick compilations for one v6e chip on 2026-11-28.
COMPILED = [
    ("vit_small", 64, 1, 31_349_248, 6.197),
    ("vit_small", 192, 1, 31_349_248, 16.898),
    ("vit_small", 192, 2, 31_349_248, 9.078),
    ("vit_small", 192, 6, 31_349_248, 3.660),
    ("vit_base", 96, 1, 96_232_192, 17.957),
    ("vit_base", 128, 4, 96_232_192, 7.785),
    ("vit_large", 32, 1, 326_891_776, 17.593),
    ("vit_large", 64, 2, 326_891_776, 18.407),
]
# TFLOP/s; GB; images/s at 45 %; hours of 100,000 steps.
TABLE = [
    ("vit_small", 192, 165, 17, 515, 10),
    ("vit_base", 96, 165, 19, 139, 19),
    ("vit_small", 256, 312, 22, 970, 7),
    ("vit_base", 160, 312, 29, 260, 17),
    ("vit_large", 64, 312, 30, 92, 19),
    ("vit_small", 512, 312, 43, 970, 15),
    ("vit_base", 256, 312, 45, 260, 27),
    ("vit_large", 128, 312, 52, 92, 39),
]


def make_config(arch, batch):
    config = vits.get_config()
    rate = 0.3 if arch == "vit_large" else 0.1
    config.model.update(arch=arch, drop_path_rate=rate, remat="selective")
    config.dino.head_n_prototypes = PROTOTYPES[arch]
    config.train.update(batch_size=batch, group_size=32)
    return config


@pytest.mark.parametrize("arch, batch, parts, parameters, gigabytes", COMPILED)
def test_memory_of_compiled_steps(arch, batch, parts, parameters, gigabytes):
    config = make_config(arch, batch)
    config.train.micro_batches = parts
    assert plan.num_weights(config) == pytest.approx(parameters, rel=0.01)
    assert plan.needed_bytes(config) / 1e9 == pytest.approx(gigabytes, rel=0.03)


@pytest.mark.parametrize("arch, batch, peak, gigabytes, rate, hours", TABLE)
def test_the_table(arch, batch, peak, gigabytes, rate, hours):
    config = make_config(arch, batch)
    assert plan.needed_bytes(config) / 1e9 == pytest.approx(gigabytes, rel=0.08)
    got = plan.images_per_second(config, peak * 1e12, 0.45)
    assert got == pytest.approx(rate, rel=0.03)
    assert 1e5 * batch / got / 3600 == pytest.approx(hours, rel=0.06)


def test_two_heads_have_more_weights():
    config = make_config("vit_small", 64)
    one = plan.num_weights(config)
    config.ibot.update(separate_head=True, head_n_prototypes=1024)
    head = 384 * 2048 + 2048**2 + 2048 * 256 + 256 * 1024
    assert plan.num_weights(config) == one + head


def test_peaks():
    assert plan.peak_flops("h200") == flops.PEAK_FLOPS["H200"] == 989e12
    assert plan.peak_flops("V6E") == 918e12
    assert plan.peak_flops("82.5") == 82.5e12
    for text in ("RTX", "nan", "-3", "165e12"):
        with pytest.raises(errors.UserError, match=f"--device={text}: .*A100"):
            plan.peak_flops(text)


def test_the_machine_to_compile_for():
    assert compiled.machine_for("v6e").name == "v6e:1x1"
    assert compiled.machine_for("v5p").name == "v5p:1x1x1"
    for other in ("165", "A100", "H200", "tpu7x"):  # a tpu7x chip is two devices
        assert compiled.machine_for(other).name == "h200:1"


@pytest.mark.slow
@pytest.mark.skipif(
    machines.libtpu() is None,
    reason="needs libtpu: pip install -r requirements-aot.txt",
)
@pytest.mark.parametrize("arch, batch", [("vit_small", 64), ("vit_base", 32)])
def test_estimate_and_compiler_agree(arch, batch):
    command = [sys.executable, "-m", "dinov2_jax.recipe", "--images=100000"]
    command += ["--device-memory=24", "--hours=8", "--device=v6e", "--verify"]
    command += [f"--arch={arch}", f"--batch={batch}"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=processes.as_users()
    )
    assert done.returncode == 0, done.stderr
    (needed,) = re.findall(r"Compiled for v6e:1x1, a step needs ([\d.]+)", done.stdout)
    estimate = plan.needed_bytes(make_config(arch, batch)) / 1e9
    assert float(needed) == pytest.approx(estimate, rel=0.05)

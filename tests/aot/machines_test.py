import subprocess
import sys

import programs
import pytest

from dinov2_jax import errors
from dinov2_jax.aot import machines


def test_names():
    machine = machines.parse("v5e:16x16")
    assert (machine.num_devices, machine.name) == (256, "v5e:16x16")
    assert machines.parse(" V5P:2x2x4 ").shape == (2, 2, 4)
    assert machines.parse("h200:8").num_devices == 8
    machine = machines.parse("tpu7x:2x2x1")  # two devices a chip
    assert (machine.num_devices, machine.name) == (8, "tpu7x:2x2x1")


def test_links_by_topology_axes():
    assert machines.parse("v5e:4x4").send_bandwidth == 180e9
    assert machines.parse("v5e:1x4").send_bandwidth == 90e9
    assert machines.parse("v5e:1x1").send_bandwidth == 0
    # The links of v5p, between two devices.
    halves = machines.parse("tpu7x:2x2x2"), machines.parse("v5p:2x2x2")
    assert 2 * halves[0].send_bandwidth == halves[1].send_bandwidth


def test_doubled():
    assert machines.parse("v5e:2x4").doubled().name == "v5e:4x4"
    assert machines.parse("v5p:2x2x2").doubled().name == "v5p:2x2x4"
    assert machines.parse("tpu7x:2x2x1").doubled().name == "tpu7x:2x2x2"
    assert machines.parse("h200:4").doubled().name == "h200:8"
    assert machines.parse("h200:8").doubled() is None
    assert machines.parse("v5e:16x16").doubled() is None


@pytest.mark.parametrize(
    "name, units",
    [
        ("v5e", 4 * 128 * 128),
        ("v5p", 2 * 4 * 128 * 128),
        ("v6e", 2 * 2 * 256 * 256),
        ("tpu7x", 4 * 256 * 256),
    ],
)
def test_the_clock_and_the_matrix_units_give_the_peak(name, units):
    chip = machines.CHIPS[name]
    assert chip.peak_flops == pytest.approx(2 * units * chip.clock, rel=0.01)


def test_every_chip_has_a_peak():
    assert all(chip.peak_flops > 1e14 for chip in machines.CHIPS.values())


@pytest.mark.parametrize(
    "text, name",
    [
        ("v5e", "v5e:16x16"),
        ("v5e:4by4", "v5e:16x16"),
        ("v9:4x4", "'v9'"),
        ("v5e:4x4x4", "v5e:AxB"),
        ("v5p:4x4", "v5p:AxBxC"),
        ("tpu7x:4x4", "tpu7x:AxBxC"),
        ("h200:0", "h200:A"),
    ],
)
def test_bad_names(text, name):
    with pytest.raises(errors.UserError, match=f"--topology={text}") as raised:
        machines.parse(text)
    assert name in str(raised.value)


def test_no_jax_before_the_environment_is_set():
    code = "import sys, dinov2_jax.aot.__main__\nassert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


TWO_SLICES = """
from dinov2_jax import sharding
from dinov2_jax.aot import machines

machines.prepare(machines.parse("v5e:2x2"))
from jax.experimental import topologies

found = topologies.get_topology_desc(
    platform="tpu", topology_name="v5e:2x2", num_slices=2
)
mesh = sharding.make_mesh(devices=found.devices[::-1])
print([[device.slice_index for device in row] for row in mesh.devices])
"""


@programs.needs_libtpu
def test_two_slices_hold_a_copy_of_the_state_each():
    run = subprocess.run(
        [sys.executable, "-c", TWO_SLICES], capture_output=True, text=True
    )
    assert run.stdout == "[[0, 0, 0, 0], [1, 1, 1, 1]]\n", run.stderr

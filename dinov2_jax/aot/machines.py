"""Machines that a step can be compiled for without access to them."""

import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import pathlib
import re
from typing import Any

from dinov2_jax import errors

_INSTALL_TPU = 'pip install -r requirements-aot.txt, or "dinov2-jax[aot]"'
_JAX = importlib.metadata.version("jax")
_INSTALL_GPU = f'pip install "jax[cuda13]=={_JAX}" (4.4 GB)'
# Read by libtpu if there is no TPU; the accelerator type may be any that it knows.
_ENVIRONMENT = {
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_LOG_DIR": "disabled",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of chip and its devices, by the maker's data sheet unless noted.

    Attributes:
      name: Name in --topology.
      peak: Name in `runtime.flops.PEAK_FLOPS`.
      platform: "tpu" or "cuda".
      compiler_name: Name that libtpu uses.
      hbm_bytes: Bytes that a program may use. TPUs: the limit in the compiler's error.
        GPUs: 0.92 of the memory, the share that training programs claim.
      hbm_bandwidth: Memory bandwidth in bytes/s.
      clock: Cycles/s at which the cores reach the peak; 0: no cycles are known.
      link_bandwidth: Bytes/s that a device sends over its links along one axis of the
        topology, both directions; if a chip's devices share links, its part of them.
      axes: Number of axes of a topology.
      devices: JAX devices on one chip.
    """

    name: str
    peak: str
    platform: str
    compiler_name: str
    hbm_bytes: float
    hbm_bandwidth: float
    clock: float
    link_bandwidth: float
    axes: int
    devices: int = 1

    @property
    def peak_flops(self) -> float:
        """Dense bfloat16 FLOP/s."""
        from dinov2_jax.runtime import flops  # imports jax: see `prepare`

        return flops.PEAK_FLOPS[self.peak]


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", "v5e", "tpu", "v5e", 15.75 * 2**30, 819e9, 1.5e9, 90e9, 2),
        Chip("v6e", "v6e", "tpu", "v6e", 31.24 * 2**30, 1640e9, 1.75e9, 180e9, 2),
        Chip("v5p", "v5p", "tpu", "v5", 95.73 * 2**30, 2765e9, 1.75e9, 180e9, 3),
        # A device is one of a chip's two cores. The sheet gives no clock. This one is
        # that of four 256 x 256 units, with which the compiler's cycles make sense
        # (docs/aot.md).
        Chip(
            "tpu7x", "tpu7x", "tpu", "tpu7x", 94.74 * 2**30, 3690e9, 2.2e9, 90e9, 3, 2
        ),
        Chip("h200", "H200", "cuda", "", 0.92 * 141e9, 4800e9, 0.0, 450e9, 1),
    )
}
# Chips of the largest machine that is proposed; of others there are far larger ones.
_MOST = {"v5e": 256, "v6e": 256, "h200": 8}
_EXAMPLES = "v5e:16x16, v6e:4x4, v5p:2x2x2, tpu7x:2x2x1, h200:8"


@dataclasses.dataclass(frozen=True)
class Machine:
    """Connected chips of one kind.

    Attributes:
      chip: The kind of chip.
      shape: Number of chips along each axis.
    """

    chip: Chip
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """The name in --topology."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def num_devices(self) -> int:
        """Number of JAX devices on all chips."""
        return math.prod(self.shape) * self.chip.devices

    @property
    def send_bandwidth(self) -> float:
        """Bytes/s that one device can send over the links of all axes at once."""
        return self.chip.link_bandwidth * sum(size > 1 for size in self.shape)

    def doubled(self) -> "Machine | None":
        """Return the next larger machine, with the shortest axis doubled, if any."""
        shape = list(self.shape)
        shape[shape.index(min(shape))] *= 2
        if math.prod(shape) > _MOST.get(self.chip.name, math.inf):
            return None
        return Machine(self.chip, tuple(sorted(shape)))


def parse(text: str) -> Machine:
    """Parse the name of a machine, such as "v5e:16x16".

    Raises:
      UserError: The chip or the shape is unknown.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", text.strip().lower())
    if not match:
        raise errors.UserError(
            f"--topology={text}: give a chip and a shape, for example {_EXAMPLES}"
        )
    chip = CHIPS.get(match[1])
    if chip is None:
        raise errors.UserError(
            f"--topology={text}: unknown chip {match[1]!r}: use one of "
            f"{', '.join(CHIPS)}, for example {_EXAMPLES}"
        )
    shape = tuple(int(size) for size in match[2].split("x"))
    if len(shape) != chip.axes or not all(shape):
        form = "x".join("ABC"[: chip.axes])
        raise errors.UserError(
            f"--topology={text}: {chip.name} has {chip.axes} "
            f"{'axes' if chip.axes > 1 else 'axis'}: write {chip.name}:{form}, for "
            f"example {_EXAMPLES}"
        )
    return Machine(chip, shape)


def prepare(machine: Machine) -> None:
    """Set the environment for the compiler; call it before jax is imported.

    Raises:
      UserError: The compiler for the machine is not installed.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["JAX_PLATFORMS"] = "cpu"  # jax itself runs on the host
    if machine.chip.platform == "cuda":
        if not importlib.util.find_spec("jax_cuda13_plugin"):
            raise errors.UserError(
                f"{machine.name} is compiled by jax's CUDA plugin, which is not "
                f"installed: {_INSTALL_GPU}"
            )
        return
    library = libtpu()
    if library is None:
        raise errors.UserError(
            f"{machine.name} is compiled by libtpu, which is not installed: "
            f"{_INSTALL_TPU}, or set TPU_LIBRARY_PATH to libtpu.so"
        )
    os.environ["TPU_LIBRARY_PATH"] = str(library)


def libtpu() -> pathlib.Path | None:
    """Find libtpu.so: TPU_LIBRARY_PATH, the checkout's .venv, or the package."""
    named = os.environ.get("TPU_LIBRARY_PATH")
    if named:
        path = pathlib.Path(named)
        if not path.is_file():
            raise errors.UserError(
                f"TPU_LIBRARY_PATH = {named}: no such file: {_INSTALL_TPU} and unset it"
            )
        return path
    repository = pathlib.Path(__file__).parents[2]
    beside = repository / ".venv/libtpu/libtpu/libtpu.so"
    if beside.is_file():
        return beside
    spec = importlib.util.find_spec("libtpu")
    if spec is None or not spec.origin:
        return None
    path = pathlib.Path(spec.origin).parent / "libtpu.so"
    return path if path.is_file() else None


def devices(machine: Machine) -> list[Any]:
    """Return stand-ins for the machine's devices, for compilation only.

    Raises:
      UserError: The compiler does not know the machine.
    """
    import jax
    from jax.experimental import topologies

    shape = "x".join(map(str, machine.shape))
    try:
        if machine.chip.platform == "cuda":
            target = pathlib.Path(__file__).with_name("h200.txtpb").read_text()
            described = topologies.get_topology_desc(
                platform="cuda", topology=f"1x1x{shape}", target_config=target
            )
        else:
            described = topologies.get_topology_desc(
                platform="tpu", topology_name=f"{machine.chip.compiler_name}:{shape}"
            )
    except (jax.errors.JaxRuntimeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise errors.UserError(
            f"--topology={machine.name}: the compiler does not know this machine "
            f"({reason}): use for example {_EXAMPLES}"
        ) from error
    return list(described.devices)

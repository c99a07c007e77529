"""Machines that a step can be compiled for without having them."""

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
# What libtpu reads where there is no TPU; the first is any machine that it knows.
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
    """One kind of chip and its devices, from the maker's data sheet unless noted.

    Attributes:
      name: As in --topology.
      peak: Its name in `runtime.flops.PEAK_FLOPS`.
      platform: "tpu" or "cuda".
      compiler_name: What libtpu calls it.
      hbm_bytes: That a program may use, as the compiler says it when one exceeds it;
        of GPUs 0.92 of the memory, the share to set XLA_PYTHON_CLIENT_MEM_FRACTION to.
      hbm_bandwidth: Bytes/s.
      clock: Cycles/s, for which the cores' width gives the peak; 0: no cycles known.
      link_bandwidth: Bytes/s that a device sends over its links along one axis of the
        topology, both directions; its share where a chip's devices have them together.
      axes: Lengths that a topology has; sizes and an axis of 1 may be left out.
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
        # A device is one of a chip's two cores. The sheet gives no clock: that of four
        # 256 x 256 units, for which the compiler's cycles make sense (docs/aot.md).
        Chip(
            "tpu7x", "tpu7x", "tpu", "tpu7x", 94.74 * 2**30, 3690e9, 2.2e9, 90e9, 3, 2
        ),
        Chip("h200", "H200", "cuda", "", 0.92 * 141e9, 4800e9, 0.0, 450e9, 1),
    )
}
_EXAMPLES = "v5e:16x16, v6e:4x4, v5p:2x2x2, tpu7x:2x2x1, h200:8"


@dataclasses.dataclass(frozen=True)
class Machine:
    """Some chips of one kind, connected.

    Attributes:
      chip: What each of them is.
      shape: Chips along each axis.
    """

    chip: Chip
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """As --topology takes it."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def num_devices(self) -> int:
        """JAX devices of all chips."""
        return math.prod(self.shape) * self.chip.devices

    @property
    def send_bandwidth(self) -> float:
        """Bytes/s that one device can send, over the links of all axes at once."""
        return self.chip.link_bandwidth * sum(size > 1 for size in self.shape)

    def doubled(self) -> "Machine":
        """The next larger one: its shortest axis doubled."""
        shape = list(self.shape)
        shape[shape.index(min(shape))] *= 2
        return Machine(self.chip, tuple(sorted(shape)))


def parse(text: str) -> Machine:
    """The machine that "v5e:16x16" names.

    Raises:
      UserError: Unknown chip or shape.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", text.strip().lower())
    if not match:
        raise errors.UserError(
            f"--topology={text}: name a chip and a shape, for example {_EXAMPLES}"
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
    """Sets what the compiler reads when jax is imported: call it before.

    Raises:
      UserError: The compiler for the machine is not installed.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["JAX_PLATFORMS"] = "cpu"  # what is here is only the host
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
    """libtpu.so: where the environment says, or of the installed package."""
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
    """Stand-ins of the machine's devices, to compile for and nothing else.

    Raises:
      UserError: The compiler knows no such machine.
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
            f"--topology={machine.name}: the compiler knows no such machine "
            f"({reason}): use for example {_EXAMPLES}"
        ) from error
    return list(described.devices)

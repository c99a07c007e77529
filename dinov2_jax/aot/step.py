"""Compilation of a config's train step for a machine that is not present."""

import contextlib
import dataclasses
import pathlib
import re
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from dinov2_jax import several_students, sharding
from dinov2_jax.aot import hlo, machines
from dinov2_jax.distillation import frozen_teacher

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)"
# XLA for TPUs has two messages for a program that is too large.
_TOO_LARGE = (
    re.compile(rf"Used {_SIZE} of {_SIZE} hbm"),
    re.compile(rf"\({_SIZE}\) exceeds available HBM \({_SIZE}\)"),
)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory of a program on one device, in bytes.

    Attributes:
      limit: The most that a program may use.
      needed: The total that this program needs.
      arguments: State and batch. This and the following are None if the program does
        not fit: the compiler then reports only `needed`.
      temporaries: Intermediate arrays.
      outputs: New state and metrics that do not reuse the memory of an argument.
      code: The program itself.
    """

    limit: float
    needed: float
    arguments: int | None = None
    temporaries: int | None = None
    outputs: int | None = None
    code: int | None = None

    @property
    def fits(self) -> bool:
        """Whether the program can be loaded."""
        return self.arguments is not None and self.needed <= self.limit

    @property
    def excess(self) -> float:
        """Bytes above the limit; negative if there are bytes to spare."""
        excess = self.needed - self.limit
        return excess if self.fits else max(excess, 0.0)


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled step.

    Attributes:
      memory: Memory on one device.
      seconds: Wall-clock seconds of tracing and compilation.
      cpu_seconds: CPU seconds of the same, over all threads of this process.
      module: The optimised program; None if it does not fit.
      quick: Whether it was compiled without optimisation; its cycles mean nothing then.
      weights: (shape, whether stacked over blocks) of every parameter.
      frozen_weights: The same of the frozen teacher; [] without one.
      replica: Number of copies of the state.
      flops_per_image: Useful FLOPs per image at the largest crops, like all the rest.
    """

    memory: Memory
    seconds: float
    cpu_seconds: float
    module: hlo.Module | None
    quick: bool
    weights: list[tuple[tuple[int, ...], bool]]
    frozen_weights: list[tuple[tuple[int, ...], bool]]
    replica: int
    flops_per_image: float


def compile_step(
    config: Any,
    machine: machines.Machine,
    options: dict[str, str],
    *,
    quick: bool = False,
) -> Program:
    """Trace and compile the train step that `main` would run on a machine.

    Args:
      config: A checked config; `model.dtype` "auto" means bfloat16, as on the machine.
      machine: The target; the number of groups must divide by its devices.
      options: Compiler options.
      quick: Skip optimisations, which takes a fifth of the time. Collectives and memory
        stay nearly the same; cycles mean nothing.

    Raises:
      UserError: The compiler does not know the machine.
    """
    mesh = sharding.make_mesh(
        config.mesh.replica, config.mesh.fsdp, machines.devices(machine)
    )
    dtype = jnp.bfloat16
    if config.model.dtype != "auto":
        dtype = jnp.dtype(config.model.dtype)
    start, cpu_start = time.monotonic(), time.process_time()

    def program(memory, module):
        seconds = time.monotonic() - start, time.process_time() - cpu_start
        return Program(
            memory,
            *seconds,
            module,
            quick,
            _shapes(built.params),
            _shapes(teacher.params) if teacher else [],
            mesh.shape["replica"],
            built.flops_of_size(),
        )

    teacher = frozen_teacher.describe(config)
    config = frozen_teacher.resolve(config, teacher)
    built = several_students.make_trainer(config, teacher, mesh=mesh, dtype=dtype)
    lowered = built.lower()
    limit = machine.chip.hbm_bytes
    try:
        compiled, text = _compile(lowered, machine, options, quick)
    except jax.errors.JaxRuntimeError as error:
        needed = needed_bytes(str(error))
        if needed is None:
            raise
        return program(Memory(limit=limit, needed=needed), None)
    sizes = compiled.memory_analysis()
    outputs = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    parts = (
        sizes.argument_size_in_bytes,
        sizes.temp_size_in_bytes,
        outputs,
        sizes.generated_code_size_in_bytes,
    )
    memory = Memory(limit, float(sum(parts)), *parts)
    return program(memory, hlo.parse(text))


def _shapes(params: Any) -> list[tuple[tuple[int, ...], bool]]:
    """Return (shape, whether stacked over blocks) of every leaf."""
    return [
        (leaf.shape, any(getattr(key, "key", None) == "blocks" for key in path))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]


def _compile(lowered, machine, options, quick) -> tuple[jax.stages.Compiled, str]:
    """Return the compiled step and the text of its optimised program."""
    with (
        tempfile.TemporaryDirectory() as folder,
        _optimization_level("O0" if quick else "UNKNOWN"),
    ):
        if machine.chip.platform == "tpu":
            options = options | {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        compiled = lowered.compile(compiler_options=options or None)
        # The text that libtpu dumps is preferred: jaxlib rejects some programs, such as
        # those with asynchronous operations in several steps on v5p.
        for written in pathlib.Path(folder).glob("*jit_step*.after_codegen.txt"):
            return compiled, written.read_text()
        return compiled, compiled.as_text()


@contextlib.contextmanager
def _optimization_level(level: str) -> Iterator[None]:
    """Set the optimisation level inside the block; "UNKNOWN" is the default."""
    before = jax.config.jax_optimization_level
    jax.config.update("jax_optimization_level", level)
    try:
        yield
    finally:
        jax.config.update("jax_optimization_level", before)


def needed_bytes(message: str) -> float | None:
    """Parse the bytes that a program needs from an error; None for another error."""
    for pattern in _TOO_LARGE:
        match = pattern.search(message)
        if match:
            return float(match[1]) * _UNITS[match[2]]
    return None

"""Builder of ONNX graphs on top of `onnx.helper`, independent of any model.

Weights stay views of the caller's arrays until they are stored, so that a file of more
than half the memory can be written.
"""

import importlib
from typing import Any, BinaryIO

import numpy as np

from dinov2_jax import errors

MIN_EXTERNAL = 1024  # bytes; smaller tensors stay in the model file
ALIGNMENT = 4096  # bytes; runtimes map external tensors into memory


def import_onnx() -> Any:
    """Return the `onnx` package, which is needed only to write ONNX.

    Raises:
      UserError: The package is not installed.
    """
    try:
        return importlib.import_module("onnx")
    except ImportError as error:
        raise errors.UserError(
            "writing ONNX needs the onnx package and verifying it needs onnxruntime: "
            "pip install onnx onnxruntime"
        ) from error


class Builder:
    """Nodes, inputs, outputs and weights of a graph; values are referred to by name."""

    def __init__(self, onnx: Any):
        self._onnx = onnx
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._weights: dict[str, np.ndarray] = {}

    def add_input(self, name: str, shape: tuple[int | str, ...]) -> str:
        """Declare a float32 input and return its name; a string is a dynamic axis."""
        self._inputs.append(self._info(name, shape))
        return name

    def add_output(self, value: str, name: str, shape: tuple[int | str, ...]) -> None:
        """Rename a float32 value that no node reads yet to an output."""
        (node,) = (node for node in self._nodes if value in node.output)
        node.output[list(node.output).index(value)] = name
        self._outputs.append(self._info(name, shape))

    def _info(self, name, shape):
        float32 = self._onnx.TensorProto.FLOAT
        return self._onnx.helper.make_tensor_value_info(name, float32, shape)

    def weight(self, name: str, value: Any) -> str:
        """Add a float32 array for `store_weights` and return its name."""
        self._weights[name] = np.asarray(value)
        return name

    def constant(self, value: float | list[int]) -> str:
        """Add a float32 scalar or int64 list, equal ones once, and return its name."""
        array = np.asarray(value, np.float32 if isinstance(value, float) else np.int64)
        name = f"constant.{'_'.join(map(str, array.ravel().tolist()))}"
        self._constants[name] = self._onnx.numpy_helper.from_array(array, name)
        return name

    def op(
        self, kind: str, name: str, *inputs: str, outputs: int = 1, **attributes: Any
    ) -> Any:
        """Add a node and return the name of its output, or the names of several."""
        names = [f"{name}.{i}" for i in range(outputs)] if outputs > 1 else [name]
        self._nodes.append(
            self._onnx.helper.make_node(
                kind, inputs, names, name=f"{name}/{kind}", **attributes
            )
        )
        return names if outputs > 1 else name

    def reshape(self, name: str, x: str, shape: list[int]) -> str:
        """Add a Reshape; 0 keeps the size of that axis."""
        return self.op("Reshape", name, x, self.constant(shape))

    def slice(self, name: str, x: str, start: int, stop: int) -> str:
        """Add x[:, start:stop]."""
        bounds = (self.constant([n]) for n in (start, stop, 1))
        return self.op("Slice", name, x, *bounds)

    def weight_bytes(self) -> int:
        """Return the size of all weights as float32, in bytes."""
        return sum(4 * array.size for array in self._weights.values())

    def finish(self, name: str) -> Any:
        """Return the GraphProto with everything but the weights."""
        constants = list(self._constants.values())
        return self._onnx.helper.make_graph(
            self._nodes, name, self._inputs, self._outputs, constants
        )

    def store_weights(
        self, graph: Any, location: str = "", file: BinaryIO | None = None
    ) -> None:
        """Put the weights into a graph, or the larger ones into a file.

        Args:
          graph: The GraphProto.
          location: Name of the file in the graph.
          file: Binary file for the larger tensors, written one at a time.
        """
        for name, array in self._weights.items():
            tensor = graph.initializer.add(
                name=name, dims=array.shape, data_type=self._onnx.TensorProto.FLOAT
            )
            array = np.ascontiguousarray(array, np.dtype("<f4"))
            if file is None or array.nbytes < MIN_EXTERNAL:
                tensor.raw_data = array.tobytes()
                continue
            file.write(bytes(-file.tell() % ALIGNMENT))
            tensor.data_location = self._onnx.TensorProto.EXTERNAL
            entries = [("location", location), ("offset", file.tell())]
            for key, value in [*entries, ("length", array.nbytes)]:
                tensor.external_data.add(key=key, value=str(value))
            file.write(array.reshape(-1).view(np.uint8))

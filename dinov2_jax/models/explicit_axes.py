"""Models on arrays whose mesh has Explicit axes, as `jax.make_mesh` makes them.

With such axes every operation must state how its result is sharded. Inside a model the
axes are of type Auto, so the compiler decides, and the features have the sharding of
the images.
"""

import functools
import types
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec


def as_auto(method: types.FunctionType) -> Callable[..., Any]:
    """Return a module's method that computes with Explicit axes turned into Auto ones.

    Args:
      method: Method of a flax module: (images [B, ...], ...) -> a tree of arrays with
        leading axis B. In the result, that axis is sharded like that of the images.
    """

    @functools.wraps(method)
    def on_any_axes(self, images, *args, **kwargs):
        inputs = (images, args, kwargs)
        mesh = _mesh((self.variables, inputs))
        if not mesh.explicit_axes or self.is_initializing():
            return method(self, images, *args, **kwargs)
        leaves, tree = jax.tree.flatten(inputs)
        arrays = [leaf if isinstance(leaf, jax.Array) else None for leaf in leaves]
        module = self.clone(parent=None)

        def run(variables, arrays):
            images, args, kwargs = tree.unflatten(
                leaf if array is None else array for leaf, array in zip(leaves, arrays)
            )
            name = method.__name__
            return module.apply(variables, images, *args, method=name, **kwargs)

        batch = PartitionSpec(*jax.typeof(images).sharding.spec[:1])
        return jax.sharding.auto_axes(
            run, axes=mesh.explicit_axes, out_sharding=NamedSharding(mesh, batch)
        )(self.variables, arrays)

    return on_any_axes


def _mesh(tree: Any) -> AbstractMesh:
    """Return the mesh in context, or else that of the arrays in a tree."""
    mesh = jax.sharding.get_abstract_mesh()
    for leaf in jax.tree.leaves(tree):
        if mesh.empty and isinstance(leaf, jax.Array):
            mesh = jax.typeof(leaf).sharding.mesh
    return mesh

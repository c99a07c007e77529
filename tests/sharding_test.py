"""Where arrays live: the rule by shape, on meshes that need no devices."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from configs import vitg, vitl, vits
from dinov2_jax import optimizer, sharding, ssl_meta_arch, train_state


def mesh(fsdp, replica=1):
    sizes, names = (replica, fsdp), ("replica", "fsdp")
    return AbstractMesh(sizes, names, axis_types=(AxisType.Auto,) * 2)


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def spec(leaf, path="kernel", fsdp=8):
    """The spec of one array, padded to its rank."""
    tree = leaf
    for name in reversed(path.split("/")):
        tree = {name: tree}
    (found,) = jax.tree.leaves(sharding.state_shardings(tree, mesh(fsdp)))
    return tuple(found.spec) + (None,) * (len(leaf.shape) - len(found.spec))


@pytest.mark.parametrize(
    "sizes, path, expected",
    [
        ((64, 128), "kernel", (None, "fsdp")),  # the only one of whole tiles
        ((128, 64), "kernel", ("fsdp", None)),
        ((1536, 8192), "kernel", ("fsdp", None)),  # the first, though not the largest
        ((64, 64), "kernel", ("fsdp", None)),  # the first of two equals
        ((60, 100), "kernel", (None, None)),  # nothing to divide
        ((100, 64), "kernel", (None, "fsdp")),  # the largest that 8 divides
        # Whole tiles of 16 rows before length: 2736 / 8 is 342.
        ((2736, 1024), "kernel", (None, "fsdp")),
        ((23, 89), "kernel", (None, None)),  # 2047 elements
        ((32, 64), "kernel", (None, "fsdp")),
        ((8192,), "bias", (None,)),  # a vector
        ((8, 8), "kernel", (None, None)),  # small
        ((4096, 1), "weight_g", ("fsdp", None)),  # as its matrix
        ((1, 257, 1536), "pos_embed", (None, None, "fsdp")),
        ((40, 24, 96), "backbone/blocks/attn/kernel", (None, None, "fsdp")),
        # The layer axis never, though 8 divides it and nothing else.
        ((4096, 3), "backbone/blocks/ls1/gamma", (None, None)),
        # Of stacked arrays it is one block's size that counts.
        ((40, 1536), "backbone/blocks/ls1/gamma", (None, None)),
        ((40, 4608), "backbone/blocks/qkv/bias", (None, None)),
        ((), "count", ()),
    ],
)
def test_rule(sizes, path, expected):
    assert spec(shape(*sizes), path) == expected


def test_one_device_and_replicas():
    tree = {"kernel": shape(100, 64)}
    for axes in ((1, 1), (4, 8)):
        found = sharding.state_shardings(tree, mesh(axes[1], axes[0]))["kernel"]
        assert found.mesh.shape == {"replica": axes[0], "fsdp": axes[1]}
        assert tuple(found.spec) == (None, "fsdp")  # not over replicas


@pytest.fixture(scope="module")
def giants():
    """The whole abstract state of large configs."""
    states = {}
    for name, module in {"vitg": vitg, "vitl": vitl, "vits": vits}.items():
        c = module.get_config()
        meta_arch = ssl_meta_arch.make_ssl_meta_arch(c, jnp.bfloat16)
        params = jax.eval_shape(meta_arch.student.init, jax.random.key(0))
        tx = optimizer.make_optimizer(c, params)
        states[name] = jax.eval_shape(
            lambda key, arch=meta_arch, tx=tx: train_state.init_state(key, arch, tx),
            jax.random.key(0),
        )
    return states


@pytest.mark.parametrize(
    "name, fsdp",
    [("vitg", 8), ("vitg", 64), ("vitg", 256), ("vitl", 32), ("vits", 128)],
)
def test_no_large_leaf_of_a_real_state_is_replicated(giants, name, fsdp):
    state = giants[name]
    shardings = sharding.state_shardings(state, mesh(fsdp))
    held = total = small = 0
    leaves = jax.tree_util.tree_leaves_with_path(state)
    for (path, leaf), found in zip(leaves, jax.tree.leaves(shardings)):
        sharded = "fsdp" in found.spec
        where = jax.tree_util.keystr(path)
        stacked = "blocks" in where
        size = math.prod(leaf.shape[stacked:])
        vector = len(leaf.shape[stacked:]) < 2
        assert sharded or vector or size < sharding.MIN_SHARDED_SIZE, where
        if stacked and sharded:
            assert found.spec[0] is None
        held += leaf.size / fsdp if sharded else 0
        small += 0 if sharded else leaf.size
        total += leaf.size
    assert held <= total / fsdp and small < 5e-3 * total


def test_moments_and_teacher_are_sharded_as_the_parameters(giants):
    state = sharding.state_shardings(giants["vitg"], mesh(8))
    expected = jax.tree.map(lambda s: s.spec, state.params)
    adam = state.opt_state
    for tree in (state.teacher_params, adam.mu, adam.nu):
        assert jax.tree.map(lambda s: s.spec, tree) == expected
    assert state.step.spec == adam.count.spec == PartitionSpec()


def test_a_mesh_of_the_devices_at_hand():
    made = sharding.make_mesh()
    assert made.axis_names == ("replica", "fsdp")
    assert made.size == len(jax.devices()) and made.shape["replica"] == 1
    assert sharding.batch_sharding(made).spec == PartitionSpec(("replica", "fsdp"))
    assert sharding.replicated(made).is_fully_replicated


@dataclasses.dataclass(frozen=True)
class Device:
    """As much of a device as a mesh looks at."""

    id: int
    process_index: int = 0
    slice_index: int = 0


def shapes_and_slices(devices, **sizes):
    """The shape, and the slices that each group of `fsdp` lies in."""
    made = sharding.make_mesh(devices=devices, **sizes)
    rows = made.devices
    return rows.shape, [sorted({d.slice_index for d in row}) for row in rows]


def test_a_copy_of_the_state_for_each_slice():
    # As a scheduler that deals processes out in turn numbers them.
    devices = [Device(i, i // 2, i // 2 % 2) for i in range(8)]
    assert shapes_and_slices(devices) == ((2, 4), [[0], [1]])
    assert shapes_and_slices(devices, fsdp=2) == ((4, 2), [[0], [0], [1], [1]])
    assert shapes_and_slices(devices, replica=4) == ((4, 2), [[0], [0], [1], [1]])
    assert shapes_and_slices(devices, replica=1) == ((1, 8), [[0, 1]])
    assert shapes_and_slices(devices, replica=2, fsdp=4) == ((2, 4), [[0], [1]])
    ids = [d.id for d in sharding.make_mesh(devices=devices).devices.flat]
    assert ids == [0, 1, 4, 5, 2, 3, 6, 7]  # those of a process stay together
    with pytest.raises(ValueError):
        sharding.make_mesh(3, 2, devices)


def test_one_copy_where_slices_could_not_hold_one():
    single = [Device(i, i, i) for i in range(4)]
    assert shapes_and_slices(single) == ((1, 4), [[0, 1, 2, 3]])
    unlike = [Device(i, i // 2, i // 4) for i in range(6)]
    assert shapes_and_slices(unlike) == ((1, 6), [[0, 1]])


def test_the_rank_of_a_process_is_its_place_in_the_mesh():
    """Its rows of a batch are those, whatever number it has."""
    assert sharding.process_rank(sharding.make_mesh()) == 0
    devices = [Device(0, 2, 0), Device(1, 0, 1), Device(2, 1, 0), Device(3, 3, 1)]
    assert sharding.process_rank(sharding.make_mesh(devices=devices)) == 2


def test_the_batch_is_constrained_only_under_a_mesh_that_divides_it():
    x = jnp.ones((8, 3))

    def constrained(x):
        return "sharding_constraint" in str(jax.make_jaxpr(sharding.constrain_batch)(x))

    assert not constrained(x)
    with jax.sharding.use_abstract_mesh(mesh(4)):
        assert constrained(x)
        assert not constrained(x[:6])


@pytest.mark.parametrize(
    "names, kind",
    [
        (("data",), AxisType.Auto),
        (("replica", "fsdp", "model"), AxisType.Auto),
        (("replica", "fsdp"), AxisType.Explicit),
        (("replica", "fsdp"), AxisType.Manual),
    ],
)
def test_nothing_is_done_under_the_mesh_of_another_program(names, kind):
    x = jnp.ones((8, 64, 64))
    foreign = AbstractMesh((4, *[1] * (len(names) - 1)), names, (kind,) * len(names))
    with jax.sharding.use_abstract_mesh(foreign):
        assert sharding.constrain_batch(x) is x and sharding.gather(x) is x
        assert sharding.constrain_state({"kernel": x})["kernel"] is x
        assert not sharding.is_divided()
        # Kernels run only where each device has its own images.
        assert sharding.devices_divide(8) == (kind == AxisType.Manual)


def test_state_is_made_on_its_shardings():
    c = tiny.config()
    meta_arch = ssl_meta_arch.make_ssl_meta_arch(c, jnp.float32)
    params = jax.eval_shape(meta_arch.student.init, jax.random.key(0))
    tx = optimizer.make_optimizer(c, params)
    devices = sharding.make_mesh(devices=jax.devices()[:1])
    abstract = train_state.abstract_state(meta_arch, tx, devices)
    state = train_state.make_state(0, meta_arch, tx, devices)

    def facts(tree):
        return jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding.spec), tree)

    assert facts(abstract) == facts(state)
    jax.tree.map(np.testing.assert_array_equal, state.params, state.teacher_params)
    assert int(state.step) == int(state.skipped) == int(state.skipped_in_a_row) == 0
    assert not any(np.any(x) for x in jax.tree.leaves(state.opt_state))

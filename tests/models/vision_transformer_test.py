"""The ViT: released sizes, and the same numbers by every route through it.

Its numbers against the reference's are in `tests/reference/replay_test.py`.
"""

import functools
import json
import operator
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vits
from jax.extend import core

from dinov2_jax.models import model_config
from dinov2_jax.weights import state_dict

RELEASED = pathlib.Path(__file__).parents[1] / "reference" / "state_dicts"
DEPTH, DIM, PATCH = 3, 16, 4
slow = functools.partial(pytest.param, marks=pytest.mark.slow)


def make(**changes):
    sizes = dict(embed_dim=DIM, depth=DEPTH, num_heads=2, patch_size=PATCH)
    settings = dict(image_size=16, layerscale=1.0, num_register_tokens=2)
    return vits.make(**(sizes | settings | changes))


@functools.cache
def shapes_of(model):
    image = jnp.zeros(
        (1, model.config.image_size, model.config.image_size, model.config.in_chans)
    )
    return jax.eval_shape(model.init, jax.random.key(0), image)


def random_variables(model, seed=0):
    """Weights in which every parameter matters, the tokens too."""
    leaves, treedef = jax.tree.flatten(shapes_of(model))
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(
        treedef,
        [(0.3 * rng.standard_normal(x.shape)).astype(x.dtype) for x in leaves],
    )


def images(*shape, seed=1):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def groups_of_crops(groups=2):
    """Two crop groups with masks on the first."""
    masks = np.random.default_rng(2).random((groups, 4, 16)) < 0.4
    return [images(groups, 4, 16, 16, 3), images(groups, 6, 8, 8, 3, seed=3)], [
        jnp.asarray(masks),
        None,
    ]


def close(a, b, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


@functools.partial(jax.jit, static_argnames=("model", "n", "norm", "method"))
def run(model, variables, *args, **kwargs):
    return model.apply(variables, *args, **kwargs)


# --- one result by every route --------------------------------------------------


def gradient(model, crops, key):
    """Function of the weights: a loss of every output, and its gradient."""

    @jax.jit
    @jax.value_and_grad
    def loss(variables):
        masks = [None] * len(crops)
        outputs = model.apply(variables, crops, masks, key, method="forward_crops")
        return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(outputs))

    return loss


@pytest.mark.slow
def test_scan_unrolled_and_rematerialised_are_the_same():
    crops, key = [images(1, 4, 8, 8, 3)], jax.random.key(5)
    model = make(drop_path_rate=0.4)
    variables = random_variables(model)
    value, expected = gradient(model, crops, key)(variables)
    scale = max(np.abs(g).max() for g in jax.tree.leaves(expected))
    for changes in ({"scan_unroll": DEPTH}, {"remat": "selective"}, {"remat": "full"}):
        model = make(drop_path_rate=0.4, **changes)
        other, ours = gradient(model, crops, key)(variables)
        np.testing.assert_allclose(other, value, rtol=1e-5)
        close(ours, expected, atol=1e-5 * scale)


def test_remat_stores_less():
    crops = [images(1, 4, 16, 16, 3)]

    def temporaries(remat):
        model = make(remat=remat, depth=8)
        step = gradient(model, crops, None).lower(random_variables(model))
        return step.compile().memory_analysis().temp_size_in_bytes

    assert temporaries("full") < 0.7 * temporaries("none")


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in core.jaxprs_in_params(equation.params):
            yield from equations(inner)


@pytest.mark.parametrize("ffn_layer", ["mlp", "swiglufused"])
def test_what_a_block_keeps_is_kept_as_it_is(ffn_layer):
    # jax rounds what is kept and also used ahead, which on TPUs is a pass over it: of
    # all tokens the output of attention alone, whose kernel ends there anyway.
    model = make(
        embed_dim=128,
        num_heads=2,
        ffn_layer=ffn_layer,
        ffn_ratio=2.0,
        drop_path_rate=0.5,
        dtype=jnp.bfloat16,
        block="folded",
        attention="pallas_tpu",
        remat="selective",
    )
    crops, key = [images(1, 4, 16, 16, 3)], jax.random.key(5)
    traced = jax.make_jaxpr(gradient(model, crops, key))(random_variables(model))
    found = list(equations(traced.jaxpr))
    named = {e.params["name"] for e in found if e.primitive.name == "name"}
    assert named == {"norm", "qkv", "attention", "ffn_hidden"}
    rounded = [
        equation.invars[0].aval.shape
        for equation in found
        if equation.primitive.name == "reduce_precision"
        and equation.invars[0].aval.shape[-1] > 1
    ]
    assert rounded == [(1, 2 * 19, 128)]  # two of four crops of 3 + 16 tokens


@pytest.mark.parametrize(
    "changes",
    [
        slow({"drop_path_rate": 0.4, "num_register_tokens": 0}),
        {
            "ffn_layer": "swiglufused",
            "layerscale": 0.0,
            "depth": 1,
            "drop_path_rate": 0.4,
        },
        slow({"drop_path_rate": 0.4, "block": "folded", "remat": "selective"}),
        slow({}),
        slow({"drop_path_rate": 0.4, "drop_path_uniform": False, "remat": "full"}),
        slow({"drop_path_rate": 0.6, "remat": "selective", "scan_unroll": DEPTH}),
    ],
)
def test_chosen_tokens_are_those_of_the_whole_pass(changes):
    model = make(**changes)
    variables = random_variables(model)
    crops, masks = groups_of_crops()
    indices = np.array([[0, 17, 18, 63, 63], [5, 5, 0, 33, 47]])  # over 4 x 16
    key = jax.random.key(3)

    def whole(variables):
        features = model.apply(variables, crops, masks, key, method="forward_crops")
        patches = features[0].patches.reshape(2, 64, DIM)
        chosen = jnp.take_along_axis(patches, indices[..., None], axis=1)
        return [f.cls for f in features], chosen

    def ours(variables):
        return model.apply(
            variables, crops, masks, indices, key, method="forward_chosen"
        )

    def with_gradient(function):
        def loss(variables):
            out = function(variables)
            return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(out)), out

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables)

    (_, expected), expected_grads = with_gradient(whole)
    (_, found), grads = with_gradient(ours)
    close(found, expected)
    scale = max(np.abs(g).max() for g in jax.tree.leaves(expected_grads))
    close(grads, expected_grads, atol=1e-5 * scale)


def test_crop_groups_in_one_pass_equal_each_alone():
    model = make()
    variables = random_variables(model)
    crops, masks = groups_of_crops()
    both = run(model, variables, crops, masks, method="forward_crops")
    for i in range(2):
        (alone,) = run(model, variables, [crops[i]], [masks[i]], method="forward_crops")
        close(both[i], alone)
    # ... and the plain call, image by image.
    flat = run(model, variables, crops[1].reshape(12, 8, 8, 3))
    close(flat.cls.reshape(2, 6, -1), both[1].cls)
    close(flat.patches.reshape(both[1].patches.shape), both[1].patches)


def test_images_do_not_see_each_other():
    model = make()
    variables = random_variables(model)
    crops, masks = groups_of_crops()
    before = run(model, variables, crops, masks, method="forward_crops")
    crops[0] = crops[0].at[1, 2].set(jnp.nan)
    after = run(model, variables, crops, masks, method="forward_crops")
    assert np.all(np.isnan(after[0].cls[1, 2]))
    keep = np.ones((2, 4), bool)
    keep[1, 2] = False
    assert np.array_equal(after[0].cls[keep], before[0].cls[keep])
    assert np.array_equal(after[1].cls, before[1].cls)


# --- tokens ---------------------------------------------------------------------


def test_shapes_of_the_features():
    model = make()
    out = run(model, random_variables(model), images(2, 16, 24, 3))
    assert out.cls.shape == (2, DIM)
    assert out.registers.shape == (2, 2, DIM)
    assert out.patches.shape == (2, 4, 6, DIM)
    assert out.prenorm.shape == (2, 1 + 2 + 24, DIM)


def test_order_of_tokens_before_the_blocks():
    """With blocks that add nothing, the tokens are sums written by hand."""
    model = make(image_size=8)
    variables = random_variables(model)
    p = variables["params"]
    for name in ("ls1", "ls2"):
        p["blocks"][name]["gamma"] = np.zeros((DEPTH, DIM), np.float32)
    x = images(2, 8, 8, 3)
    masks = np.zeros((2, 4), bool)
    masks[1, 2] = True
    out = run(model, variables, x, jnp.asarray(masks))
    kernel, bias = (np.asarray(p["patch_embed"]["proj"][k]) for k in ("kernel", "bias"))
    pos = np.asarray(p["pos_embed"])[0]
    for image in range(2):
        tokens = [np.asarray(p["cls_token"])[0, 0] + pos[0]]
        tokens += list(np.asarray(p["register_tokens"])[0])  # no position
        for i in range(4):
            row, col = 4 * (i // 2), 4 * (i % 2)
            patch = np.asarray(x[image, row : row + 4, col : col + 4]).ravel()
            embedded = patch @ kernel + bias
            if masks[image, i]:
                embedded = np.asarray(p["mask_token"])[0]
            tokens.append(embedded + pos[1 + i])
        np.testing.assert_allclose(out.prenorm[image], tokens, atol=1e-5)


def test_masked_patches_hide_their_pixels():
    model = make()
    variables = random_variables(model)
    masks = np.zeros((1, 16), bool)
    masks[0, [1, 7]] = True
    x = images(1, 16, 16, 3)
    changed = x.at[0, 0:4, 4:8].add(1.0).at[0, 4:8, 12:16].add(-2.0)  # patches 1, 7
    masked = run(model, variables, x, jnp.asarray(masks))
    assert np.array_equal(
        masked.cls, run(model, variables, changed, jnp.asarray(masks)).cls
    )
    visible = run(model, variables, x)
    assert np.abs(visible.cls - masked.cls).max() > 1e-3
    assert np.abs(visible.cls - run(model, variables, changed).cls).max() > 1e-3


@pytest.mark.parametrize(
    "patch_size, in_chans",
    [(14, 3), (16, 1), slow(14, 1), slow(14, 4), slow(16, 3), slow(16, 4)],
)
def test_patch_sizes_channels_and_oblong_images(patch_size, in_chans):
    model = make(patch_size=patch_size, image_size=2 * patch_size, in_chans=in_chans)
    variables = random_variables(model)
    assert variables["params"]["patch_embed"]["proj"]["kernel"].shape == (
        patch_size**2 * in_chans,
        DIM,
    )
    x = images(1, 2 * patch_size, 3 * patch_size, in_chans)
    out = run(model, variables, x)
    assert out.patches.shape == (1, 2, 3, DIM)
    # Transposing height and width of the image is not the same picture.
    turned = run(model, variables, x.transpose(0, 2, 1, 3))
    assert turned.patches.shape == (1, 3, 2, DIM)
    assert np.abs(turned.cls - out.cls).max() > 1e-4


@pytest.mark.parametrize("size", [(16, 15), (17, 16)])
def test_a_size_that_is_no_multiple_of_the_patch_raises(size):
    model = make()
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]}.*patch size 4"):
        jax.eval_shape(model.apply, random_variables(model), jnp.zeros((1, *size, 3)))


# --- intermediate layers --------------------------------------------------------


@pytest.mark.parametrize(
    "n, blocks, norm",
    [
        (2, [1, 2], True),
        ((2, 0), [0, 2], False),
        slow((1,), [1], True),
        slow(2, [1, 2], False),
        slow((2, 0), [0, 2], True),
        slow((1,), [1], False),
    ],
)
def test_intermediate_layers(n, blocks, norm):
    model = make()
    variables = random_variables(model)
    x = images(2, 16, 16, 3)
    layers = run(model, variables, x, n=n, norm=norm, method="get_intermediate_layers")
    assert len(layers) == len(blocks)
    for features, block in zip(layers, blocks):
        # The first blocks as a network of their own.
        first = slice(block + 1)
        head = {k: v for k, v in variables["params"].items() if k != "blocks"}
        head["blocks"] = jax.tree.map(
            operator.itemgetter(first), variables["params"]["blocks"]
        )
        shorter = {"params": head}
        alone = run(make(depth=block + 1), shorter, x)
        if norm:
            close(features, alone)
        else:
            close(features.cls, alone.prenorm[:, 0])
            close(features.patches.reshape(2, 16, DIM), alone.prenorm[:, 3:])


@pytest.mark.parametrize("n", [4, [3], [-1], 0, []])
def test_intermediate_layers_that_do_not_exist(n):
    model = make()
    with pytest.raises(ValueError, match="outside 0..2"):
        run(
            model,
            random_variables(model),
            images(1, 16, 16, 3),
            n=tuple(n) if isinstance(n, list) else n,
            method="get_intermediate_layers",
        )


# --- stochastic depth in the network --------------------------------------------


def contributions(model, key, crops):
    """How often every block and branch was added to every sample.

    Attention and FFN are constants here: block i adds a one to channel i, its FFN to
    channel depth + i, so the last tokens minus the first count the residuals.
    """
    variables = random_variables(model)
    zeros = jax.tree.map(np.zeros_like, variables["params"]["blocks"])
    blocks = jax.tree.map(lambda x: x, zeros)  # its own dicts
    ones = np.eye(model.config.depth, DIM, dtype=np.float32)
    blocks["attn"]["proj"]["bias"] = ones
    blocks["mlp"]["fc2"]["bias"] = np.roll(ones, model.config.depth, axis=1)
    for name in ("ls1", "ls2"):
        blocks[name]["gamma"] = np.ones_like(blocks[name]["gamma"])
    variables["params"]["blocks"] = blocks
    masks = [None] * len(crops)
    outputs = run(model, variables, crops, masks, key, method="forward_crops")
    silent = {"params": variables["params"] | {"blocks": zeros}}
    nothing = run(model, silent, crops, masks, method="forward_crops")
    counts = []
    for out, zero in zip(outputs, nothing):
        added = np.asarray(out.prenorm) - np.asarray(zero.prenorm)
        added = added[..., : 2 * model.config.depth]
        # All tokens of a sample share its fate.
        np.testing.assert_allclose(
            added, added[:, :, :1].repeat(added.shape[2], 2), atol=1e-5
        )
        counts.append(added[:, :, 0])  # [G, B, 2 * depth]
    return counts


def test_each_block_branch_and_group_keeps_its_own_subset():
    model = make(depth=4, drop_path_rate=0.4, num_register_tokens=0)
    crops = [images(2, 10, 8, 8, 3), images(2, 15, 4, 4, 3)]
    counts = contributions(model, jax.random.key(0), crops)
    for added, batch, kept in zip(counts, (10, 15), (6, 9)):
        is_kept = added > 0.5
        np.testing.assert_allclose(added[is_kept], batch / kept, rtol=1e-5)
        np.testing.assert_allclose(added[~is_kept], 0, atol=1e-5)
        assert np.all(is_kept.sum(axis=1) == kept)
        subsets = {
            tuple(is_kept[g, :, i])
            for g in range(2)
            for i in range(2 * model.config.depth)
        }
        assert len(subsets) >= 14  # of 16; equal draws would leave 8 or fewer
    repeated = contributions(model, jax.random.key(0), crops)
    assert np.array_equal(counts[0], repeated[0])
    other = contributions(model, jax.random.key(1), crops)
    assert not np.array_equal(counts[0] > 0.5, other[0] > 0.5)


def test_rate_that_grows_with_depth():
    model = make(depth=4, drop_path_rate=0.6, drop_path_uniform=False)
    (added,) = contributions(model, jax.random.key(0), [images(2, 10, 8, 8, 3)])
    kept = [max(int(10 * (1 - rate)), 1) for rate in np.linspace(0, 0.6, 4)]
    assert kept == [10, 8, 6, 4]
    for block in range(4):
        for branch in (block, 4 + block):
            column = added[..., branch]
            assert np.all((column > 0.5).sum(axis=1) == kept[block])
            np.testing.assert_allclose(column.max(axis=1), 10 / kept[block], rtol=1e-5)


def test_nothing_is_dropped_without_a_key_or_a_rate():
    crops = [images(2, 10, 8, 8, 3)]
    for model, key in (
        (make(drop_path_rate=0.5), None),
        (make(drop_path_rate=0.0), jax.random.key(0)),
    ):
        (added,) = contributions(model, key, crops)
        np.testing.assert_allclose(added, 1.0, atol=1e-5)


# --- sizes ----------------------------------------------------------------------


def abstract(arch, **changes):
    model = vits.make(
        **dict(zip(model_config.SIZES, model_config.ARCHS[arch])),
        ffn_layer="swiglufused" if arch == "vit_giant2" else "mlp",
        **({"image_size": 518} | changes),
    )
    return shapes_of(model)["params"]


def count(params):
    return sum(x.size for x in jax.tree.leaves(params))


@pytest.mark.parametrize(
    "name, arch, registers, parameters",
    [
        ("vits14", "vit_small", 0, 22_056_576),
        ("vits14_reg4", "vit_small", 4, 22_058_112),
        ("vitb14", "vit_base", 0, 86_580_480),
        ("vitl14", "vit_large", 0, 304_368_640),
        ("vitg14", "vit_giant2", 0, 1_136_480_768),
    ],
)
def test_released_sizes_and_names(name, arch, registers, parameters):
    params = abstract(arch, num_register_tokens=registers)
    assert count(params) == parameters
    zeros = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), params)
    ours = state_dict.state_dict_from_params(zeros, patch_size=14)
    released = json.loads((RELEASED / f"dinov2_{name}.json").read_text())
    assert {k: list(v.shape) for k, v in ours.items()} == released


def test_vit_g_at_224_pixels():
    assert count(abstract("vit_giant2", image_size=224)) == 1_134_771_200


# --- initialisation -------------------------------------------------------------


@pytest.fixture(scope="module")
def fresh():
    model = vits.make(
        embed_dim=128,
        depth=4,
        num_heads=2,
        image_size=224,
        layerscale=1e-5,
        num_register_tokens=4,
    )
    image = jnp.zeros((1, 224, 224, 3))
    return jax.device_get(jax.jit(model.init)(jax.random.key(0), image)["params"])


def is_normal(x, std):
    x = np.asarray(x, np.float64).ravel() / std
    error = 5 / np.sqrt(x.size)  # five sigma of the mean
    assert abs(x.mean()) < error and abs(x.std() - 1) < error
    # Not truncated at two sigma, as JAX's truncated normal would be.
    assert abs(np.mean(np.abs(x) > 2) - 0.0455) < error
    if x.size > 10_000:
        assert np.abs(x).max() > 3


def test_linear_layers_start_normal(fresh):
    blocks = fresh["blocks"]
    for layer in (
        blocks["attn"]["qkv"],
        blocks["attn"]["proj"],
        blocks["mlp"]["fc1"],
        blocks["mlp"]["fc2"],
    ):
        is_normal(layer["kernel"], 0.02)
        assert not np.any(layer["bias"])
        first, second = layer["kernel"][:2]
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.05


def test_tokens_start_normal_and_the_mask_zero(fresh):
    is_normal(fresh["pos_embed"], 0.02)
    is_normal(fresh["cls_token"], 1e-6)
    is_normal(fresh["register_tokens"], 1e-6)
    assert not np.any(fresh["mask_token"])


def test_patch_embedding_starts_as_torch_convolutions(fresh):
    bound = 1 / np.sqrt(3 * 14 * 14)
    for name in ("kernel", "bias"):
        x = np.asarray(fresh["patch_embed"]["proj"][name])
        assert 0.9 * bound < np.abs(x).max() <= bound
        assert abs(x.std() / (bound / np.sqrt(3)) - 1) < 0.1


def test_norms_and_layer_scales_start_constant(fresh):
    blocks = fresh["blocks"]
    for norm in (fresh["norm"], blocks["norm1"], blocks["norm2"]):
        assert np.all(norm["scale"] == 1) and not np.any(norm["bias"])
    for name in ("ls1", "ls2"):
        assert np.all(blocks[name]["gamma"] == np.float32(1e-5))

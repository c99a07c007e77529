"""Components against scikit-learn's PCA, and positions in the picture."""

import numpy as np
import pytest
from PIL import Image
from sklearn import decomposition

from dinov2_jax.visualize import pca, views


def _features(n=500, width=20, seed=0):
    rng = np.random.default_rng(seed)
    hidden = rng.gamma(1.0, size=(n, 5)) * (9, 6, 4, 1, 0.5)
    mixed = hidden @ rng.normal(size=(5, width))
    return mixed + 0.1 * rng.normal(size=(n, width)) + 3.0


def test_components_equal_scikit_learn_up_to_sign():
    features = _features()
    ours = pca.principal_components(features)
    theirs = decomposition.PCA(3, svd_solver="full").fit_transform(features)
    signs = np.sign((ours * theirs).sum(axis=0))
    np.testing.assert_allclose(ours, theirs * signs, atol=1e-8)


def test_sign_does_not_depend_on_the_basis():
    features = _features()
    ours = pca.principal_components(features)
    assert ((ours**3).sum(axis=0) > 0).all()
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(20, 20)))
    np.testing.assert_allclose(
        pca.principal_components(features @ rotation), ours, atol=1e-8
    )


def test_directions_without_variance_are_zero():
    line = np.arange(50.0)[:, None] ** 2 * np.ones((1, 8))
    components = pca.principal_components(line)
    assert np.ptp(components[:, 0]) > 0
    assert (components[:, 1:] == 0).all()
    assert pca.principal_components(np.ones((9, 2))).shape == (9, 3)


def test_colors_share_one_range_over_all_images():
    rng = np.random.default_rng(2)
    clean = rng.normal(size=(6, 10, 10, 4)) * (4, 3, 2, 1)
    clean[5] += (8, 0, 0, 0)  # one image apart: a joint PCA keeps it apart
    colors = pca.pca_colors(clean)
    assert colors.dtype == np.uint8 and colors.shape == (6, 10, 10, 3)
    for channel in range(3):
        assert np.mean(colors[..., channel] == 0) == pytest.approx(0.02, abs=0.01)
        assert np.mean(colors[..., channel] == 255) == pytest.approx(0.02, abs=0.01)
    reds = colors[..., 0].mean(axis=(1, 2))
    assert abs(reds[5] - reds[:5].mean()) > 3 * reds[:5].std()


def test_constant_features_are_grey():
    assert (pca.pca_colors(np.ones((2, 3, 3, 5))) == 128).all()


def _images(n=3):
    values = np.random.default_rng(0).integers(0, 256, (n, 1, 1, 3), np.uint8)
    return np.broadcast_to(values, (n, 28, 28, 3))


def test_picture(tmp_path):
    images = _images()
    rng = np.random.default_rng(1)
    grids = {
        "trained": rng.gamma(1.0, size=(3, 4, 4, 8)),
        "random init": rng.gamma(1.0, size=(3, 7, 7, 5)),
    }
    pca.pca_picture(images, grids, tmp_path / "a.png")
    pca.pca_picture(images, grids, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    cell, gap, header = 224, 6, 28
    assert picture.shape == (header + 3 * (cell + gap), gap + 3 * (cell + gap), 3)
    assert (picture[:header].min(axis=(1, 2)) < 128).any()  # titles
    for column, title in enumerate(grids, start=1):
        colors = pca.pca_colors(grids[title])
        side = cell // colors.shape[1]
        for row in range(3):
            top = header + row * (cell + gap)
            middle = picture[top + cell // 2, gap + cell // 2]
            np.testing.assert_array_equal(middle, images[row, 14, 14])
            left = gap + column * (cell + gap)
            shown = picture[top : top + cell, left : left + cell]
            np.testing.assert_array_equal(
                shown[side // 2 :: side, side // 2 :: side], colors[row]
            )


def test_oblong_images_and_grids(tmp_path):
    images = np.zeros((2, 28, 56, 3), np.uint8)
    grid = np.random.default_rng(0).gamma(1.0, size=(2, 2, 4, 3))
    pca.pca_picture(images, {"x": grid}, tmp_path / "a.png")
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    assert picture.shape == (28 + 2 * 118, 6 + 2 * 230, 3)
    second = picture[28 + 118 : 28 + 118 + 112]
    assert (second[:, 6 : 6 + 224] == 0).all()  # the photograph, edge to edge
    shown = second[28::56, 236 + 28 : 236 + 224 : 56]
    np.testing.assert_array_equal(shown, pca.pca_colors(grid)[1])


def test_wrong_shapes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'x' have shape \(1, 2, 2, 3\)"):
        pca.pca_picture(_images(2), {"x": np.ones((1, 2, 2, 3))}, tmp_path / "a.png")


def _two_clusters(shape, box, seed=0):
    """[h, w, 16] features: noise, and far from it the same with structure in a box."""
    rng = np.random.default_rng(seed)
    thing = np.zeros(shape, bool)
    thing[box] = True
    directions = np.linalg.qr(np.random.default_rng(9).normal(size=(16, 16)))[0]
    grid = 0.1 * rng.normal(size=(*shape, 16)) + 5 * thing[..., None] * directions[0]
    rows, columns = np.indices(shape)
    parts = rows[..., None] * directions[1] + columns[..., None] * directions[2]
    return grid + 0.2 * thing[..., None] * parts, thing


PLANTED = [((9, 12), np.s_[3:7, 2:8]), ((12, 7), np.s_[4:10, 1:5])]


LARGE = [((9, 12), np.s_[1:8, 1:11]), ((12, 7), np.s_[1:10, 1:6])]  # more than half


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("planted", [PLANTED, LARGE])
def test_foreground_is_the_planted_object(planted, sign):
    grids, things = zip(*(_two_clusters(*p, seed=i) for i, p in enumerate(planted)))
    grids = [sign * grid for grid in grids]
    for mask, thing in zip(pca.foreground(grids), things, strict=True):
        np.testing.assert_array_equal(mask, thing)
    for mask, thing in zip(pca.foreground(grids, flip=True), things, strict=True):
        np.testing.assert_array_equal(mask, ~thing)


def test_second_pca_uses_only_the_foreground():
    grids, things = zip(*(_two_clusters(*p, seed=i) for i, p in enumerate(PLANTED)))
    colors = pca.joint_colors(grids, things)
    inside = np.concatenate([g[t] for g, t in zip(grids, things)])
    theirs = decomposition.PCA(3, svd_solver="full").fit_transform(inside)
    drawn = np.concatenate([c[t] for c, t in zip(colors, things)]).astype(float)
    for ours, peer in zip(drawn.T[:2], theirs.T[:2]):
        assert abs(np.corrcoef(ours, peer)[0, 1]) > 0.98
    for image, thing, grid in zip(colors, things, grids):
        assert image.dtype == np.uint8 and image.shape == (*grid.shape[:2], 3)
        assert (image[~thing] == 255).all()
        assert not (image[thing] == 255).all(axis=-1).any()
    # Among all patches the thing is one of two colours: the parts drown.
    (first, _) = pca.joint_colors(grids)
    assert np.ptp(first[things[0]][:, 0].astype(int)) < 100
    assert np.ptp(colors[0][things[0]][:, 0].astype(int)) > 150


def test_nothing_in_the_foreground():
    grids = [np.ones((2, 3, 4))]
    (mask,) = pca.foreground(grids)
    assert not mask.any()
    assert (pca.joint_colors(grids, [mask])[0] == 255).all()


def _view(name, pixels, patches):
    return views.View(name, pixels, patches, np.ones(1), None)


def test_sheet_of_views_of_different_shapes():
    grids, things = zip(*(_two_clusters(*p, seed=i) for i, p in enumerate(PLANTED)))
    photographs = [
        np.full((h * 14, w * 14, 3), 40 + h, np.uint8)
        for h, w, _ in (g.shape for g in grids)
    ]
    seen = [_view("x.png", p, g) for p, g in zip(photographs, grids)]
    drawn = np.asarray(pca.draw(seen, masks=things))
    again = np.asarray(pca.draw(seen, masks=things))
    np.testing.assert_array_equal(drawn, again)
    colors = [pca.joint_colors(grids), pca.joint_colors(grids, things)]
    gap, header, top = 6, 28, 0
    widest = 336
    for number, (h, w, _) in enumerate(g.shape for g in grids):
        cell = 336 // max(h, w)  # px a patch
        top += header
        assert (drawn[top + 5, gap + 5] == 40 + h).all()
        for column in (0, 1):
            left = gap + (column + 1) * (widest + gap)
            shown = drawn[top : top + h * cell, left : left + w * cell]
            np.testing.assert_array_equal(
                shown[cell // 2 :: cell, cell // 2 :: cell], colors[column][number]
            )
        top += h * cell + gap

"""Position embeddings of exported weights, off the grid that they are stored for."""

import conversions
import numpy as np
import pytest
import random_weights
from peers import torch

import dinov2_jax
from dinov2_jax import errors
from dinov2_jax.convert import torch_twin, verify
from dinov2_jax.weights import reading


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return conversions.make_sources(tmp_path_factory.mktemp("sources"))


CONFIGS_OWN = {"interpolate_offset": 0.1, "interpolate_antialias": False}


def off_grid(model, images):
    return np.asarray(model(images).cls)


@pytest.mark.parametrize("target", ["torch-hub", "safetensors", "huggingface", "timm"])
def test_interpolation_that_a_target_loses(tmp_path, target, capsys):
    """A warning on screen and in the report, which the reader uses."""
    source = conversions.own_export(tmp_path / "mine", settings=CONFIGS_OWN)
    path = tmp_path / conversions.TARGETS[target]
    assert conversions.run(source, path, "--to", target) == 0
    warning = capsys.readouterr().err
    assert warning.startswith("warning: ") and warning.count("\n") == 1
    assert "than this model (offset 0.1, not antialiased)" in warning
    assert conversions.report(path)["warning"] in warning
    if target != "timm":
        assert (
            max(conversions.report(path)["verified"]["relative_error"].values()) < 1e-5
        )
        worst = max(
            conversions.report(path)["verified"]["other_size"][
                "relative_error"
            ].values()
        )
        assert worst > 1e-3 and f"(by {worst:.1e} at 28x70)" in warning
    images = verify.photographs(28, 84, reading.read(source))
    expected = off_grid(dinov2_jax.load(source), images)
    np.testing.assert_allclose(
        off_grid(dinov2_jax.load(path), images), expected, rtol=1e-4, atol=1e-5
    )
    # A folder moves with its report; a file may be moved without.
    moved = path.rename(tmp_path / f"moved_{path.name}")
    if moved.is_dir():
        kept = off_grid(dinov2_jax.load(moved), images)
        np.testing.assert_allclose(kept, expected, rtol=1e-4, atol=1e-5)
        (moved / "conversion.json").unlink()
    lost = off_grid(dinov2_jax.load(moved, num_heads=2), images)
    assert np.linalg.norm(lost - expected) > 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    "target", sorted(conversions.TARGETS.keys() - {"timm", "huggingface"})
)
def test_interpolation_that_a_target_keeps(tmp_path, target, capsys):
    settings = {}
    if target in ("onnx", "stablehlo", "orbax"):  # which hold any
        settings = CONFIGS_OWN
    source = conversions.own_export(tmp_path / "mine", settings=settings)
    assert (
        conversions.run(source, tmp_path / conversions.TARGETS[target], "--to", target)
        == 0
    )
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["vits14", "vits14_reg4"])
def test_torch_agrees_at_any_size(tmp_path, kind):
    """An exported file in PyTorch, whose own resize interpolates."""
    shapes = random_weights.small_shapes(kind, side=16)  # 224 px
    conversions.save(tmp_path / "a.pth", random_weights.tensors(shapes))
    path = tmp_path / "b.pth"
    flags = ["--to", "torch-hub", "--no-verify"]
    assert conversions.run(tmp_path / "a.pth", path, *flags) == 0
    found = reading.read(path)
    for size in ((224, 224), (98, 98), (168, 280), (322, 14)):
        images = verify.photographs(*size, found)
        theirs = torch_twin.features(torch.load(path), images, num_heads=2)
        errors_found = verify.relative_errors(
            theirs, verify.expected_features(found, images)
        )
        assert max(errors_found.values()) < 1e-5, size


def test_different_features_off_the_grid_are_refused(
    folder, tmp_path, monkeypatch, capsys
):
    """A reader that shifts position embeddings where it interpolates them."""

    def shifted(tensors, rows, columns):
        positions = original(tensors, rows, columns)
        return positions.roll(1, dims=1) if rows != columns else positions

    original = torch_twin._positions
    monkeypatch.setattr(torch_twin, "_positions", shifted)
    for target in ("torch-hub", "safetensors"):
        path = tmp_path / conversions.TARGETS[target]
        assert (
            conversions.run(folder / "vits14.pth", path, "--to", target)
            == errors.BAD_INPUT
        )
        assert "cls at 28x70" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []

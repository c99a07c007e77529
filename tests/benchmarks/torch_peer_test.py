"""The PyTorch peer does our work: the same loss from the same weights and batch."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks import jax_step, torch_peer, workloads  # noqa: E402
from dinov2_jax import ssl_meta_arch  # noqa: E402
from dinov2_jax.models import network  # noqa: E402
from dinov2_jax.weights import initial, state_dict  # noqa: E402

NAMES = {
    "patch_embed.proj.": "patch_embed.",
    ".ls1.gamma": ".gamma1",
    ".ls2.gamma": ".gamma2",
    "last_layer.weight_g": "last_layer.parametrizations.weight.original0",
    "last_layer.weight_v": "last_layer.parametrizations.weight.original1",
}


def load(params, branch, patch_size):
    for name, module in branch.named_children():
        weights = state_dict.state_dict_from_params(
            params[name], patch_size=patch_size if name == "backbone" else None
        )
        renamed = {}
        for key, value in weights.items():
            for ours, theirs in NAMES.items():
                key = key.replace(ours, theirs)
            renamed[key] = torch.from_numpy(np.array(value))
        module.load_state_dict(renamed)


def tiny_config(name):
    (workload,) = (w for w in workloads.CPU + workloads.GPU if w.name == name)
    workload = workloads.tiny(workload)
    overrides = (
        *workload.overrides,
        "model.drop_path_rate=0.0",
        "model.layerscale=1.0",
    )
    return workloads.make_config(workload.config, 4, overrides)


def compare(config, batch, params=None):
    """Asserts equal losses; returns a function of our gradient, and the peer."""
    arch = ssl_meta_arch.make_ssl_meta_arch(config, jax.numpy.float32)
    student, teacher = params or (
        arch.student.init(jax.random.key(seed)) for seed in (0, 1)
    )

    def ours(student):
        targets, _ = arch.teacher.targets(teacher, {}, batch, torch_peer.TEACHER_TEMP)
        return arch.loss(student, targets, batch, jax.random.key(0))

    total, terms = jax.jit(ours)(student)
    peer = torch_peer.TorchPeer(4, **workloads.torch_sizes(config))
    load(student, peer.student, config.model.patch_size)
    load(teacher, peer.teacher, config.model.patch_size)
    for crops in ("global_crops", "local_crops"):
        pixels = np.array(network.normalize(jax.numpy.asarray(batch[crops][0])))
        setattr(peer, crops, torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
    valid = batch["masked_weights"][0] > 0
    peer.masks = torch.from_numpy(batch["masks"][0])
    peer.masked_indices = torch.from_numpy(batch["masked_indices"][0][valid])
    peer.masked_weights = torch.from_numpy(batch["masked_weights"][0][valid])
    assert peer.step().item() == pytest.approx(float(total), rel=1e-5)
    for term, value in terms.items():
        assert peer.losses[term].item() == pytest.approx(float(value), rel=1e-4), term
    return lambda: jax.jit(jax.grad(ours, has_aux=True))(student)[0], peer


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("vitg14", marks=pytest.mark.slow),
        pytest.param("vits14-drop0", marks=pytest.mark.slow),
    ],
)
def test_loss_equals_ours(name):
    config = tiny_config(name)
    compare(config, jax_step.random_batch(config))


@pytest.mark.slow
@pytest.mark.parametrize("side", [3, 6])
def test_loss_and_positions_of_crops_of_another_size(side):
    """Crops of another grid than the stored one, 4 x 4, resampled inside the step."""
    config = tiny_config("vits14-drop0")
    other = config.copy_and_resolve_references()
    other.crops.global_crops_size = side * config.model.patch_size
    gradient, peer = compare(config, jax_step.random_batch(other))
    ours = np.array(gradient()["backbone"]["pos_embed"])
    theirs = peer.student.backbone.pos_embed.grad.numpy()
    assert ours.shape == theirs.shape == (1, 17, config.model.embed_dim)
    # The peer has clipped its gradient.
    ours, theirs = (x / np.linalg.norm(x) for x in (ours, theirs))
    assert np.linalg.norm(ours - theirs) <= 1e-4


@pytest.mark.slow
def test_loss_at_the_start_of_a_high_resolution_stage(tmp_path):
    """Weights of 4 x 4 patches as a stage of 6 x 6 reads them, and as PyTorch does."""
    config = tiny_config("vits14-drop0")
    small = ssl_meta_arch.make_ssl_meta_arch(config, jax.numpy.float32)
    params = small.student.init(jax.random.key(0))
    stored = {
        f"teacher.{name}.{key}": torch.from_numpy(np.array(value))
        for name, tree in params.items()
        for key, value in state_dict.state_dict_from_params(
            tree, patch_size=config.model.patch_size if name == "backbone" else None
        ).items()
    }
    torch.save({"model": stored}, tmp_path / "a.pth")
    config.crops.global_crops_size = 6 * config.model.patch_size
    config.init.update(source=str(tmp_path / "a.pth"), heads="loaded")
    arch = ssl_meta_arch.make_ssl_meta_arch(config, jax.numpy.float32)
    read = initial.read(config, arch).params
    grid = torch.from_numpy(np.array(params["backbone"]["pos_embed"]))
    patches = grid[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    patches = torch.nn.functional.interpolate(
        patches, scale_factor=6.1 / 4, mode="bicubic"
    )
    patches = patches.permute(0, 2, 3, 1).flatten(1, 2)
    expected = torch.cat([grid[:, :1], patches], dim=1).numpy()
    resampled = read["backbone"].pop("pos_embed")
    np.testing.assert_allclose(resampled, expected, atol=1e-6)
    read["backbone"]["pos_embed"] = expected
    compare(config, jax_step.random_batch(config), (read, read))


def test_a_step_moves_student_and_teacher():
    config = workloads.make_config(
        "vits", 4, (*workloads.tiny(workloads.CPU[1]).overrides,)
    )
    peer = torch_peer.TorchPeer(4, **workloads.torch_sizes(config))
    student = [p.detach().clone() for p in peer.student.parameters()]
    first = peer.step().item()
    for _ in range(5):
        last = peer.step().item()
    assert np.isfinite(last) and last != first
    assert any(
        not torch.equal(a, b) for a, b in zip(student, peer.student.parameters())
    )
    pairs = zip(peer.student.parameters(), peer.teacher.parameters())
    assert any(not torch.equal(a, b) for a, b in pairs)

"""The PyTorch peer does our work: the same loss from the same weights and batch."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks import jax_step, torch_peer, workloads  # noqa: E402
from dinov2_jax import ssl_meta_arch  # noqa: E402
from dinov2_jax.models import network  # noqa: E402
from dinov2_jax.weights import state_dict  # noqa: E402

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


@pytest.mark.parametrize(
    "name", ["vitg14", pytest.param("vits14-drop0", marks=pytest.mark.slow)]
)
def test_loss_equals_ours(name):
    (workload,) = (w for w in workloads.CPU + workloads.GPU if w.name == name)
    workload = workloads.tiny(workload)
    overrides = (
        *workload.overrides,
        "model.drop_path_rate=0.0",
        "model.layerscale=1.0",
    )
    config = workloads.make_config(workload.config, 4, overrides)
    arch = ssl_meta_arch.make_ssl_meta_arch(config, jax.numpy.float32)
    student, teacher = (arch.student.init(jax.random.key(seed)) for seed in (0, 1))
    batch = jax_step.random_batch(config)

    @jax.jit
    def ours(student, teacher, batch):
        targets, _ = arch.teacher.targets(teacher, {}, batch, torch_peer.TEACHER_TEMP)
        return arch.loss(student, targets, batch, jax.random.key(0))

    total, terms = ours(student, teacher, batch)
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

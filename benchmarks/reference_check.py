"""Comparison of the losses and gradients of `reference_peer` with this project's.

    python -m benchmarks.reference_check --reference=CLONE

ViT-S/14 on small crops with few prototypes, random weights and inputs, no stochastic
depth. Our weights are loaded strictly into the reference's modules, and both use the
same batch in float32. Prints one JSON object.
"""

import argparse
import json

import jax
import numpy as np
import torch

from benchmarks import jax_step, reference_peer, workloads
from dinov2_jax import optimizer, ssl_meta_arch
from dinov2_jax.models import network
from dinov2_jax.weights import state_dict

SIZES = (
    "model.drop_path_rate=0.0",
    "model.layerscale=1.0",
    "crops.global_crops_size=56",
    "crops.local_crops_size=28",
    "crops.local_crops_number=3",
    "dino.head_n_prototypes=512",
)
TEACHER_TEMP = 0.05


def compare(clone: str, batch_size: int = 4) -> dict:
    """Compute both sides' loss terms and gradient norms by submodule.

    Args:
      clone: Folder that contains the package `dinov2`.
      batch_size: Images per batch.

    Returns:
      `ours`, `theirs`, and the `largest_relative_difference` between them.
    """
    config = workloads.make_config("vits", batch_size, SIZES)
    arch = ssl_meta_arch.make_ssl_meta_arch(config, jax.numpy.float32)
    # The teacher's weights differ from the student's.
    student, teacher = (arch.student.init(jax.random.key(seed)) for seed in (0, 1))
    batch = jax_step.random_batch(config)

    @jax.jit
    def value(student, teacher, batch):
        targets, _ = arch.teacher.targets(teacher, {}, batch, TEACHER_TEMP)
        (_, terms), grads = jax.value_and_grad(arch.loss, has_aux=True)(
            student, jax.lax.stop_gradient(targets), batch, jax.random.key(0)
        )
        return terms, optimizer.submodule_norms(grads)

    terms, norms = value(student, teacher, batch)
    ours = {name: float(term) for name, term in terms.items()}
    ours |= {f"gradient of {name}": float(norm) for name, norm in norms.items()}

    sizes = workloads.reference_sizes(config)
    peer = reference_peer.ReferencePeer(
        clone, reference_peer.make_config(**sizes, layerscale=config.model.layerscale)
    )
    for tree, modules in ((student, peer.model.student), (teacher, peer.model.teacher)):
        for name, module in modules.items():
            patch_size = config.model.patch_size if name == "backbone" else None
            weights = state_dict.state_dict_from_params(
                tree[name], patch_size=patch_size
            )
            module.load_state_dict(
                {key: torch.from_numpy(np.array(x)) for key, x in weights.items()}
            )

    def crops(name: str) -> torch.Tensor:
        pixels = np.array(network.normalize(jax.numpy.asarray(batch[name][0])))
        return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())

    theirs = peer.loss(
        reference_peer.make_batch(
            crops("global_crops"),
            crops("local_crops"),
            torch.from_numpy(batch["masks"][0]),
        ),
        TEACHER_TEMP,
    )
    for name, module in peer.model.student.items():
        grads = [p.grad for p in module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        theirs[f"gradient of {name}"] = norm.item()
    differences = [abs(ours[key] / theirs[key] - 1) for key in ours | theirs]
    return {
        "ours": ours,
        "theirs": theirs,
        "largest_relative_difference": max(differences),
    }


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", required=True, help="folder holding dinov2/")
    print(json.dumps(compare(parser.parse_args().reference)))


if __name__ == "__main__":
    main()

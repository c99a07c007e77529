"""The reference's own training step on the CPU, in float32.

    python -m benchmarks.reference_peer --reference=CLONE --drop_path_rate=0.3

Imports `dinov2` from a clone of github.com/facebookresearch/dinov2 (measured at
b8931f7) with the stand-ins of `benchmarks.reference_stubs`. Runs the body of its
`train/train.py:do_train`: set schedules, `SSLMetaArch.forward_backward`, clip per
submodule, foreach AdamW with its parameter groups, EMA teacher, read losses. The work
is the same as in `benchmarks.torch_peer` and `benchmarks.jax_step`.
"""

import argparse
import json
import types
import warnings
from typing import Any

import torch

from benchmarks import environment, reference_stubs, timing, torch_peer

MOMENTUM, WEIGHT_DECAY, LEARNING_RATE, CLIP = 0.992, 0.04, 1e-4, 3.0


def make_config(
    *,
    arch: str = "vit_small",
    drop_path_rate: float = 0.0,
    num_prototypes: int = 65536,
    patch_size: int = 14,
    global_size: int = 224,
    local_size: int = 98,
    num_local_crops: int = 8,
    layerscale: float = 1e-5,
) -> Any:
    """Return the fields of `ssl_default_config.yaml` that its modules read."""
    new = types.SimpleNamespace
    head = {
        "loss_weight": 1.0,
        "head_n_prototypes": num_prototypes,
        "head_bottleneck_dim": 256,
        "head_nlayers": 3,
        "head_hidden_dim": 2048,
    }
    student = new(
        arch=arch,
        patch_size=patch_size,
        drop_path_rate=drop_path_rate,
        drop_path_uniform=True,
        layerscale=layerscale,
        pretrained_weights="",
        ffn_layer="mlp",
        block_chunks=0,
        qkv_bias=True,
        proj_bias=True,
        ffn_bias=True,
        num_register_tokens=0,
        interpolate_antialias=False,
        interpolate_offset=0.1,
    )
    return new(
        compute_precision=new(grad_scaler=False),
        student=student,
        dino=new(**head, koleo_loss_weight=0.1),
        ibot=new(
            **head,
            separate_head=False,
            mask_sample_probability=0.5,
            mask_ratio_min_max=(0.1, 0.5),
        ),
        train=new(centering="sinkhorn_knopp"),
        optim=new(layerwise_decay=0.9, patch_embed_lr_mult=0.2),
        crops=new(global_crops_size=global_size, local_crops_number=num_local_crops),
    )


def make_batch(
    global_crops: torch.Tensor, local_crops: torch.Tensor, masks: torch.Tensor
) -> dict[str, Any]:
    """Make a batch in the format of the reference's `data/collate.py`.

    Args:
      global_crops: Global crops, [2B, 3, S, S], crop-major.
      local_crops: Local crops, [L*B, 3, s, s], crop-major.
      masks: Masked patches, bool [2B, N].

    Returns:
      The batch, without padding of the masked patches.
    """
    indices = masks.flatten().nonzero().flatten()
    weights = 1 / masks.sum(-1).clamp(min=1.0)
    return {
        "collated_global_crops": global_crops,
        "collated_local_crops": local_crops,
        "collated_masks": masks,
        "mask_indices_list": indices,
        "masks_weight": weights[:, None].expand_as(masks)[masks],
        "upperbound": len(indices),
        "n_masked_patches": torch.full((1,), len(indices)),
    }


class ReferencePeer:
    """The reference's model, optimizer and step.

    Args:
      clone: Folder that contains the package `dinov2`.
      config: The config, from `make_config`.
    """

    def __init__(self, clone: str, config: Any):
        reference_stubs.install(clone)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about parts of xFormers
            from dinov2.train.ssl_meta_arch import SSLMetaArch
        self.model = SSLMetaArch(config)
        self.model.need_to_synchronize_fsdp_streams = False
        for name, module in self.model.student.items():
            self.model.teacher[name].load_state_dict(module.state_dict())
        self.model.train()
        self._optimizer = torch.optim.AdamW(
            self.model.get_params_groups(), betas=(0.9, 0.999)
        )

    def step(self, batch: dict[str, Any]) -> float:
        """Run one training step; return the total loss before the update."""
        for group in self._optimizer.param_groups:
            group["weight_decay"] = WEIGHT_DECAY * group["wd_multiplier"]
            group["lr"] = LEARNING_RATE * group["lr_multiplier"]
        self._optimizer.zero_grad(set_to_none=True)
        terms = self.model.forward_backward(batch, teacher_temp=torch_peer.TEACHER_TEMP)
        # It logs half of KoLeo and iBOT.
        factors = {"koleo_loss": 2, "ibot_loss": 2}
        names = ("dino_local_crops_loss", "dino_global_crops_loss", *factors)
        total = sum(factors.get(name, 1) * terms[name].item() for name in names)
        for module in self.model.student.values():
            torch.nn.utils.clip_grad_norm_(module.parameters(), CLIP, foreach=True)
        self._optimizer.step()
        self.model.update_teacher(MOMENTUM)
        return total


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", required=True, help="folder holding dinov2/")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--sizes", type=json.loads, default={}, help="of make_config")
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=2)
    args = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)  # torch.cuda.amp.autocast
    torch.manual_seed(0)
    config = make_config(**args.sizes)
    peer = ReferencePeer(args.reference, config)
    global_size = config.crops.global_crops_size
    local_size = args.sizes.get("local_size", 98)
    masks, _ = torch_peer.random_masks(
        2 * args.batch_size, (global_size // config.student.patch_size) ** 2
    )
    batch = make_batch(
        torch.randn(2 * args.batch_size, 3, global_size, global_size),
        torch.randn(
            config.crops.local_crops_number * args.batch_size, 3, local_size, local_size
        ),
        masks,
    )
    losses = []
    seconds = timing.samples(
        lambda: losses.append(peer.step(batch)),
        count=args.samples,
        warmup=args.warmup,
    )
    print(
        json.dumps(
            {
                "first_loss": losses[0],
                "seconds": seconds,
                "host_bytes": environment.peak_host_bytes(),
                "threads": torch.get_num_threads(),
            }
        )
    )


if __name__ == "__main__":
    main()

"""The update against PyTorch, with transformers' model; devices change nothing."""

import copy
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import small
from peers import torch, transformers

from dinov2_jax.data import preprocessing
from dinov2_jax.eval.finetuning import adaptation, export, finetuner, training
from dinov2_jax.weights import reading

NAMES = [f"class {i}" for i in range(small.CLASSES)]


def transformers_model(folder, module, params):
    """transformers' classifier with these parameters, {"backbone", "head"}."""
    prepare = preprocessing.Preprocessing(resize_size=16, crop_size=16)
    weights = reading.Weights(module, {"backbone": params["backbone"]}, prepare)
    export.save_huggingface(folder, weights, params["head"], NAMES)
    model, info = transformers.AutoModelForImageClassification.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    assert not any(info[problem] for problem in info), info
    return model.eval()


def pixels(images):
    """Images [G, B, H, W, C] as a torch tensor [G * B, C, H, W]."""
    flat = images.reshape(-1, *images.shape[2:]).transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(flat))


def torch_groups(model, decay):
    """Parameters of AdamW with the layers' factors, one group each."""
    depth = model.config.num_hidden_layers
    groups = []
    for name, parameter in model.named_parameters():
        factor = 1.0
        if "embeddings." in name:
            factor = 0.6 ** (depth + 1)
        for i in range(depth):
            if f"layer.{i}." in name or f"layers.{i}." in name:
                factor = 0.6 ** (depth - i)
        undecayed = name.endswith(("bias", "lambda1")) or "norm" in name
        groups.append(
            {
                "params": [parameter],
                "factor": factor,
                "weight_decay": 0.0 if undecayed else decay,
            }
        )
    return groups


def test_steps_equal_pytorch(tmp_path):
    module, params = small.backbone()
    tuner = small.tuner(
        module,
        lr=1e-2,
        min_lr=1e-3,
        warmup_steps=2,
        layerwise_decay=0.6,
        weight_decay=0.1,
        clip_grad=0.5,
        smoothing=0.1,
        ema=0.9,
    )
    state = tuner.init(params)
    kept = tuner.adaptation.kept(params)
    model = transformers_model(
        tmp_path / "before", module, tuner.merge(kept, state.params)
    )
    tx = torch.optim.AdamW(torch_groups(model, 0.1), betas=(0.9, 0.999))
    step = jax.jit(tuner.step)
    average = np.array(state.ema["head"]["bias"])
    # A warm-up from 0 over two steps, then half a cosine over the other two.
    for i, lr in enumerate((0.0, 1e-2, 1e-2, 1e-3 + 0.5 * 9e-3)):
        images, labels = small.batch(i)
        state, loss = step(state, kept, images, labels, tuner.scalars(i))
        scores = model(pixels(images)).logits
        expected = torch.nn.functional.cross_entropy(
            scores, torch.from_numpy(labels.reshape(-1)), label_smoothing=0.1
        )
        tx.zero_grad()
        expected.backward()
        for part in (model.dinov2, model.classifier):
            torch.nn.utils.clip_grad_norm_(part.parameters(), 0.5)
        for group in tx.param_groups:
            group["lr"] = lr * group["factor"]
        tx.step()
        np.testing.assert_allclose(loss, expected.item(), rtol=1e-4)
        decay = min(0.9, (1 + i) / (10 + i))
        bias = np.asarray(state.params["head"]["bias"])
        average = decay * average + (1 - decay) * bias
        np.testing.assert_allclose(state.ema["head"]["bias"], average, atol=1e-6)
    ours = tuner.merge(kept, state.params)
    model.save_pretrained(tmp_path / "after")
    theirs = reading.read(tmp_path / "after").params["backbone"]
    # Keys' biases have no effect and a gradient of rounding alone.
    ours["backbone"], theirs = (copy.deepcopy(t) for t in (ours["backbone"], theirs))
    for tree in (ours["backbone"], theirs):
        bias = tree["blocks"]["attn"]["qkv"]["bias"]
        tree["blocks"]["attn"]["qkv"]["bias"] = np.delete(bias, range(32, 64), axis=1)
    jax.tree_util.tree_map_with_path(
        lambda path, a, b: np.testing.assert_allclose(
            a, b, atol=2e-4, err_msg=jax.tree_util.keystr(path)
        ),
        ours["backbone"],
        theirs,
    )
    np.testing.assert_allclose(
        ours["head"]["kernel"].T, model.classifier.weight.detach(), atol=2e-4
    )


def test_merged_lora_equals_pairs_beside_the_weights(tmp_path):
    module, params = small.backbone(num_register_tokens=2)
    part = adaptation.Adaptation(lora_rank=2, lora_alpha=3.0)
    tuner = small.tuner(module, part)
    state = tuner.init(params)
    rng = np.random.default_rng(7)
    pairs = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32) / 3,
        state.params["backbone"],
    )
    merged = tuner.merge(params, {"backbone": pairs, "head": state.params["head"]})
    images, _ = small.batch(0)
    ours = jax.jit(tuner.logits)(merged, images).reshape(-1, small.CLASSES)
    # The unmerged form: a hook adds x A B to what each projection gives.
    plain = {"backbone": params, "head": state.params["head"]}
    model = transformers_model(tmp_path, module, plain)
    parts = {"q_proj": 0, "k_proj": 1, "v_proj": 2, "o_proj": None}
    hooked = 0
    for name, layer in model.named_modules():
        last = name.rpartition(".")[2]
        if last not in parts:
            continue
        block = next(i for i in range(2) if f".{i}." in name)
        pair = pairs["blocks"]["attn"]["proj" if last == "o_proj" else "qkv"]
        a, b = (torch.from_numpy(np.array(pair[k][block])) for k in ("a", "b"))
        if parts[last] is not None:
            b = b[:, 32 * parts[last] : 32 * (parts[last] + 1)]
        layer.register_forward_hook(
            lambda _, x, y, a=a, b=b: y + 3.0 / 2 * (x[0] @ a @ b)
        )
        hooked += 1
    assert hooked == 8
    with torch.inference_mode():
        theirs = model(pixels(images)).logits.numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-3, rtol=1e-4)


def test_position_embeddings_are_resampled_once():
    module, params = small.backbone()
    images = np.random.default_rng(0).normal(size=(2, 24, 24, 3)).astype(np.float32)
    features = jax.jit(lambda m, p, x: m.apply({"params": p}, x).cls, static_argnums=0)
    expected = features(module, params, images)
    resized, resampled = finetuner.at_size(module, params, 24)
    assert resized.config.image_size == 24
    assert resampled["pos_embed"].shape == (1, 37, 32)
    found = features(resized, resampled, images)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def results(folder, devices):
    """Losses of three steps with everything random switched on, and the head."""
    module, params = small.backbone()
    tuner = small.tuner(
        module,
        steps=3,
        batch_size=16,
        group_size=2,
        drop_path=0.5,
        smoothing=0.1,
        cutmix_alpha=1.0,
        clip_grad=1.0,
        ema=0.5,
    )

    def batches(start):
        for step in range(start, 3):
            images, labels = small.batch(step, 1, 16)
            yield images[0], labels[0]

    tuned, course = training.fit(
        tuner,
        params,
        batches,
        path=pathlib.Path(folder) / f"{len(devices)}.npz",
        settings={},
        every=1,
        devices=devices,
    )
    kernel = tuned["head"]["kernel"]
    used = len(kernel.sharding.device_set)
    return used, [*(loss for _, loss in course), *np.asarray(kernel).ravel().tolist()]


SCRIPT = """
import json, sys
sys.path[:0] = ["tests", "tests/eval/finetuning"]
import finetuner_test, jax
devices = jax.devices()
found = [finetuner_test.results(sys.argv[1], devices[:n]) for n in (1, 8)]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_eight_devices_give_the_results_of_one(tmp_path):
    flags = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=pathlib.Path(__file__).parents[3],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (one, first), (eight, second) = json.loads(done.stdout)
    assert (one, eight) == (1, 8)
    np.testing.assert_allclose(first, second, atol=1e-5)

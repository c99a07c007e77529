"""A process that times an evaluation as `dinov2-jax evaluate` runs it."""

import numpy as np

from benchmarks import evaluation_inputs
from dinov2_jax import cli
from dinov2_jax.embed import __main__ as embed


def linear(*, width: int, classes: int, batch: int, steps: int):
    """Return steps of all classifiers on features."""
    import jax

    from dinov2_jax.eval.classification import linear_probe

    rates = linear_probe.learning_rates("code", batch)
    probe = linear_probe.Probe(rates, classes, 12_500)
    x = evaluation_inputs.features(batch * 5, width, 0).reshape(batch, 5, width)
    labels = np.arange(batch) % classes
    state = probe.init(jax.random.key(0), width)

    def call():
        nonlocal state
        previous = None
        for _ in range(steps):
            state, losses = linear_probe.train_step(
                probe, state, x[:, :-1], x[:, -1], labels, np.float32(1)
            )
            jax.block_until_ready(previous)
            previous = losses
        jax.block_until_ready(state)

    return call, None


def knn(*, width: int, bank: int, queries: int, k: int):
    """Return an exact search."""
    from dinov2_jax.eval.classification import nearest

    stored = nearest.Bank(evaluation_inputs.features(bank, width, 0))
    wanted = evaluation_inputs.features(queries, width, 1)

    def call():
        for _ in stored.search(wanted, k):
            pass

    return call, None


def logreg(*, width: int, images: int, classes: int):
    """Return a logistic regression."""
    from dinov2_jax.eval.classification import logistic_regression

    train = evaluation_inputs.clusters(images, width, classes)
    found = {}

    def call():
        solution = logistic_regression.Problem(*train).solve(evaluation_inputs.C)
        found["objective"] = solution.objective

    return call, lambda: found


def _model(width: int, depth: int, side: int):
    """Return a random ViT with patches of 14 px for windows of a side."""
    import jax

    from dinov2_jax import pretrained
    from dinov2_jax.data import preprocessing
    from dinov2_jax.models import model_config, vision_transformer

    size = -(-side // 14) * 14
    config = model_config.ModelConfig(
        embed_dim=width, depth=depth, num_heads=max(width // 64, 1), image_size=size
    )
    module = vision_transformer.VisionTransformer(config)
    params = jax.jit(module.init)(
        jax.random.key(0), np.zeros((1, size, size, 3), np.float32)
    )["params"]
    return pretrained.Model(module, params, {}, preprocessing.Preprocessing(size, size))


def window(*, width: int, depth: int, side: int, images: int, classes: int):
    """Return the segmentation of images of 3 : 4, two windows each."""
    from dinov2_jax.eval.heads import head_files, head_names
    from dinov2_jax.eval.segmentation import segmentation_head, segmentation_inference

    spec = head_names.Spec("segmentation", width, 1, num_classes=classes)
    head = head_files.Head(spec, segmentation_head.init(0, width, classes))
    settings = segmentation_inference.Inference(
        short=side, window=side, stride=side * 2 // 3, batch_size=2 * images
    )
    model = _model(width, depth, side)
    segmenter = segmentation_inference.Segmenter(model, head, settings)
    photos = np.random.default_rng(0).integers(
        0, 256, (images, 3 * side // 4, side, 3), np.uint8
    )

    def call():
        for _ in segmenter.maps(photos):
            pass

    return call, None


def backbone(*, width: int, depth: int, side: int, images: int, classes: int):
    """Return the backbone alone on as many windows."""
    import jax

    from dinov2_jax.eval import batch_placement
    from dinov2_jax.eval.segmentation import segmentation_head

    model = _model(width, depth, side)
    mesh = batch_placement.make_mesh()
    params = batch_placement.replicate(model.params, mesh)
    compute = jax.jit(segmentation_head.backbone_features(model.module, 1))
    windows = evaluation_inputs.features(2 * images * side, side * 3, 0)
    windows = windows.reshape(2 * images, side, side, 3)

    def call():
        found = compute(params, batch_placement.split(windows, mesh))
        jax.block_until_ready(found)

    return call, None


if __name__ == "__main__":
    cli.keep_freed_memory()
    embed.one_device_a_core()
    cases = {f.__name__: f for f in (linear, knn, logreg, window, backbone)}
    evaluation_inputs.main(__doc__.splitlines()[0], cases)

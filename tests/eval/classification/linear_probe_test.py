"""All classifiers of a probe against one torch.nn.Linear and SGD each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax.eval.classification import linear_probe

BATCH, WIDTH, CLASSES, STEPS = 5, 6, 4, 3


def batches():
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        yield (
            rng.normal(size=(BATCH, 4, WIDTH)).astype(np.float32),
            rng.normal(size=(BATCH, WIDTH)).astype(np.float32),
            rng.integers(0, CLASSES, BATCH),
        )


def test_every_classifier_equals_its_own_torch_sgd():
    torch = pytest.importorskip("torch")
    rates = (0.02, 0.5, 3.0)
    probe = linear_probe.Probe(rates, CLASSES, STEPS)
    initial = probe.init(jax.random.key(0), WIDTH)
    models, groups = [], []
    for head in probe.heads:
        group = probe.inputs.index((head.blocks, head.average_pool))
        rate = rates.index(head.lr)
        kernel = np.array(initial.kernels[group][:, rate])
        assert kernel.shape == ((head.blocks + head.average_pool) * WIDTH, CLASSES)
        model = torch.nn.Linear(*kernel.shape)
        model.weight.data = torch.tensor(kernel.T.copy())
        torch.nn.init.zeros_(model.bias)
        models.append(model)
        groups.append({"params": model.parameters(), "lr": head.lr})
    sgd = torch.optim.SGD(groups, momentum=0.9, weight_decay=0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, STEPS, eta_min=0)

    state = initial
    for step, (cls, pooled, labels) in enumerate(batches()):
        losses = []
        for head, model in zip(probe.heads, models):
            parts = [torch.tensor(cls[:, i]) for i in range(4 - head.blocks, 4)]
            parts += [torch.tensor(pooled)] * head.average_pool
            scores = model(torch.cat(parts, dim=1))
            losses.append(
                torch.nn.functional.cross_entropy(scores, torch.tensor(labels))
            )
        sgd.zero_grad()
        sum(losses).backward()
        sgd.step()
        cosine.step()
        state, ours = linear_probe.train_step(
            probe, state, cls, pooled, labels, probe.lr_factor(step)
        )
        np.testing.assert_allclose(ours, [x.item() for x in losses], rtol=2e-5)
    cls, pooled, _ = next(batches())
    scores = probe.scores(
        state.kernels, state.biases, jnp.array(cls), jnp.array(pooled)
    )
    for i, (head, model) in enumerate(zip(probe.heads, models)):
        x = [cls[:, 4 - head.blocks :].reshape(BATCH, -1)]
        x = np.concatenate(x + [pooled] * head.average_pool, axis=1)
        expected = model(torch.tensor(x)).detach().numpy()
        np.testing.assert_allclose(scores[:, i], expected, rtol=1e-4, atol=1e-5)


def test_grids():
    code = linear_probe.learning_rates("code", 1024)
    paper = linear_probe.learning_rates("paper", 1024)
    assert len(code) == len(paper) == 13
    assert code[0] == pytest.approx(4e-5) and code[-1] == pytest.approx(0.4)
    assert paper[0] == 1e-4 and paper[-1] == 0.5  # as listed, whatever the batch
    probe = linear_probe.Probe(code, 1000, 10)
    assert len(probe.heads) == 52
    # The reference's loops: blocks, then pooling, then rates.
    assert probe.heads[13] == linear_probe.Head(1, True, code[0])
    assert probe.heads[26] == linear_probe.Head(4, False, code[0])
    assert len({head.name for head in probe.heads}) == 52


def test_the_first_of_equal_classifiers_is_chosen():
    assert linear_probe.best([0.1, 0.7, 0.3, 0.7]) == 1

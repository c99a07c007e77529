"""Replays of recordings of evaluations that use one feature for each image."""

from collections.abc import Iterator
from typing import Any

import evaluation_checks as checks
import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax.eval.classification import (
    accuracy,
    knn,
    linear_probe,
    logistic_regression,
    splits,
)
from dinov2_jax.eval.retrieval import retrieval

Checks = Iterator[checks.Check]


def _entries(arrays: checks.Arrays, prefix: str) -> list[str]:
    """The different first parts of the names below a prefix, in order."""
    names = [key[len(prefix) :] for key in arrays if key.startswith(prefix)]
    return list(dict.fromkeys(name.split("/")[0] for name in names))


def _votes(train, labels, test, ks, config):
    blocks = knn.classify(
        train,
        labels,
        test,
        ks=ks,
        temperature=config["T"],
        num_classes=config["classes"],
    )
    return np.concatenate([np.asarray(scores) for _, scores in blocks], axis=1)


def replay_knn(arrays: checks.Arrays, config: Any) -> Checks:
    """Votes and accuracies of all k, and of few images a class."""
    train, labels, test, test_labels = (
        arrays[f"{part}_{what}"]
        for part in ("train", "test")
        for what in ("features", "labels")
    )
    ks = tuple(config["ks"])
    for k, scores in zip(ks, _votes(train, labels, test, ks, config)):
        recorded = arrays[f"probs/k{k}"]
        yield checks.close(f"probs/k{k}", scores, recorded, atol=1e-5)
        for top in (1, 5):
            # Rows with a tie may go either way; all others count the same.
            tied = arrays[f"tie_at_{top}/k{k}"]
            right = accuracy.hits(accuracy.predictions(scores, k=top), test_labels)
            recorded_hits = arrays[f"top{top}/k{k}"] * len(test)
            least = right[~tied].sum()
            outside = np.clip(recorded_hits, least, least + tied.sum()) - recorded_hits
            yield checks.close(f"top{top}/k{k} (images)", outside, 0.0, atol=1e-3)
    for name in _entries(arrays, "few/"):
        if name.endswith("_indices"):
            per_class, seed = name.removesuffix("_indices").split("_try")
            chosen = splits.few_shot(labels, int(per_class), int(seed))
            yield checks.same(f"few/{name}", chosen, arrays[f"few/{name}"])
        else:
            trial, k = name.split("_probs_k")
            chosen = arrays[f"few/{trial}_indices"]
            (scores,) = _votes(train[chosen], labels[chosen], test, (int(k),), config)
            yield checks.close(f"few/{name}", scores, arrays[f"few/{name}"], atol=1e-5)


def _tokens(arrays: checks.Arrays, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """(class tokens [B, n, D], mean patch token [B, D]) below a prefix."""
    count = sum(key.startswith(f"{prefix}cls_") for key in arrays)
    cls = np.stack([arrays[f"{prefix}cls_{i}"] for i in range(count)], axis=1)
    return cls, arrays[f"{prefix}patch_{count - 1}"].mean(axis=1)


def _input_of(name: str) -> tuple[int, bool]:
    blocks, pooled = name.removeprefix("blocks").split("_avg")
    return int(blocks), bool(int(pooled))


def replay_linear_features(arrays: checks.Arrays, config: Any) -> Checks:
    """Inputs of the classifiers, and scores of given weights."""
    cls, patch_mean = _tokens(arrays, "in/")
    for name in _entries(arrays, "feature/"):
        n, pool = _input_of(name)
        x = linear_probe.head_input(cls, patch_mean, blocks=n, average_pool=pool)
        yield checks.close(f"feature/{name}", x, arrays[f"feature/{name}"], atol=1e-6)
        weight, bias = (arrays[f"w/{name}/linear.{w}"] for w in ("weight", "bias"))
        probe = linear_probe.Probe((1.0,), len(bias), 1, (n,), (pool,))
        scores = probe.scores(
            (weight.T[:, None],), (bias[None],), jnp.array(cls), jnp.array(patch_mean)
        )
        yield checks.close(
            f"logits/{name}", scores[:, 0], arrays[f"logits/{name}"], atol=1e-5
        )


def replay_linear_probe_sgd(arrays: checks.Arrays, config: Any) -> Checks:
    """Losses, learning rates and weights of all classifiers at every step."""
    batch_size = config["batch_size_argument"] * config["world_size"]
    rates = tuple(arrays["base_lrs"] * batch_size / 256)
    names = [str(name) for name in arrays["names"]]
    inputs = [tuple(name.split("_")[i] for i in (1, 4)) for name in names]
    blocks = tuple(dict.fromkeys(int(n) for n, _ in inputs))
    pools = tuple(dict.fromkeys(pool == "True" for _, pool in inputs))
    probe = linear_probe.Probe(rates, config["classes"], config["steps"], blocks, pools)
    heads = probe.heads
    spelled = [
        f"classifier_{h.blocks}_blocks_avgpool_{h.average_pool}_lr_{h.lr:.5f}"
        for h in heads
    ]
    yield checks.same("names", [n.replace(".", "_") for n in spelled], names)

    def place(name):
        head = heads[names.index(name)]
        return probe.inputs.index((head.blocks, head.average_pool)), rates.index(
            head.lr
        )

    # The initial weights of the others are not recorded, so neither losses nor weights
    # of theirs can be compared.
    kept = [str(name) for name in arrays["kept"]]
    state = probe.init(jax.random.key(0), config["D"])
    kernels = [np.zeros(k.shape, np.float32) for k in state.kernels]
    for name in kept:
        group, rate = place(name)
        kernels[group][:, rate] = arrays[f"w0/{name}/linear.weight"].T
    state = state.replace(kernels=tuple(jnp.array(k) for k in kernels))
    columns = [names.index(name) for name in kept]
    for step in range(config["steps"]):
        factor = probe.lr_factor(step)
        yield checks.close(
            f"lrs/step{step}",
            [head.lr * factor for head in heads],
            arrays["lrs"][step],
            rtol=1e-12,
        )
        cls, patch_mean = _tokens(arrays, f"step{step}/")
        labels = arrays[f"step{step}/labels"]
        state, losses = linear_probe.train_step(
            probe, state, cls, patch_mean, labels, factor
        )
        yield checks.close(
            f"losses/step{step}",
            np.asarray(losses)[columns],
            arrays["losses"][step][columns],
            atol=1e-5,
            rtol=1e-4,
        )
        for name in kept:
            group, rate = place(name)
            for kind, ours in (
                ("weight", state.kernels[group][:, rate].T),
                ("bias", state.biases[group][rate]),
            ):
                key = f"w{step + 1}/{name}/linear.{kind}"
                yield checks.close(key, ours, arrays[key], atol=1e-5, rtol=1e-4)


def replay_schedules(arrays: checks.Arrays, config: Any) -> Checks:
    """The learning rates of the linear probe."""
    config = config["probe"]
    probe = linear_probe.Probe(tuple(config["base_lrs"]), 1, config["T"])
    factors = [probe.lr_factor(int(step)) for step in arrays["probe_iter"]]
    ours = np.outer(factors, config["base_lrs"])
    yield checks.close("probe_lr", ours, arrays["probe_lr"], rtol=1e-12)


def replay_logreg(arrays: checks.Arrays, config: Any) -> Checks:
    """The grid, the split, and the optimum at several values of C."""
    yield checks.close(
        "C_grid", logistic_regression.REFERENCE_CS, arrays["C_grid"], rtol=1e-12
    )
    shuffled = arrays["torch_randperm_1000_seed0"]
    _, held_out = splits.hold_out(len(shuffled))
    yield checks.same("held out", held_out, shuffled[: len(shuffled) // 10])
    problem = logistic_regression.Problem(arrays["X"], arrays["y"])
    cs = list(arrays["C_grid"])
    for index, solution in enumerate(problem.path(cs)):
        if f"C{index}/probs" not in arrays:
            continue
        objective = arrays[f"C{index}/objective"]
        above = max(solution.objective - objective, 0.0) / objective
        yield checks.at_most(f"C{index}/objective (relative, above)", above, 1e-8)
        yield checks.close(
            f"C{index}/probs",
            solution.probabilities(arrays["Xt"]),
            arrays[f"C{index}/probs"],
            atol=1e-5 if index <= 36 else 1e-3,
        )
        ours = logistic_regression.mean_accuracy(
            solution.predict(arrays["Xt"]), arrays["yt"]
        )
        yield checks.close(f"C{index}/acc", ours, arrays[f"C{index}/acc"], atol=1e-12)


def replay_accuracy(arrays: checks.Arrays, config: Any) -> Checks:
    """Micro, macro and by class; several labels; mapped classes."""
    scores, labels = arrays["preds"], arrays["targets"]
    count = scores.shape[1]
    mapped_scores = scores[:, arrays["mapping"]]
    for top in (1, 5):
        predicted = accuracy.predictions(scores, k=top)
        mapped = accuracy.predictions(mapped_scores, k=top)
        ours = {
            "micro": accuracy.micro(predicted, labels),
            "macro": accuracy.macro(predicted, labels, num_classes=count),
            "none": accuracy.by_class(predicted, labels, num_classes=count),
            "real": accuracy.micro(predicted, arrays["real_targets"]),
            "mapped": accuracy.micro(mapped, arrays["mapped_targets"]),
        }
        for kind, value in ours.items():
            key = f"{kind}/top-{top}"
            yield checks.close(key, value, arrays[key], atol=1e-6)


def replay_revisited(arrays: checks.Arrays, config: Any) -> Checks:
    """Rankings, and average precisions and precisions of the three setups."""
    cosines = retrieval.similarities(arrays["db"], arrays["query"])
    yield checks.close("sim", cosines.T, arrays["sim"], atol=1e-6)
    ranking = retrieval.rankings(arrays["sim"].T)
    yield checks.same("ranks", ranking.T, arrays["ranks"])
    truth = [
        {kind: arrays[f"gnd/{i}/{kind}"] for kind in ("easy", "hard", "junk")}
        for i in range(config["q"])
    ]
    for setup in retrieval.SETUPS:
        ours = retrieval.revisited(ranking, truth, setup, ks=config["ks"])
        for key, value in {
            "mAP": ours.mean_average_precision,
            "aps": ours.average_precisions,
            "mpk": ours.mean_precisions,
            "prs": ours.precisions,
        }.items():
            key = f"{setup}/{key}"
            yield checks.close(key, value, arrays[key], atol=1e-9)


def replay_amstertime_met(arrays: checks.Arrays, config: Any) -> Checks:
    """Ranks of the only relevant image; classes, confidences and GAP of the Met."""
    cosines = retrieval.similarities(arrays["at_db"], arrays["at_query"])
    ranks = retrieval.ranks_of_partners(cosines, np.arange(len(cosines)))
    yield checks.same("at_rank", ranks - 1, arrays["at_rank"])
    yield checks.close("at_ap", 1 / ranks, arrays["at_ap"], atol=1e-9)
    yield checks.close("at_map", (1 / ranks).mean(), arrays["at_map"], atol=1e-9)
    labels, train_labels = arrays["met_test_labels"], arrays["met_train_labels"]
    similar = retrieval.similarities(arrays["met_train"], arrays["met_test"])
    nearest = retrieval.rankings(similar)
    for name in _entries(arrays, "met/"):
        k, temperature = name.removeprefix("K").split("_t")
        ours = retrieval.met_predictions(
            np.take_along_axis(similar, nearest, axis=1),
            train_labels[nearest],
            k=int(k),
            temperature=float(temperature),
            num_classes=len(np.unique(train_labels)),
        )
        yield checks.same(
            f"met/{name}/preds", ours.classes, arrays[f"met/{name}/preds"]
        )
        recorded = arrays[f"met/{name}/conf"]
        yield checks.close(f"met/{name}/conf", ours.confidences, recorded, atol=1e-7)
        for key, value in {
            "gap": retrieval.global_average_precision(ours, labels),
            "gap_minus": retrieval.global_average_precision(
                ours, labels, distractors=False
            ),
            "acc": retrieval.met_accuracy(ours, labels),
        }.items():
            key = f"met/{name}/{key}"
            yield checks.close(key, value, arrays[key], atol=1e-9)


def replay_imagenet_c(arrays: checks.Arrays, config: Any) -> Checks:
    """AlexNet's errors, errors relative to them, and both means."""
    names = [str(name).lower() for name in arrays["names"]]
    ours = [accuracy.ALEXNET_ERRORS[name] for name in names]
    recorded = arrays["alexnet_error"].mean(axis=1)
    yield checks.close("alexnet_error", ours, recorded, atol=1e-12)
    relative = accuracy.corruption_errors(dict(zip(names, arrays["accuracy"])))
    yield checks.close("ce", [relative[n] for n in names], arrays["ce"], atol=1e-12)
    for key, corruptions in (
        ("mce15", accuracy.STANDARD_CORRUPTIONS),
        ("mce19", tuple(accuracy.ALEXNET_ERRORS)),
    ):
        ours = accuracy.mean_corruption_error(relative, corruptions)
        yield checks.close(key, ours, arrays[key], atol=1e-12)


KINDS = {
    "knn": replay_knn,
    "linear_features": replay_linear_features,
    "linear_probe_sgd": replay_linear_probe_sgd,
    "schedules": replay_schedules,
    "logreg": replay_logreg,
    "accuracy": replay_accuracy,
    "retrieval_revisitop": replay_revisited,
    "retrieval_amstertime_met": replay_amstertime_met,
    "imagenet_c": replay_imagenet_c,
}

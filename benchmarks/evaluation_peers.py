"""A process that times faiss or scikit-learn on what `evaluation_jax` computes."""

import os

from benchmarks import evaluation_inputs


def knn(*, width: int, bank: int, queries: int, k: int):
    """Return faiss's exact search, of features of unit length."""
    import faiss

    faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))
    stored, wanted = (
        evaluation_inputs.features(count, width, seed)
        for seed, count in enumerate((bank, queries))
    )
    faiss.normalize_L2(stored)
    faiss.normalize_L2(wanted)
    index = faiss.IndexFlatIP(width)
    index.add(stored)
    return lambda: index.search(wanted, k), None


def logreg(*, width: int, images: int, classes: int):
    """Return scikit-learn's logistic regression, converged as far as ours is."""
    import numpy as np
    from scipy import special
    from sklearn import linear_model

    features, labels = evaluation_inputs.clusters(images, width, classes)
    c = evaluation_inputs.C
    found = {}

    def call():
        model = linear_model.LogisticRegression(C=c, tol=1e-6, max_iter=10_000)
        found["model"] = model.fit(features, labels)

    def objective():
        model = found["model"]
        scores = special.log_softmax(model.decision_function(features), axis=1)
        losses = -scores[np.arange(len(labels)), labels].sum()
        return {"objective": float(c * losses + (model.coef_**2).sum() / 2)}

    return call, objective


if __name__ == "__main__":
    cases = {f.__name__: f for f in (knn, logreg)}
    evaluation_inputs.main(__doc__.splitlines()[0], cases)

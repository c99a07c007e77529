"""Random subsets of a training set, drawn as the reference draws them.

`torch.randperm` on the CPU is a Fisher-Yates shuffle from the front over the 32-bit
words of a Mersenne Twister, which NumPy has too. So few-shot subsets and held-out parts
are the reference's own, without PyTorch.
"""

import numpy as np

_MOST = 2**32 // 20  # from here on torch draws 64-bit words


class ReferenceShuffle:
    """Permutations that `torch.randperm` gives after `torch.manual_seed(seed)`.

    Args:
      seed: Seed of the stream of random words, in [0, 2**32).
    """

    def __init__(self, seed: int):
        self._words = np.random.RandomState(seed)._bit_generator

    def permutation(self, count: int) -> np.ndarray:
        """Return the next permutation of range(count), int64 [count].

        Raises:
          ValueError: `count` is so large that PyTorch uses another algorithm.
        """
        if count >= _MOST:
            raise ValueError(f"{count} items: at most {_MOST - 1} can be permuted")
        order = list(range(count))
        if count > 1:
            words = self._words.random_raw(count - 1)
            steps = words % np.arange(count, 1, -1, dtype=np.uint64)
            for i, step in enumerate(steps.tolist()):
                j = i + step
                order[i], order[j] = order[j], order[i]
        return np.array(order, np.int64)


def few_shot(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Choose the same number of images of each class.

    Mirrors `filter_train` of the reference's `eval/knn.py`.

    Args:
      labels: Label of each image, int [N].
      per_class: Number of images of each class; smaller classes are taken whole.
      seed: Seed of the choice, the number of the try.

    Returns:
      Indices of the chosen images, int64, class by class.
    """
    labels = np.asarray(labels)
    shuffle = ReferenceShuffle(seed)
    by_class = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[by_class], prepend=labels.min() - 1))
    members = np.split(by_class, starts[1:])
    return np.concatenate([m[shuffle.permutation(len(m))[:per_class]] for m in members])


def hold_out(count: int, *, share: float = 0.1, seed: int = 0) -> tuple:
    """Divide a training set into a part to train on and a part to select on.

    Mirrors the split of the reference's `eval/log_regression.py`.

    Args:
      count: Number of images N.
      share: Share of the images that is held out.
      seed: Seed of the permutation whose first images are held out.

    Returns:
      Indices to train on and indices to select on, int64.

    Raises:
      ValueError: One of the parts would be empty.
    """
    held = int(count * share)
    if not 0 < held < count:
        raise ValueError(f"{count} images cannot be divided with a share of {share}")
    order = ReferenceShuffle(seed).permutation(count)
    return order[held:], order[:held]

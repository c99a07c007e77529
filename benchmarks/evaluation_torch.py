"""A process that times the loop of the reference's linear evaluation in PyTorch.

One `nn.Linear` for each classifier, whose input is made anew, the sum of their losses,
one SGD with a group of parameters for each, and a cosine.
"""

import os

import torch
from torch import nn

from benchmarks import evaluation_inputs

RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)


class Classifier(nn.Module):
    """A linear classifier of the last class tokens and, perhaps, the mean patch."""

    def __init__(self, width: int, blocks: int, pool: bool, classes: int):
        super().__init__()
        self.blocks, self.pool = blocks, pool
        self.linear = nn.Linear((blocks + pool) * width, classes)
        self.linear.weight.data.normal_(mean=0.0, std=0.01)
        self.linear.bias.data.zero_()

    def forward(self, cls: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        """Return scores [B, C] of class tokens [B, 4, D] and mean patches [B, D]."""
        x = cls[:, cls.shape[1] - self.blocks :].flatten(1)
        return self.linear(torch.cat((x, mean), dim=-1) if self.pool else x)


def linear(*, width: int, classes: int, batch: int, steps: int):
    """Return steps of all classifiers on features."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    x = evaluation_inputs.features(batch * 5, width, 0).reshape(batch, 5, width)
    x = torch.from_numpy(x)
    labels = torch.arange(batch) % classes
    models, groups = [], []
    for blocks in (1, 4):
        for pool in (False, True):
            for rate in RATES:
                models.append(Classifier(width, blocks, pool, classes))
                groups.append({"params": models[-1].parameters(), "lr": rate})
    optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12_500)
    criterion = nn.CrossEntropyLoss()

    def call():
        for _ in range(steps):
            losses = [criterion(model(x[:, :-1], x[:, -1]), labels) for model in models]
            optimizer.zero_grad()
            sum(losses).backward()
            optimizer.step()
            schedule.step()

    return call, None


if __name__ == "__main__":
    evaluation_inputs.main(__doc__.splitlines()[0], {"linear": linear})

"""Stand-ins for imports of the reference that a CPU machine lacks.

`install` makes `dinov2.train.ssl_meta_arch` of a clone importable and runnable on the
CPU in one process, without xFormers, FSDP, fvcore, torchvision or CUDA. The stand-ins
compute the same numbers:

- xFormers' attention under a block-diagonal mask: PyTorch's fused attention on each run
  of sequences of one length, with nothing computed between sequences.
- `index_select_cat` and `scaled_index_add`: index_select and an in-place index_add_.
- xFormers' SwiGLU and cross-entropy are left out: the reference then uses its own.
- FSDP: nothing is wrapped; a module's `params` are its parameters.
- `all_reduce` over one process does nothing.

Shapes: n tokens over all sequences, H heads, C channels per head.
"""

import itertools
import sys
import types
from collections.abc import Sequence

import torch
import torch.nn.functional as F


class BlockDiagonalMask:
    """The lengths of the sequences in one row of tokens.

    Attributes:
      runs: (count, length) of each run of sequences with the same length.
    """

    def __init__(self, lengths: Sequence[int], batch_sizes: Sequence[int] = ()):
        self.runs = [(len(list(g)), n) for n, g in itertools.groupby(lengths)]
        self._lengths = list(lengths)
        self._batch_sizes = batch_sizes  # the reference sets it

    @classmethod
    def from_seqlens(cls, lengths: Sequence[int]) -> "BlockDiagonalMask":
        """Make the mask of sequences with these lengths."""
        return cls(lengths)

    @classmethod
    def from_tensor_list(
        cls, tensors: Sequence[torch.Tensor]
    ) -> tuple["BlockDiagonalMask", torch.Tensor]:
        """Join tensors [b_i, n_i, ...] into [1, n, ...]; return it after its mask."""
        lengths = [t.shape[1] for t in tensors for _ in range(t.shape[0])]
        flat = [t.reshape(1, -1, *t.shape[2:]) for t in tensors]
        return cls(lengths, [t.shape[0] for t in tensors]), torch.cat(flat, dim=1)

    def split(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Split [1, n, ...] into the tensors [b_i, n_i, ...] that it was made of."""
        starts = list(itertools.accumulate(self._batch_sizes, initial=0))
        lengths = [self._lengths[start] for start in starts[:-1]]
        sizes = [b * n for b, n in zip(self._batch_sizes, lengths)]
        return [
            part.reshape(b, n, *tensor.shape[2:])
            for part, b, n in zip(tensor.split(sizes, 1), self._batch_sizes, lengths)
        ]


def memory_efficient_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_bias: BlockDiagonalMask | None = None,
) -> torch.Tensor:
    """Compute softmax attention.

    Args:
      query: Queries, [b, n, H, C]; with a mask b is 1, and n are all sequences' tokens.
      key: Keys, [b, n, H, C].
      value: Values, [b, n, H, C].
      attn_bias: The mask that keeps sequences apart.

    Returns:
      Outputs, [b, n, H, C].
    """
    if attn_bias is None:
        return _attend(query, key, value)
    outputs, start = [], 0
    for count, length in attn_bias.runs:
        run = slice(start, start + count * length)
        qkv = (t[0, run].unflatten(0, (count, length)) for t in (query, key, value))
        outputs.append(_attend(*qkv).flatten(0, 1))
        start = run.stop
    return torch.cat(outputs)[None]


def _attend(*qkv: torch.Tensor) -> torch.Tensor:
    q, k, v = (t.transpose(1, 2) for t in qkv)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def index_select_cat(
    sources: Sequence[torch.Tensor], indices: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Concatenate chosen rows of 2-d tensors, flattened."""
    return torch.cat([s.index_select(0, i).flatten() for s, i in zip(sources, indices)])


def scaled_index_add(
    x: torch.Tensor,
    index: torch.Tensor,
    source: torch.Tensor,
    scaling: torch.Tensor,
    alpha: float,
) -> torch.Tensor:
    """Add alpha * scaling * source [k, n, D] to x[index] of x [b, n, D], in place."""
    return x.index_add_(0, index, source * scaling, alpha=alpha)


def install(clone: str) -> None:
    """Make `dinov2` of a clone importable; this patches torch for the whole process.

    Args:
      clone: Folder that contains the package `dinov2`.
    """
    ops = _module(
        "xformers.ops",
        memory_efficient_attention=memory_efficient_attention,
        unbind=torch.unbind,
        index_select_cat=index_select_cat,
        scaled_index_add=scaled_index_add,
        fmha=_module("xformers.ops.fmha", BlockDiagonalMask=BlockDiagonalMask),
    )
    _module("xformers", ops=ops)
    _module(
        "dinov2.fsdp",
        get_fsdp_wrapper=None,
        ShardedGradScaler=None,
        get_fsdp_modules=lambda module: [
            types.SimpleNamespace(params=list(module.parameters()))
        ],
        reshard_fsdp_model=lambda module: None,
    )
    # Skips its __init__, which imports the training program with data and logging.
    _module("dinov2.train", __path__=[f"{clone}/dinov2/train"])
    torch.Tensor.cuda = lambda tensor, **_: tensor
    torch.distributed.all_reduce = lambda *_, **__: None
    sys.path.insert(0, clone)


def _module(name: str, **attributes) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(attributes)
    sys.modules[name] = module
    return module

"""The training program, whose processes all use process 0's cache of compilations.

For CPUs jax gives each process of a cluster keys of its own and writes those of process
0 alone, so that the others would compile the step at every start.
"""

import runpy

from jax._src import cache_key


def _hash_number(hash_obj, devices) -> None:
    hash_obj.update(str(devices.size).encode())


cache_key._hash_accelerator_config = _hash_number
if __name__ == "__main__":  # not in the loader's workers
    runpy.run_module("dinov2_jax.main", run_name="__main__", alter_sys=True)

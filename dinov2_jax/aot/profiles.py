"""Named options of the compiler. A report names the profile and every option in it.

A run must be given the same options for a prediction to be about it: libtpu reads them
from the environment variable LIBTPU_INIT_ARGS, as `environment` writes them.
"""

PROFILES = {
    # What jax does when nobody asks for anything.
    "default": {},
    # Weights are gathered whole instead of in steps interleaved with pieces of their
    # matmul: by the compiler's own figures ViT-S on v5e:2x4 computes for 56 ms instead
    # of 85.
    "fsdp": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"},
}


def environment(options: dict[str, str]) -> str:
    """The line of a shell that gives a run these options; "" for none."""
    if not options:
        return ""
    flags = " ".join(f"--{name}={value}" for name, value in options.items())
    return f'LIBTPU_INIT_ARGS="{flags}"'

"""Named sets of compiler options; a report lists the profile and its options.

A prediction holds only for a run with the same options. libtpu reads them from the
environment variable LIBTPU_INIT_ARGS, which `environment` writes.
"""

PROFILES = {
    # jax's defaults.
    "default": {},
    # Gathers weights whole instead of in steps interleaved with pieces of their matmul:
    # by the compiler's own figures, ViT-S on v5e:2x4 computes for 56 ms instead of 85.
    "fsdp": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"},
}


def environment(options: dict[str, str]) -> str:
    """Return the shell assignment that gives a run these options; "" for none."""
    if not options:
        return ""
    flags = " ".join(f"--{name}={value}" for name, value in options.items())
    return f'LIBTPU_INIT_ARGS="{flags}"'

"""Settings of the reference's evaluations, in one place for code and flags."""

KNN_KS = (10, 20, 100, 200)
KNN_TEMPERATURE = 0.07

# Learning rates of linear probes. The code's are for a batch of 256 and scale with it;
# the paper lists (B.3) those that were used.
PROBE_GRIDS = {
    "code": (
        *(1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3),
        *(2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1),
    ),
    "paper": (
        *(1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3),
        *(1e-2, 2e-2, 5e-2, 1e-1, 2e-1, 3e-1, 5e-1),
    ),
}
PROBE_STEPS = 12_500
PROBE_BATCH = 128  # of one GPU; the published numbers are of eight
PAPER_PROBE_BATCH = 1024
PROBE_BLOCKS = (1, 4)

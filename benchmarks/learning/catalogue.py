"""The studies by name."""

from benchmarks.learning import (
    adapt,
    curated,
    distill,
    gram,
    highres,
    simdino,
    small_batch,
)

STUDIES = {
    "distill": distill.STUDY,
    "highres": highres.STUDY,
    "gram": gram.STUDY,
    "small_batch": small_batch.STUDY,
    "simdino": simdino.STUDY,
    "adapt": adapt.STUDY,
    "curated": curated.STUDY,
}

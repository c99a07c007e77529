"""All faults, by the rooms of the house."""

from tests.mutants import (
    curation_faults,
    data_faults,
    evaluation_faults,
    fault,
    model_faults,
    program_faults,
    training_faults,
    weights_faults,
)

Fault = fault.Fault
ALL: tuple[Fault, ...] = (
    *training_faults.FAULTS,
    *model_faults.FAULTS,
    *data_faults.FAULTS,
    *weights_faults.FAULTS,
    *program_faults.FAULTS,
    *evaluation_faults.FAULTS,
    *curation_faults.FAULTS,
)

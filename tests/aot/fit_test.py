import pytest
import tiny

from dinov2_jax.aot import fit, machines, step
from dinov2_jax.models import remat

EIGHT = machines.parse("v5e:2x4")
LIMIT = 16e9


def program(needed):
    return step.Program(
        step.Memory(LIMIT, needed, 1), 1.0, 1.0, None, True, [], [], 1, 1e12
    )


def test_what_the_compiler_refuses_does_not_fit():
    memory = step.Memory(LIMIT, LIMIT - 5e6)  # its message is rounded
    assert not memory.fits and memory.excess == 0
    memory = step.Memory(LIMIT, LIMIT - 5e6, 1)
    assert memory.fits and memory.excess == -5e6


def config(**train):
    return tiny.config(train=train, model={"remat": "none"})


def search(needed_of, c, machine=EIGHT):
    """Runs the search with a made-up compiler; returns its result and what it tried."""
    tried, progress = [], []

    def compile_step(c, machine):
        tried.append((c.model.remat, machine.name, c.train.batch_size))
        return program(needed_of(c, machine))

    return (
        fit.smallest_change(c, machine, compile_step, progress.append),
        tried,
        progress,
    )


def test_remat_is_tried_first_in_the_order_of_the_policies():
    names = list(remat.POLICIES)
    last = names[-1]
    found, tried, progress = search(
        lambda c, m: 10e9 if c.model.remat == last else 17.6e9, config(batch_size=64)
    )
    assert [remat for remat, _, _ in tried] == names[1:]
    assert found.description == f"--config.model.remat={last}"
    assert found.config.model.remat == last
    assert any("1.6 GB too large" in line for line in progress)
    assert any("fits, 6.0 GB to spare" in line for line in progress)


def test_then_micro_batches_one_number_after_the_other():
    found, tried, _ = search(
        lambda c, m: 10e9 if c.train.micro_batches == 4 else 17.6e9,
        config(batch_size=64, group_size=2),
    )
    last = list(remat.POLICIES)[-1]
    assert {machine for _, machine, _ in tried} == {EIGHT.name}
    assert found.description == (
        f"--config.model.remat={last} --config.train.micro_batches=4"
    )
    assert found.config.train.micro_batches == 4


def by_images(c, machine):
    return 2.4e9 * c.train.batch_size / machine.num_devices


def test_then_more_devices_for_the_same_batch():
    found, tried, _ = search(by_images, config(batch_size=64, group_size=4))
    last = list(remat.POLICIES)[-1]
    assert tried[-1] == (last, "v5e:4x4", 64)  # a group each
    assert found.description == (f"--topology=v5e:4x4 --config.model.remat={last}")


@pytest.mark.parametrize(
    "mesh, train",
    [
        ({"replica": 2, "fsdp": 4}, {}),  # which say eight devices
        ({}, {"micro_batches": 2}),  # of a group a device each, on eight
    ],
)
def test_machines_that_a_config_does_not_allow_are_not_tried(mesh, train):
    c = config(batch_size=64, group_size=4, **train)
    c.mesh.update(mesh)
    _, tried, _ = search(by_images, c)
    assert {machine for _, machine, _ in tried} == {EIGHT.name}


def test_then_fewer_images():
    # With one group each, more devices have nothing to do.
    found, tried, _ = search(by_images, config(batch_size=64, group_size=8))
    last = list(remat.POLICIES)[-1]
    assert tried[-1] == (last, "v5e:2x4", 32)
    assert found.description == (
        f"--config.model.remat={last} --config.train.batch_size=32 "
        "--config.train.group_size=4"
    )


def test_images_are_halved_by_groups_before_their_size():
    c = config(batch_size=64, group_size=8)  # one group a device
    changes = list(fit.ladder(c, EIGHT))
    halved = [
        (x.config.train.batch_size, x.config.train.group_size)
        for x in changes
        if x.config.train.batch_size < 64
    ]
    assert halved == [(32, 4), (16, 2)]  # KoLeo needs two images
    for change in changes:
        groups = change.config.train.batch_size // change.config.train.group_size
        assert groups % change.machine.num_devices == 0


def test_requested_config_is_not_modified():
    c = config(batch_size=64)
    list(fit.ladder(c, EIGHT))
    assert (c.train.batch_size, c.model.remat) == (64, "none")


def test_nothing_fits():
    found, tried, _ = search(lambda c, m: 99e9, config(batch_size=16, group_size=2))
    assert found is None and len(tried) == len(remat.POLICIES) - 1


@pytest.mark.parametrize(
    "message, needed",
    [
        ("RESOURCE_EXHAUSTED: Used 17.35G of 15.75G hbm. Exceeded", 17.35 * 2**30),
        (
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, "
            "the total memory required for HLO temporaries (512.00M) exceeds available "
            "HBM (15.75G).",
            512 * 2**20,
        ),
        ("INTERNAL: Mosaic failed to compile TPU kernel", None),
    ],
)
def test_out_of_memory_message_is_parsed(message, needed):
    assert step.needed_bytes(message) == needed

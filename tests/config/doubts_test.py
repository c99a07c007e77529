from configs import debug
from dinov2_jax.config import doubts


def test_a_single_prototype_is_doubted():
    config = debug.get_config()
    assert not doubts.find(config)
    config.dino.head_n_prototypes = 1
    (said,) = doubts.find(config)
    assert said.startswith("dino.head_n_prototypes = 1: ") and "raise --config." in said
    config.dino.loss_weight = 0.0
    assert not doubts.find(config)


def test_prototypes_that_stay_frozen_are_doubted():
    config = debug.get_config()
    steps = config.train.steps
    config.optim.freeze_last_layer_steps = steps - 1
    assert not doubts.find(config)
    config.optim.freeze_last_layer_steps = steps
    (said,) = doubts.find(config)
    assert "the prototypes never learn" in said
    config.distill.source = "teacher"  # whose prototypes are the student's
    assert not doubts.find(config)

"""DINOv2 in JAX: pretraining, evaluation and verified export."""

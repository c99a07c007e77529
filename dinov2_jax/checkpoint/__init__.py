"""Checkpoints: the only package that imports orbax."""

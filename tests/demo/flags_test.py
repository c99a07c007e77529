"""What the command says where something is missing, before it loads a model."""

import importlib.util

import pytest

from dinov2_jax.demo import __main__ as demo

WITHOUT_GRADIO = importlib.util.find_spec("gradio") is None


@pytest.mark.skipif(not WITHOUT_GRADIO, reason="Gradio is installed")
def test_without_gradio_the_extra_is_named(capsys):
    assert demo.main(["--model=dinov2_vits14"]) == 2
    error = capsys.readouterr().err
    assert "pip install 'dinov2-jax[demo]'" in error and error.count("\n") == 1


def test_a_port_is_a_number(capsys):
    with pytest.raises(SystemExit) as leaving:
        demo.main(["--model=dinov2_vits14", "--port=http"])
    assert leaving.value.code == 2
    assert "'http' is not a whole number" in capsys.readouterr().err

"""A recipe as a config file: only what differs from the default, with the reasons."""

import json
import textwrap
from typing import Any

from dinov2_jax.config import flattening
from dinov2_jax.recipe import choices, plan

_WIDTH = 88
_INDENT = "    "


def render(recipe: choices.Recipe, compiled: str = "") -> str:
    """Return the text of a Python file with `get_config()`.

    Args:
      recipe: The recipe.
      compiled: What the compiled step needs, a sentence, if it was compiled.
    """
    default = flattening.flatten(recipe.default)
    lines = ['"""' + recipe.title, ""]
    for paragraph in _paragraphs(recipe, compiled):
        lines += [*paragraph, ""]
    lines[-1:] = ['"""', "", "from dinov2_jax.configs import default", "", ""]
    lines += ["def get_config():", f'{_INDENT}"""Return the configuration."""']
    lines.append(f"{_INDENT}c = default.get_config()")
    for choice in recipe.choices:
        differing = {k: v for k, v in choice.fields.items() if v != default[k]}
        lines += _comment(choice, differing)
        lines += [f"{_INDENT}c.{k} = {_literal(v)}" for k, v in differing.items()]
    return "\n".join([*lines, f"{_INDENT}return c", ""])


def _paragraphs(recipe: choices.Recipe, compiled: str) -> list[list[str]]:
    """Return the docstring's paragraphs after the title, as lines."""
    needed, usable = plan.needed_bytes(recipe.config) / 1e9, plan.USABLE
    reasons = (
        "Every value has its reason in a comment. Values called a guess are rules that "
        "no study has confirmed (docs/small.md)."
    )
    memory = compiled or (
        f"By estimate a step needs {needed:.1f} GB, and {usable:.0%} of "
        f"{recipe.request.memory:g} GB can be used; --verify compiles it."
    )
    speed = (
        f"The run takes {recipe.hours:.1f} hours if the images come fast enough, "
        f"{recipe.images_per_second:,.0f} a second: `dinov2-jax data bench` measures "
        "that."
    )
    texts = [reasons, f"{memory} {speed}", *recipe.advice]
    command = ["Written by", "", f"{_INDENT}{recipe.request.command}"]
    return [command] + [
        textwrap.wrap(text, _WIDTH, break_on_hyphens=False) for text in texts
    ]


def _comment(choice: choices.Choice, differing: dict[str, Any]) -> list[str]:
    """Return the comment above the fields of a choice, and names those left alone."""
    reason = choice.reason
    if not differing:
        left = ", ".join(f"{k} = {_literal(v)}" for k, v in choice.fields.items())
        reason = f"{left}, the default: {reason}"
    return textwrap.wrap(
        reason,
        _WIDTH,
        initial_indent=f"{_INDENT}# ",
        subsequent_indent=f"{_INDENT}# ",
        break_on_hyphens=False,
    )


def _literal(value: Any) -> str:
    """Return a value as Python source in this project's style."""
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000:
        return f"{value:_}"
    return repr(value)

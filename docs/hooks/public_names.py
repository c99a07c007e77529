"""The part of api.md about the names that `import dinov2_jax` gives."""

from typing import Any

import dinov2_jax

_MARKER = "<!-- public names -->"


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Return the page with the public names, where they are defined, at its marker."""
    if page.file.src_uri != "api.md":
        return markdown
    return markdown.replace(_MARKER, "\n\n".join(map(_directive, dinov2_jax.__all__)))


def _directive(name: str) -> str:
    """Return what mkdocstrings replaces by the documentation of a name."""
    value = getattr(dinov2_jax, name)
    heading = f"dinov2_jax.{name}"
    return (
        f"::: {value.__module__}.{value.__qualname__}\n"
        f"    options:\n      heading: {heading}\n      toc_label: {heading}"
    )

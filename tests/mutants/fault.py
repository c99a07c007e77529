"""A mistake that somebody might make, as the smallest edit of one file."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Fault:
    """A text that stands once in a file, and what stands there instead.

    Attributes:
      name: A few words, joined by dashes.
      file: Below the root of the repository.
      text: What is replaced.
      replacement: What is planted.
      tests: The tests that should catch it: files or node ids below tests/.
      hangs: Whether a test that reaches the time limit has caught it.
    """

    name: str
    file: str
    text: str
    replacement: str
    tests: tuple[str, ...]
    hangs: bool = False

    def planted(self, content: str) -> str:
        """The file's content with the fault."""
        assert content.count(self.text) == 1, (self.name, content.count(self.text))
        return content.replace(self.text, self.replacement)

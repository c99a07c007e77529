"""Links of the guides to files outside docs/, which the site does not have.

`../configs/vits.py` works on GitHub; on the site it becomes the file's address there.
"""

import pathlib
import re
from typing import Any

from mkdocs.exceptions import PluginError

_LINK = re.compile(r"(?<=\]\()\.\./([^)#\s]+)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Return the page with the addresses of files of the repository in its links.

    Raises:
      PluginError: There is no such file.
    """
    root = pathlib.Path(config.config_file_path).parent

    def address(match: re.Match) -> str:
        if not (root / match[1]).exists():
            raise PluginError(
                f"{page.file.src_uri} links to ../{match[1]}: no such file"
            )
        return f"{config.extra['repository']}/{match[1]}"

    return _LINK.sub(address, markdown)

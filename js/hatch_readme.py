"""Makes README.md what PyPI shows of the wheel, with links that lead somewhere: no file lies beside it there."""

from __future__ import annotations

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"""(?P<before>\]\(|\b(?P<kind>src|srcset|href)=")(?P<to>(?![a-z]+:|//|\#)[^)"\s]+)""")
_PICTURES = (".gif", ".jpg", ".png", ".svg", ".webp")


class CustomMetadataHook(MetadataHookInterface):
    """hatchling's hook: `update` runs before the metadata of a wheel or an sdist is written."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, object]) -> None:
        """Sets `readme`, from README.md and the address of the source."""
        urls = metadata["urls"]
        assert isinstance(urls, dict)
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute(text, urls["Source"])}


def absolute(text: str, source: str) -> str:
    """Returns Markdown whose relative links lead into a repository at its branch `main`; pictures to their bytes."""

    def there(found: re.Match[str]) -> str:
        to = found["to"]
        how = "raw" if to.lower().endswith(_PICTURES) else "blob"
        return f"{found['before']}{source}/{how}/main/{to}"

    return _LINK.sub(there, text)

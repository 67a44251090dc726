"""Text that may stand in an XML file."""

import re
from typing import Final

# What XML 1.0 cannot hold in any spelling.
_IMPOSSIBLE: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def xml_text(text: str) -> str:
    """Return text with a replacement character for each that XML cannot hold."""
    return _IMPOSSIBLE.sub("\ufffd", text)

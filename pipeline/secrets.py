"""What must not be written anywhere: credentials, taken out of every text that leaves a process."""

import logging
import os
import re
import sys
import traceback
from types import TracebackType
from typing import Any, Final

# Names of parameters that hold secrets: `split_signature` takes them, and no less is hidden here.
SECRET_WORDS: Final = r"signature|token|credential|secret|passw|api.?key|access.?key"
SECRET_PARAMETERS: Final = "auth|pwd"  # only as whole names: "author" is none
_USER_INFO: Final = re.compile(r"(\b[\w+.-]+://)[^\s/@]+@")
# A name that holds a question mark is a name; these parameters are what signed URLs carry.
_SIGNED_QUERY: Final = re.compile(
    rf"(://[^\s?]+)\?[^\s'\"#]*(?:{SECRET_WORDS}|sig|key|x-amz-|x-goog-"
    rf"|\b(?:{SECRET_PARAMETERS})(?==))[^\s=]*=[^\s'\"#]*",
    re.I,
)
# The same where no URL surrounds them, as in the logs of an HTTP client.
_SIGNING_PARAMETER: Final = re.compile(
    r"\b(x-(?:amz|goog)-(?:signature|credential|security-token)|signature)"
    r"([=:]\s*)[^\s&'\",;]+",
    re.I,
)
_AUTHORIZATION: Final = re.compile(r"(authorization['\"]?\s*[:=,]\s*b?['\"]?)[^\r\n'\"]+", re.I)
_SECRET_NAME: Final = re.compile(
    r"SECRET|TOKEN|PASSW|CREDENTIAL|ACCESS_?KEY|API_?KEY|ACCOUNT_?KEY|CONNECTION_STRING", re.I
)
_SHORTEST_SECRET: Final = 8  # shorter values would be found in every text


def hide_secrets(text: str) -> str:
    """Return `text` without the secrets in it.

    They are user information and signed queries of URLs, signatures and authorizations outside of
    URLs, and whatever an environment variable with the name of a secret holds.
    """
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and value in text and _SECRET_NAME.search(name):
            text = text.replace(value, "***")
    text = _SIGNED_QUERY.sub(r"\1", _USER_INFO.sub(r"\1", text))
    return _AUTHORIZATION.sub(r"\1***", _SIGNING_PARAMETER.sub(r"\1\2***", text))


def hide_all_secrets(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings with every text in them as `hide_secrets` has it."""
    return {
        name: hide_secrets(value) if isinstance(value, str) else value
        for name, value in settings.items()
    }


class HidingFormatter(logging.Formatter):
    """Formats a record, traceback included, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of the record."""
        return hide_secrets(super().format(record))


def hide_in_output() -> None:
    """Keep secrets out of what this process logs, by whatever library, and out of tracebacks."""
    for handler in [*logging.getLogger().handlers, logging.lastResort]:
        if handler is not None and not isinstance(handler.formatter, HidingFormatter):
            pattern = handler.formatter._fmt if handler.formatter else None
            handler.setFormatter(HidingFormatter(pattern))
    sys.excepthook = _print_traceback


def _print_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    sys.stderr.write(hide_secrets("".join(traceback.format_exception(kind, error, trace))))

"""Notices that a spot machine is about to be taken away, from the machine's metadata service."""

import json
import logging
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

_TIMEOUT_S: Final = 2.0
_TOKEN_LIFE_S: Final = 21_600

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Notice:
    """A machine's end: how it was told, and in how many seconds; None: it was not told."""

    text: str
    seconds: float | None


@dataclass(frozen=True)
class Metadata:
    """The metadata service of a kind of machine, and how it is asked for a notice."""

    url: str
    look: Callable[[str], Notice | None]

    def notice(self, url: str | None = None) -> Notice | None:
        """Return the notice, None where there is none; raises OSError where none can be had."""
        return self.look((url or self.url).rstrip("/"))


def _aws(url: str) -> Notice | None:
    # https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
    lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_LIFE_S)}
    token = _ask(f"{url}/latest/api/token", lifetime, "PUT")
    path = f"{url}/latest/meta-data/spot/instance-action"
    told = _ask(path, {"X-aws-ec2-metadata-token": token or ""})
    if told is None:
        return None
    action: dict[str, Any] = json.loads(told)
    end = datetime.fromisoformat(action["time"].replace("Z", "+00:00"))
    left = (end - datetime.now(UTC)).total_seconds()
    return Notice(f"AWS will {action['action']} this machine at {action['time']}", max(0.0, left))


def _gcp(url: str) -> Notice | None:
    # https://cloud.google.com/compute/docs/instances/create-use-spot#detect-preemption
    path = f"{url}/computeMetadata/v1/instance/preempted"
    told = _ask(path, {"Metadata-Flavor": "Google"})
    if told is None or told.strip() != "TRUE":
        return None
    return Notice("GCP preempts this machine", None)


CLOUDS: Final[Mapping[str, Metadata]] = {
    "aws": Metadata("http://169.254.169.254", _aws),
    "gcp": Metadata("http://metadata.google.internal", _gcp),
}


def _ask(url: str, headers: Mapping[str, str], method: str = "GET") -> str | None:
    """Return an answer's text, None where the service knows of no such thing."""
    request = urllib.request.Request(url, headers=dict(headers), method=method)
    # Not through a proxy that the environment names: the service is this machine's own.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_TIMEOUT_S) as answer:
            text: str = answer.read().decode()
            return text
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise

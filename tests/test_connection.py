"""What Ray's start leaves of a process: its handler of SIGTERM."""

import os
import signal
import sys

import pytest

from pipeline.runtime.connection import _kept_sigterm


@pytest.fixture
def ours():
    """A handler as `jobs.cli` sets it."""

    def handler(number, frame):
        raise KeyboardInterrupt

    kept = signal.signal(signal.SIGTERM, handler)
    yield handler
    signal.signal(signal.SIGTERM, kept)


def of_ray(number, frame):
    sys.exit(number)


@pytest.mark.parametrize("is_hit", [False, True])
def test_ours_is_there_again_after_rays_start(ours, is_hit):
    def start():
        with _kept_sigterm():
            signal.signal(signal.SIGTERM, of_ray)
            if is_hit:  # found by chaos: the run ended with 15 and said nothing
                os.kill(os.getpid(), signal.SIGTERM)

    if is_hit:
        with pytest.raises(KeyboardInterrupt):
            start()
    else:
        start()
    assert signal.getsignal(signal.SIGTERM) is ours


def test_what_else_ends_the_start_goes_through(ours):
    with pytest.raises(SystemExit, match="3"), _kept_sigterm():
        signal.signal(signal.SIGTERM, of_ray)
        sys.exit(3)
    assert signal.getsignal(signal.SIGTERM) is ours

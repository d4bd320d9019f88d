"""Real servers for tests, benchmarks and development: etcd, NSQ, nginx, on free loopback ports.

`binaries` gets or builds the programs, once, into the user's cache; the other modules start them in a directory that
the caller gives. Only the standard library is used, so that any Python can start them.
"""

from __future__ import annotations

import os


class Unavailable(Exception):
    """A program cannot be had on this machine; the text says what was tried and what to install."""


class ServerFailed(Exception):
    """A server ended, or did not become ready in time; the text has the end of its log."""


def need(*parts: str) -> None:
    """Gets the named parts of `binaries` ("nsq", "etcd-3.6", "etcd-3.4", "nginx") for the test that calls it.

    What cannot be had is a skip with its reason on a developer's machine, and a failure where CI=true.
    """
    import pytest

    from servers import binaries

    for part in parts:
        try:
            binaries.get(part)
        except Unavailable as error:
            if os.environ.get("CI") == "true":
                pytest.fail(str(error), pytrace=False)
            pytest.skip(str(error))

"""Put the plugin's ReSSL into solo-learn's registry of methods."""

from __future__ import annotations

import logging
import sys

log = logging.getLogger(__name__)


def register() -> None:
    """METHODS["ressl"] becomes the plugin's class; the host's own stays at METHODS["ressl_host"].

    The host holds its registry by identity everywhere, so the dict is changed, never rebound.
    Calling it again does nothing.
    """
    from ressl_plugin import host
    from ressl_plugin.method.ressl import ReSSL

    if host.METHODS.get("ressl") is ReSSL:
        return
    host.METHODS["ressl_host"] = host.METHODS["ressl"]
    host.METHODS["ressl"] = ReSSL
    _say("ressl_plugin: METHODS['ressl'] is the plugin's, METHODS['ressl_host'] the host's own")


def register_for_host_scripts() -> None:
    """`register`, and what its configs assume of the machine."""
    from ressl_plugin.host import machine

    register()
    machine.mend()


def _say(line: str) -> None:
    """To the log; to stderr where nobody has set one up, as in the host's scripts."""
    if log.hasHandlers() and log.isEnabledFor(logging.INFO):
        log.info(line)
    else:
        print(line, file=sys.stderr)

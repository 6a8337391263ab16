"""Put the plugin's ReSSL into solo-learn's registry of methods."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)


def register() -> None:
    """METHODS["ressl"] becomes the plugin's class; the host's own stays at METHODS["ressl_host"].

    The host holds its registry by identity everywhere, so the dict is changed, never rebound.
    Calling it again does nothing.
    """
    from ressl_plugin import host
    from ressl_plugin.method import ReSSL

    if host.METHODS.get("ressl") is ReSSL:
        return
    host.METHODS["ressl_host"] = host.METHODS["ressl"]
    host.METHODS["ressl"] = ReSSL
    log.info("ressl_plugin: METHODS['ressl'] is the plugin's, METHODS['ressl_host'] the host's own")

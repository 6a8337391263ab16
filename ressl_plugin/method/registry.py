"""Put the plugin's ReSSL into solo-learn's registry of methods."""

from __future__ import annotations

import sys


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
    line = "ressl_plugin: METHODS['ressl'] is the plugin's, METHODS['ressl_host'] the host's own"
    print(line, file=sys.stderr)


def register_for_host_scripts() -> None:
    """`register`, and what its configs assume of the machine."""
    from ressl_plugin.host import machine

    register()
    machine.mend()

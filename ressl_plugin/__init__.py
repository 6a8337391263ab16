"""ReSSL (Relational Self-Supervised Learning with Weak Augmentation) for solo-learn."""

__version__ = "0.2.0"


def register() -> None:
    """Put the plugin's ReSSL into solo-learn's registry (see registry.register)."""
    from ressl_plugin.method.registry import register as put

    put()

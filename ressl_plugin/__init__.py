"""ReSSL (Relational Self-Supervised Learning with Weak Augmentation) for solo-learn."""

__version__ = "0.1.0"

"""Probes."""


def build_probes() -> None:
    """Not yet."""

"""Figures, tables and the page. Nothing here loads torch, and nothing loads matplotlib before a figure is drawn."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

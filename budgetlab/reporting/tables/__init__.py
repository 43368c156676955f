"""Tables for terminals, for the page and as files: each is rows and a column spec."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

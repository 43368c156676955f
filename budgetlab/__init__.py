"""Scaling-law and compute-budget analysis for the question: distil, or pretrain on more tokens?

The values and the verbs, in the order in which data flows:

    load_study -> profile -> plan -> run -> evaluate -> fit -> report

What is public is listed in `__init__.pyi` and loaded when it is used: planning, fitting and reporting never load torch.
"""  # noqa: D400  the question is the subject

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

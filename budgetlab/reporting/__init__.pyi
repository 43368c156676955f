# The public names and where they are defined: `__init__.py` loads them when they are used.

from .assemble import Report as Report, report as report
from .conclusion import (
    Conclusion as Conclusion,
    SanityCheck as SanityCheck,
    conclude as conclude,
    conclude_study as conclude_study,
    sanity_checks as sanity_checks,
)
from .figures import FigureFiles as FigureFiles

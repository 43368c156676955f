# What `__init__.py` loads when it is used; read by type checkers too.

from .assemble import Report as Report, report as report
from .conclusion import (
    Conclusion as Conclusion,
    SanityCheck as SanityCheck,
    conclude as conclude,
    conclude_study as conclude_study,
    sanity_checks as sanity_checks,
)
from .figures import FigureFiles as FigureFiles

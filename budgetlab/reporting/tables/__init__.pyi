# The public names and where they are defined: `__init__.py` loads them when they are used.

from .answer_sheets import (
    assumption_sheet as assumption_sheet,
    assumption_words as assumption_words,
    fit_sheet as fit_sheet,
    map_sheet as map_sheet,
    next_sheet as next_sheet,
    runs_sheet as runs_sheet,
    score_files_sheet as score_files_sheet,
    verdict_sheet as verdict_sheet,
)
from .cost_sheets import (
    model_sheet as model_sheet,
    phase_sheet as phase_sheet,
    profile_sheet as profile_sheet,
    ratio_sheet as ratio_sheet,
    time_model_sheet as time_model_sheet,
)
from .plan_sheets import (
    plan_sheet as plan_sheet,
    status_sheet as status_sheet,
    workers_sheet as workers_sheet,
)
from .score_sheets import (
    average_sheet as average_sheet,
    closing_frame as closing_frame,
    closing_sheet as closing_sheet,
    full_sheet as full_sheet,
    score_sheet as score_sheet,
    subset_note as subset_note,
)
from .sheets import (
    Column as Column,
    Sheet as Sheet,
    markdown as markdown,
    plain_lines as plain_lines,
    plain_rows as plain_rows,
    print_sheets as print_sheets,
    stack as stack,
)

"""What the folders of runs say, without torch: settings, values, state; lists and compares runs.

``python -m base.runs saved/digits`` lists the runs of one name. Nothing here writes to a run.
"""

from typing import TYPE_CHECKING

from base.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from base.runs.comparison import ABSENT as ABSENT
    from base.runs.comparison import common_rule as common_rule
    from base.runs.comparison import differing_settings as differing_settings
    from base.runs.comparison import ranked as ranked
    from base.runs.facts import RunFacts as RunFacts
    from base.runs.facts import list_runs as list_runs
    from base.runs.facts import read_run as read_run
    from base.runs.listing import csv_of_runs as csv_of_runs
    from base.runs.listing import table_text as table_text
else:
    __getattr__, __all__ = lazy_imports(__name__)

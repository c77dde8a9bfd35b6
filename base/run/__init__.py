"""One run, from its config to its report: build it, check it, open it, log it, test it.

train.py and test.py use the names listed here; files of the engine import each other directly.
"""

from typing import TYPE_CHECKING

from base.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from base.run.build import build_experiment as build_experiment
    from base.run.build import build_trainer as build_trainer
    from base.run.build import choose_device as choose_device
    from base.run.build import make_repeatable as make_repeatable
    from base.run.check_kinds import try_out as try_out
    from base.run.checks import check as check
    from base.run.data_changes import record_to_resume as record_to_resume
    from base.run.data_changes import references_to_resume as references_to_resume
    from base.run.data_changes import refuse_changed_data as refuse_changed_data
    from base.run.rank_checks import check_ranks as check_ranks
    from base.run.rank_checks import hash_code_at_start as hash_code_at_start
    from base.run.restarts import resume_together as resume_together
    from base.run.session import open_run as open_run
    from base.run.session import write_deferred_files as write_deferred_files
    from base.run.testing import build_tested_experiment as build_tested_experiment
    from base.run.testing import choose_checkpoint as choose_checkpoint
    from base.run.testing import record_validation as record_validation
    from base.run.testing import run_test as run_test
else:
    __getattr__, __all__ = lazy_imports(__name__)

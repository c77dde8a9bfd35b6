"""Everything around one run: build it, check it, open its folder, log it, test it, report on it."""

from typing import TYPE_CHECKING

from base.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from base.run.checks import begin as begin
    from base.run.checks import check as check
    from base.run.checks import dry_run as dry_run
    from base.run.data_changes import keep_data as keep_data
    from base.run.data_changes import record_to_resume as record_to_resume
    from base.run.data_changes import references_to_resume as references_to_resume
    from base.run.data_changes import refuse_changed_data as refuse_changed_data
    from base.run.doctor import main as main
    from base.run.header import header_facts as header_facts
    from base.run.micro_batch import settle as settle
    from base.run.micro_batch import tell_batch_norm as tell_batch_norm
    from base.run.own_sections import build_own as build_own
    from base.run.parameter_table import audit as audit
    from base.run.parameter_table import loaded_tables as loaded_tables
    from base.run.parameter_table import short_table as short_table
    from base.run.parameter_table import write_csv as write_csv
    from base.run.profiler import Profiler as Profiler
    from base.run.testing import build_tested as build_tested
    from base.run.testing import choose_checkpoint as choose_checkpoint
    from base.run.testing import run_test as run_test
    from base.run.testing import state_put_back as state_put_back
    from base.run.writers import make_writers as make_writers
else:
    __getattr__, __all__ = lazy_imports(__name__)

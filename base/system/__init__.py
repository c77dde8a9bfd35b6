"""The machine and the process: cores, memory, signals, seeds and run folders.

`torch_compat` contains all workarounds for torch. `cores`, `run_folder`, `signals`,
`deferred_files` and `places` do not import torch, as checking a config and finding a run do not
need it.
"""

from typing import TYPE_CHECKING

from base.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from base.system.cores import free_cores as free_cores
    from base.system.cores import usable_cores as usable_cores
    from base.system.cores import watch_cores as watch_cores
    from base.system.deferred_files import DeferredFiles as DeferredFiles
    from base.system.deferred_files import defer_files as defer_files
    from base.system.deferred_files import waiting_files as waiting_files
    from base.system.deferred_files import write_when_running as write_when_running
    from base.system.places import ENGINE as ENGINE
    from base.system.places import PROJECT as PROJECT
    from base.system.resources import UNLIMITED as UNLIMITED
    from base.system.resources import free_memory as free_memory
    from base.system.resources import is_out_of_memory as is_out_of_memory
    from base.system.resources import peak_memory_mb as peak_memory_mb
    from base.system.resources import use_threads as use_threads
    from base.system.run_folder import STAMP as STAMP
    from base.system.run_folder import check_run_folder as check_run_folder
    from base.system.run_folder import create_run_folder as create_run_folder
    from base.system.run_folder import find_newest_run as find_newest_run
    from base.system.run_folder import find_run as find_run
    from base.system.run_folder import folders_of_runs as folders_of_runs
    from base.system.run_folder import installed_version as installed_version
    from base.system.run_folder import is_run as is_run
    from base.system.run_folder import locate as locate
    from base.system.run_folder import missing_folder_error as missing_folder_error
    from base.system.run_folder import must_exist as must_exist
    from base.system.run_folder import newest_run_in as newest_run_in
    from base.system.run_folder import read_stamp as read_stamp
    from base.system.run_folder import remove_if_not_started as remove_if_not_started
    from base.system.run_folder import run_folder_of as run_folder_of
    from base.system.run_folder import update_stamp as update_stamp
    from base.system.run_folder import write_environment as write_environment
    from base.system.run_lock import is_locked as is_locked
    from base.system.run_lock import lock as lock
    from base.system.seeding import capture_random_state as capture_random_state
    from base.system.seeding import cpu_streams as cpu_streams
    from base.system.seeding import derive_generator as derive_generator
    from base.system.seeding import derive_seed as derive_seed
    from base.system.seeding import isolated_random_state as isolated_random_state
    from base.system.seeding import restore_random_state as restore_random_state
    from base.system.seeding import seed_cpu_streams as seed_cpu_streams
    from base.system.seeding import seed_everything as seed_everything
    from base.system.seeding import set_cpu_streams as set_cpu_streams
    from base.system.signals import SAVER as SAVER
    from base.system.signals import InterruptedRunError as InterruptedRunError
    from base.system.signals import SignalFlags as SignalFlags
    from base.system.signals import exit_now as exit_now
    from base.system.signals import resume_command as resume_command
    from base.system.torch_compat import AUTOCAST_CACHE as AUTOCAST_CACHE
    from base.system.torch_compat import WorkerDeaths as WorkerDeaths
    from base.system.torch_compat import WorkerDied as WorkerDied
    from base.system.torch_compat import dynamo_is_imported as dynamo_is_imported
    from base.system.torch_compat import keep_freed_memory as keep_freed_memory
    from base.system.torch_compat import put_off_dynamo as put_off_dynamo
else:
    __getattr__, __all__ = lazy_imports(__name__)

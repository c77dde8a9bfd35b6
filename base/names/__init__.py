"""Resolves names in a config to classes and functions, and builds objects from them.

``registry.find`` looks up a name in the project, then in torch. ``check.check_names`` checks all
names and arguments of a config before anything is built. ``construction.build`` builds the object
of a section.
"""

from typing import TYPE_CHECKING

from base.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from base.names.check import check_names as check_names
    from base.names.check import check_section as check_section
    from base.names.construction import build as build
    from base.names.discovery import describe_error as describe_error
    from base.names.discovery import project_root as project_root
    from base.names.discovery import set_project_root as set_project_root
    from base.names.exclusions import check_combinations as check_combinations
    from base.names.exclusions import layout_wish as layout_wish
    from base.names.final_methods import INSTEAD_IN_TRAINERS as INSTEAD_IN_TRAINERS
    from base.names.final_methods import OF_PYTORCH_TEMPLATE as OF_PYTORCH_TEMPLATE
    from base.names.final_methods import final_names as final_names
    from base.names.final_methods import refuse_overridden as refuse_overridden
    from base.names.listing import describe as describe
    from base.names.listing import show_names as show_names
    from base.names.listing import type_schemas as type_schemas
    from base.names.object_references import References as References
    from base.names.object_references import refuse_objects as refuse_objects
    from base.names.registry import CALLBACKS as CALLBACKS
    from base.names.registry import DATA_LOADERS as DATA_LOADERS
    from base.names.registry import DATASETS as DATASETS
    from base.names.registry import INITS as INITS
    from base.names.registry import KINDS as KINDS
    from base.names.registry import LOSSES as LOSSES
    from base.names.registry import LR_SCHEDULERS as LR_SCHEDULERS
    from base.names.registry import METRICS as METRICS
    from base.names.registry import MODELS as MODELS
    from base.names.registry import OPTIMIZERS as OPTIMIZERS
    from base.names.registry import SAMPLERS as SAMPLERS
    from base.names.registry import TRAINERS as TRAINERS
    from base.names.registry import TRANSFORMS as TRANSFORMS
    from base.names.registry import find as find
    from base.names.registry import override_note as override_note
    from base.names.shipped import passed_own_code as passed_own_code
    from base.names.signatures import DURATION_ARGUMENTS as DURATION_ARGUMENTS
    from base.names.signatures import FILLED_IN as FILLED_IN
    from base.names.signatures import needed_arguments as needed_arguments
    from base.names.signatures import signature as signature
    from base.names.signatures import value_fault as value_fault
else:
    __getattr__, __all__ = lazy_imports(__name__)

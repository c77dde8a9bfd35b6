"""Parses and validates configs, and records the location of each value.

This package does not import torch, so structural errors in a config are reported within
milliseconds. Names in a config are checked in ``base/names/``.
"""

from typing import TYPE_CHECKING

from base.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from base.config.changes import OWN_STATE as OWN_STATE
    from base.config.changes import differences as differences
    from base.config.changes import table_of as table_of
    from base.config.command_line import Parser as Parser
    from base.config.command_line import choose_config as choose_config
    from base.config.command_line import choose_tested as choose_tested
    from base.config.command_line import parse_test as parse_test
    from base.config.command_line import parse_train as parse_train
    from base.config.command_line import run as run
    from base.config.config import Config as Config
    from base.config.durations import Duration as Duration
    from base.config.durations import RunLength as RunLength
    from base.config.durations import parse_duration as parse_duration
    from base.config.editor_schema import json_schema as json_schema
    from base.config.interpolation import look_up as look_up
    from base.config.loading import load_config as load_config
    from base.config.normal_form import optimizer_keys as optimizer_keys
    from base.config.normal_form import optimizer_sections as optimizer_sections
    from base.config.normal_form import weights_section as weights_section
    from base.config.references import Reference as Reference
    from base.config.references import has_reference as has_reference
    from base.config.tree import Keys as Keys
    from base.config.tree import Node as Node
    from base.config.tree import as_tree as as_tree
    from base.config.tree import dotted as dotted
    from base.config.tree import leaves as leaves
    from base.config.tree import show as show
else:
    __getattr__, __all__ = lazy_imports(__name__)

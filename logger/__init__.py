"""Reporting: running means, the progress bar, the console and log file, writers, files.

Names are imported on first use, so that the console does not wait for torch. To add a column to the
console, return its value from a step or a metric; to add a destination, subclass `Writer`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from logger.console import setup_logging as setup_logging
    from logger.csv_writer import CsvWriter as CsvWriter
    from logger.meters import Meters as Meters
    from logger.progress import ProgressBar as ProgressBar
    from logger.writers import Histogram as Histogram
    from logger.writers import TensorBoardWriter as TensorBoardWriter
    from logger.writers import Writer as Writer
    from logger.writers import Writers as Writers

_MODULES = {
    "CsvWriter": "logger.csv_writer",
    "Histogram": "logger.writers",
    "Meters": "logger.meters",
    "ProgressBar": "logger.progress",
    "TensorBoardWriter": "logger.writers",
    "Writer": "logger.writers",
    "Writers": "logger.writers",
    "setup_logging": "logger.console",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'logger' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)

"""The report of a run in its ``report/``: a page to open, curves, predictions and test results.

It is made from the files of the run's folder, by numpy and without torch. ``python -m base.report
RUN`` makes it again; several runs give one page that compares them.
"""

from typing import TYPE_CHECKING

from base.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from base.report.comparison import write_comparison as write_comparison
    from base.report.figures import write_curves as write_curves
    from base.report.page import write_report as write_report
    from base.report.predictions import Predictions as Predictions
    from base.report.predictions import read_predictions as read_predictions
    from base.report.predictions import write_predictions as write_predictions
    from base.report.test_results import write_test_report as write_test_report
else:
    __getattr__, __all__ = lazy_imports(__name__)

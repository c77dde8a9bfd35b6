"""What a trained run is used for: predictions for new files, and exported models.

`load_trained` builds the model of a run without any data: the checkpoint's record holds the class
names, statistics and sizes that were computed from the training data. ``predict.py`` and
``export.py`` use the names listed here.
"""

from typing import TYPE_CHECKING

from base.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from base.prediction.delivery import open_delivery as open_delivery
    from base.prediction.file_loaders import image_loader as image_loader
    from base.prediction.predictions import Predictions as Predictions
    from base.prediction.samples import open_samples as open_samples
    from base.prediction.trained_run import TrainedRun as TrainedRun
    from base.prediction.trained_run import load_trained as load_trained
else:
    __getattr__, __all__ = lazy_imports(__name__)

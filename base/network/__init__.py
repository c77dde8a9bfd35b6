"""What is done to an ``nn.Module`` and seen of it: init, patterns, freezing, shapes, capture."""

from typing import TYPE_CHECKING

from base.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from base.network.activations import offload_activations as offload_activations
    from base.network.capture import Capture as Capture
    from base.network.capture import stretch as stretch
    from base.network.freezing import Freezing as Freezing
    from base.network.gradients import at_least_float32 as at_least_float32
    from base.network.gradients import gradient_penalty as gradient_penalty
    from base.network.initialization import InitRecord as InitRecord
    from base.network.initialization import initialise as initialise
    from base.network.layers import NoForward as NoForward
    from base.network.layout import EmptyCache as EmptyCache
    from base.network.layout import prepare_model as prepare_model
    from base.network.patterns import NoMatch as NoMatch
    from base.network.patterns import Pattern as Pattern
    from base.network.patterns import match_modules as match_modules
    from base.network.patterns import match_names as match_names
    from base.network.patterns import match_parameters as match_parameters
    from base.network.same_padding import conv_class as conv_class
    from base.network.shape_errors import explain_shape_errors as explain_shape_errors
    from base.network.shape_errors import is_compiled as is_compiled
    from base.network.summary import summarise_model as summarise_model
    from base.network.summary import table_rows as table_rows
else:
    __getattr__, __all__ = lazy_imports(__name__)

"""Operations on an ``nn.Module``.

Patterns select parts of it by name or class. Initialization, freezing and memory options change
it before training. Summary, capture, gradients and shape errors describe its computation.
"""

from typing import TYPE_CHECKING

from base.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from base.network.activations import offload_activations as offload_activations
    from base.network.capture import Capture as Capture
    from base.network.capture import stretch as stretch
    from base.network.freezing import Freezing as Freezing
    from base.network.gradients import at_least_float32 as at_least_float32
    from base.network.gradients import gradient_of as gradient_of
    from base.network.gradients import gradient_penalty as gradient_penalty
    from base.network.gradients import layer_gradient_norms as layer_gradient_norms
    from base.network.gradients import saliency as saliency
    from base.network.initialization import InitRecord as InitRecord
    from base.network.initialization import initialise as initialise
    from base.network.layers import NoForward as NoForward
    from base.network.layout import EmptyCache as EmptyCache
    from base.network.layout import prepare_model as prepare_model
    from base.network.new_layers import guard_first_batch as guard_first_batch
    from base.network.output_sizes import conv_class as conv_class
    from base.network.output_sizes import conv_output_size as conv_output_size
    from base.network.output_sizes import conv_padding_for as conv_padding_for
    from base.network.output_sizes import conv_transpose_output_size as conv_transpose_output_size
    from base.network.output_sizes import conv_transpose_padding_for as conv_transpose_padding_for
    from base.network.output_sizes import pool_output_size as pool_output_size
    from base.network.output_sizes import pool_padding_for as pool_padding_for
    from base.network.patterns import NoMatch as NoMatch
    from base.network.patterns import Pattern as Pattern
    from base.network.patterns import match_modules as match_modules
    from base.network.patterns import match_names as match_names
    from base.network.patterns import match_parameters as match_parameters
    from base.network.shape_errors import explain_shape_errors as explain_shape_errors
    from base.network.shape_errors import is_compiled as is_compiled
    from base.network.shapes import shape_text as shape_text
    from base.network.summary import summarise_model as summarise_model
    from base.network.summary import table_rows as table_rows
else:
    __getattr__, __all__ = lazy_imports(__name__)

from .data_loaders import *

from .dice import SoftDiceLoss
from .compound import DC_and_CE_loss

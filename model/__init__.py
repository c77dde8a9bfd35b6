"""Yours: networks in `model.py`, losses in `loss.py`, metrics in `metric.py`."""

"""Yours: trainers, callbacks."""

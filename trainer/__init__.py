"""Yours: trainers and callbacks."""

"""Yours: data sets, loaders and transforms; a config names what is defined in this folder."""

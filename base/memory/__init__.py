"""Options that trade precision, time and memory: the ``memory:`` section of a config."""

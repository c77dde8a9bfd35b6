"""``python -m base.shards`` writes and checks shards; see `base/datasets/shards/writer.py`."""

from base.config.command_line import run
from base.datasets.shards.writer import main

if __name__ == "__main__":
    run(main)

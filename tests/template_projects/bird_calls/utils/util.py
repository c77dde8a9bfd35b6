import json
from collections import OrderedDict
from pathlib import Path


def read_json(fname):
    with Path(fname).open("rt") as handle:
        return json.load(handle, object_hook=OrderedDict)

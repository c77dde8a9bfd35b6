"""``python -m base.doctor``: is this machine fit to train? See `base/run/doctor.py`."""

import signal
import sys
from pathlib import Path

from base.run.doctor import main
from base.system.places import PROJECT

if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # so that what is open is tidied up
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else PROJECT / "saved")))

"""``python -m base.doctor`` checks this machine; see `base/run/doctor.py`."""

import signal
import sys
from pathlib import Path

from base.config.command_line import report
from base.errors import UsageError
from base.run.doctor import main
from base.system.places import PROJECT
from base.system.processes import refuse_several_processes

if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # exit normally, which removes temporary files
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        refuse_several_processes("python -m base.doctor")
    except UsageError as error:
        report(error)
        sys.exit(error.exit_code)
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else PROJECT / "saved")))

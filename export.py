"""Write a trained model for use without Kindling: ``python export.py -r RUN -o model.pt2``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

try:
    from base.config.command_line import choose_run, parse_export, run
    from base.system.processes import refuse_several_processes
except ImportError as error:  # a package is missing, or pytorch-template's base/ replaced ours
    sys.exit(f"{error}: install requirements.txt, and keep Kindling's own base/ and logger/")


def main(arguments: Sequence[str]) -> int:
    """Parse, check, load, export."""
    options = parse_export(arguments)
    refuse_several_processes("export.py")
    path = choose_run(options)

    from base.prediction.export_request import ExportRequest

    wanted = ExportRequest.from_options(options)  # refuses slips before torch is imported

    from base.prediction.export import export_run, load_for_export

    device = options.device if wanted.out.suffix == ".pt2" else "cpu"  # others hold no device
    trained = load_for_export(path, device, options.ema, options.overrides)
    print("\n".join(export_run(trained, wanted)))
    return 0


if __name__ == "__main__":
    run(main)

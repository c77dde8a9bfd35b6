"""Write a trained model for use without Kindling: ``python export.py -r RUN -o model.pt2``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

try:
    from base.config.command_line import find_resumed, parse_export, run
    from base.errors import UsageError
    from base.system.processes import refuse_several_processes
except ImportError as error:  # a package is missing, or pytorch-template's base/ replaced ours
    sys.exit(f"{error}: install requirements.txt, and keep Kindling's own base/ and logger/")


def main(arguments: Sequence[str]) -> int:
    """Parse, check, load, export."""
    options = parse_export(arguments)
    refuse_several_processes("export.py")
    path = find_resumed(options.resume, None)
    if path is None:
        raise UsageError("-r auto: there is no run yet; train one first")

    from base.prediction.export import Export, export_run, load_for_export

    wanted = Export(
        options.out,
        preprocessing=options.preprocessing,
        module=options.module,
        input_shape=options.input_shape,
        opset=options.opset,
        overwrite=options.overwrite,
    )
    wanted.check()
    trained = load_for_export(path, options.device, options.ema)
    print("\n".join(export_run(trained, wanted)))
    return 0


if __name__ == "__main__":
    run(main)

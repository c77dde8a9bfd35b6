"""Images that cannot be read: told by path and index, or skipped, and nothing else changes."""

from __future__ import annotations

import csv
import random
import time

import pytest
from bad_images import CONFIG, DAMAGES, make_images
from digest import digest
from faults.runs import check_failed, last_run
from faults.table import Trials

pytestmark = [pytest.mark.end_to_end, pytest.mark.fault("F14")]
READERS = ("num_workers=0", "workers=threads", "workers=processes")


def test_damaged_images_stop_a_run_or_are_skipped_by_every_reader_and_after_a_kill(
    trials: Trials,
) -> None:
    draw = random.Random(14)
    for number in range(trials.count(1, 25)):
        with trials.trial_in_folder(number) as place:
            paths = make_images(place.folder / "images", seed=number)
            damaged = draw.sample(paths, draw.randint(1, 8))
            for path in damaged:
                DAMAGES[draw.choice([each for each in DAMAGES if each != "no such file"])](path)
            config = place.folder / "images.yaml"
            config.write_text(CONFIG.format(root=place.folder / "images"))

            stopped = place.run("-c", config, "--set", "trainer.on_bad_sample=stop")
            check_failed(stopped, r"sample", "|".join(path.name for path in damaged))
            assert len(stopped.stderr.splitlines()) == 1

            words = ("-c", config, "--set", "trainer.save_every=1 steps", "trainer.keep=50")
            skipped = place.run(*words)
            assert skipped.returncode == 0, skipped.stderr
            unbroken = last_run(place)
            with (unbroken / "bad_samples.csv").open(newline="") as file:
                listed = {row["path"] for row in csv.DictReader(file)}
            assert listed <= {str(path) for path in damaged}

            reader = draw.choice(READERS)
            reading = (f"data_loader.args.{reader}", "name=killed")
            if reader != READERS[0]:
                reading += ("data_loader.args.num_workers=2",)
            script = place.start(*words, *reading)
            time.sleep(draw.uniform(0, 1.5))
            script.kill()
            done = place.run("-r", "auto", *words, *reading)
            assert done.returncode == 0, done.stderr
            assert "Traceback" not in done.stderr, done.stderr
            killed = [run for run in place.runs() if run.parent.name == "killed"][-1]
            assert digest(killed) == digest(unbroken)
            lists = [(run / "bad_samples.csv").read_bytes() for run in (killed, unbroken)]
            assert sorted(lists[0].splitlines()) == sorted(lists[1].splitlines())

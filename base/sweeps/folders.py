"""Finds the folders that the processes of trials have made for their runs."""

from __future__ import annotations

from pathlib import Path

from base.sweeps.record import Sweep, TrialRecord
from base.system.run_folder import folders_in, read_stamp
from base.system.run_index import number_of
from base.system.trial import folder_file, read_message


class TrialFolders:
    """The folders of the runs of a sweep.

    A process notes the folder that it has made, so that no end of a trial lists all runs. Where the
    note is missing, as after a kill in between, the runs are searched: ``run.json`` has the trial.
    """

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self._searched: set[Path] = set()
        self._seen: set[Path] = set()  # folders whose run.json was read: its trial stays
        self._of_trial: dict[str, list[tuple[int, str]]] = {}  # with their numbers

    def take_note(self, trial: TrialRecord) -> str | None:
        """Return the folder that the last process of a trial has noted, and remove the note."""
        note = folder_file(self.sweep.folder, trial.number)
        found: str | None = read_message(note).get("folder")
        note.unlink(missing_ok=True)
        return found if found is not None and Path(found).is_dir() else None

    def search(self, parent: Path, trial: TrialRecord) -> str | None:
        """Return the newest folder of a trial among the runs in a folder, which is read once."""
        if parent not in self._searched:
            self._searched.add(parent)
            for folder in folders_in(parent):
                if folder not in self._seen and (stamp := read_stamp(folder)):
                    self._seen.add(folder)
                    of_trial = self._of_trial.setdefault(str(stamp.get("trial")), [])
                    of_trial.append((number_of(stamp).number, str(folder)))
        found = [each for each in self._of_trial.get(self.sweep.name_of(trial), ())
                 if Path(each[1]).is_dir()]  # fmt: skip
        return max(found)[1] if found else None

    def search_again(self, parent: Path, trial: TrialRecord) -> str | None:
        """Return the same, also of runs that were begun since."""
        self._searched.discard(parent)
        return self.search(parent, trial)

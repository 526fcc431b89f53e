"""The local folder of one attempt: inputs copied in and verified, the run specification, what the trainer writes.

    <home>/work/<job>/<epoch>/spec.json  trainer.log  data/  resume/  output/checkpoints/

A folder per epoch, so that a trainer nobody waits for any more cannot touch the files of the attempt that follows it.
`preparation` fills it; what a worker that died leaves of it is found by `leftovers`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from jobs.repositories.claims import Claim
from jobs.settings import Settings


def _root(settings: Settings) -> Path:
    return settings.home / "work"


class WorkDir:
    """One attempt's folder."""

    def __init__(self, settings: Settings, claim: Claim) -> None:
        self._job = _root(settings) / claim.job_id
        self.path = self._job / str(claim.epoch)
        self.spec = self.path / "spec.json"
        self.log = self.path / "trainer.log"
        self.output = self.path / "output"
        self._made_by = claim.origin.get("request_id")

    def create(self) -> None:
        """Make the folder; what earlier attempts of the job left on this machine goes."""
        shutil.rmtree(self._job, ignore_errors=True)
        self.path.mkdir(parents=True, mode=0o700)
        if self._made_by is not None:  # else nobody knows which request a log found later belongs to
            self.log.write_text(f"attempt {self.path.name} of {self._job.name}, made by {self._made_by}\n")

    def remove(self) -> None:
        """Delete it: everything worth keeping is in the artifact store."""
        _remove(self.path)

    def checkpoint(self, path: str) -> Path:
        """A checkpoint directory the trainer reported.

        Raises:
            ValueError: it is not in this folder.
        """
        directory = Path(path).resolve()
        if not directory.is_relative_to(self.path.resolve()):
            raise ValueError(f"{path} lies outside the job's folder")
        return directory


def leftovers(settings: Settings) -> list[tuple[str, int]]:
    """(job id, epoch) of all attempts that have a folder on this machine."""
    found = []
    for folder in _root(settings).glob("*/*"):
        if folder.name.isdigit() and folder.is_dir():
            found.append((folder.parent.name, int(folder.name)))
    return found


def remove(settings: Settings, job_id: str, epoch: int) -> None:
    """Delete the folder of an attempt."""
    _remove(_root(settings) / job_id / str(epoch))


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.parent.rmdir()
    except OSError:  # another attempt's folder is there, or it has just gone
        return

"""The run folder of a training that somebody moves or deletes while it runs."""

import os
import time
from pathlib import Path

from unfog.runtime import distributed
from unfog.runtime.errors import EnvironmentFailure

SETTLED = 1.0
"""Seconds in which somebody who deletes a folder is done."""


class Home:
    """A run folder, known by what it is and not by its name, which can come to be another folder's."""

    def __init__(self, folder: Path) -> None:
        """Hold on to an existing folder; only the process that writes there does."""
        self.folder = folder.resolve()
        self._handle = None if distributed.rank() else os.open(folder, os.O_RDONLY)

    def intact(self) -> bool:
        """Return whether the folder still stands where it did."""
        if self._handle is None:
            return True
        try:
            return os.path.samestat(os.stat(self.folder), os.fstat(self._handle))
        except OSError:
            return False

    def vanishing(self, failure: EnvironmentFailure) -> bool:
        """Return whether something could not be written since the folder is just being emptied; wait until it is."""
        if not isinstance(failure.__cause__, FileNotFoundError) and "(os error 2)" not in str(failure):
            return False
        time.sleep(SETTLED)
        return True

    def refuge(self) -> tuple[Path, bool]:
        """Return where to save what a training holds, and whether this is the folder itself at another place.

        Of a deleted folder, or one whose new name the system does not tell, it is the old name, or the first that is
        free of those with a number behind it.
        """
        if self._handle is None:
            return self.folder, False
        link = Path(f"/proc/self/fd/{self._handle}")
        now = Path(os.readlink(link)) if link.is_symlink() else self.folder
        if now.is_dir() and os.path.samestat(now.stat(), os.fstat(self._handle)):
            return now, now != self.folder
        names = (self.folder, *(self.folder.with_name(f"{self.folder.name}-{number}") for number in range(2, 100)))
        return next(name for name in names if not os.path.lexists(name)), False

    def close(self) -> None:
        """Let go of the folder."""
        if self._handle is not None:
            os.close(self._handle)

"""Which training run an output folder belongs to, and what it has evaluated: `run.json`."""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path

from instancezoo.files import open_atomically

RECORD_NAME = "run.json"


@dataclass(frozen=True)
class RunRecord:
    """The latest run of an output folder. Only checkpoints with its id are resumed from.

    Attributes:
        run: id, "" if the folder has no record: then any checkpoint counts.
        evaluated: number of iterations before its last finished evaluation, 0 for none.
    """

    run: str = field(default_factory=lambda: uuid.uuid4().hex)
    evaluated: int = 0

    @classmethod
    def read(cls, folder: str | Path) -> RunRecord:
        """Read a folder's record; one without an id if there is none, or none that can be read."""
        try:
            values = json.loads((Path(folder) / RECORD_NAME).read_text(encoding="utf-8"))
            return cls(str(values["run"]), int(values["evaluated"]))
        except (OSError, ValueError, KeyError, TypeError):
            return cls("")

    def write(self, folder: str | Path) -> None:
        """Write the record, atomically."""
        with open_atomically(Path(folder) / RECORD_NAME, "w") as file:
            json.dump(asdict(self), file)

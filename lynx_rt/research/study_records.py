"""The file of a study's runs: JSON lines, one per finished run, to which an interrupted study adds what is missing."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from lynx_rt.errors import ValidationError

FORMAT = 1  # of a line; changes where an older reader would misread it
Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RunKey:
    """The values that differ between the runs of a study."""

    policy: str  # expert selection in its canonical form, so that a changed default is another policy
    batch: int  # sequences decoded together
    batches: str  # composition: "mixed", "single", "minority:TASK"
    seed: int  # decides the choice and order of items

    def __str__(self) -> str:
        return f"{self.policy}, batch {self.batch}, {self.batches}, seed {self.seed}"


def key_of(record: Mapping[str, Any]) -> RunKey:
    return RunKey(**record["key"])


def identity(key: RunKey, settings: Mapping[str, Any]) -> str:
    """Key of a run: two runs with the same identity would measure the same thing."""
    return json.dumps([asdict(key), settings], sort_keys=True)


def scores_of(entry: Mapping[str, Any]) -> list[float]:
    """Returns the scores of a task's items in a run: those of the task's metric, or else whether each was met exactly."""
    scores: list[float] | None = entry.get("scores")
    return [float(mark == "1") for mark in entry["correct"]] if scores is None else scores


class RunLog:
    """Appends runs to a file, which is locked while open: one process at a time."""

    def __init__(self, file: Path) -> None:
        """Opens the file and drops a last line that was cut off.

        Raises ValidationError if another process has the file open, and if a line is malformed.
        """
        self._file = file.open("a+b")
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ValidationError(f"{file} is being written by another study", "out") from None
            self._file.seek(0)
            data = self._file.read()
            self.records, end = _parse(data, str(file))
            self._file.truncate(end)
        except BaseException:
            self._file.close()
            raise
        self._known = {identity(key_of(record), record["settings"]) for record in self.records}

    def has(self, key: RunKey, settings: Mapping[str, Any]) -> bool:
        return identity(key, settings) in self._known

    def append(self, record: Record) -> None:
        self._file.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
        self._file.flush()
        self.records.append(record)
        self._known.add(identity(key_of(record), record["settings"]))

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def read_runs(files: Sequence[Path]) -> list[Record]:
    """Returns the runs of all files; the first one of those with the same identity."""
    records = (record for file in files for record in _parse(file.read_bytes(), str(file))[0])
    return unique(records)


def unique(records: Iterable[Record]) -> list[Record]:
    kept: dict[str, Record] = {}
    for record in records:
        kept.setdefault(identity(key_of(record), record["settings"]), record)
    return list(kept.values())


def _parse(data: bytes, name: str) -> tuple[list[Record], int]:
    """Returns the runs, and the offset of the end of the last whole line."""
    end = data.rfind(b"\n") + 1
    records = []
    for number, line in enumerate(data[:end].splitlines(), 1):
        try:
            record = json.loads(line)
            if record["format"] != FORMAT:
                raise ValidationError(f"{name}:{number}: format {record['format']}, expected {FORMAT}", "out")
            key_of(record)
            record["settings"], record["results"]
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, ValidationError):
                raise
            raise ValidationError(f"{name}:{number}: not a run of a study: {error!r}", "out") from None
        records.append(record)
    return records, end

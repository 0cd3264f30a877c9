"""Which files of a job are to be done: inputs, and the outputs that are there. No Ray here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from parquet_units import KEY, DataError, Job, Source, text_sha256

from mbexport.errors import InputError
from mbexport.files import sha256
from mbexport.manifest import Manifest

PARTS = ".mbexport-parts"  # in the output folder; removed when all files are done
PLANNERS = 16  # footers read at a time


@dataclass
class Summary:
    """What was done, printed as JSON at the end."""

    files: int = 0
    skipped: int = 0
    failed: list[str] = field(default_factory=list)
    rows: int = 0
    rows_without_answer: int = 0
    rows_cut: int = 0


def files_of(folder: Path) -> list[Path]:
    """All Parquet files below a folder; what begins with a dot or an underscore is other programs' own."""
    files = (path.relative_to(folder) for path in sorted(folder.rglob("*.parquet")))
    return [file for file in files if not any(part.startswith((".", "_")) for part in file.parts)]


def read_source(file: Path, folders: tuple[Path, Path], job: Job, names: Sequence[str], unit: int) -> Source:
    """A file of the input folder, its footer checked; DataError or pa.ArrowException if it cannot be used."""
    path, output = folders[0] / file, folders[1] / file
    state = path.stat()
    metadata = pq.read_metadata(path)
    schema = metadata.schema.to_arrow_schema()
    for name in job.columns:
        if name not in schema.names:
            raise DataError(f"no column {name!r}, found {', '.join(schema.names)}")
        kind = schema.field(name).type
        kind = kind.value_type if isinstance(kind, (pa.DictionaryType, pa.ListType)) else kind
        if kind not in (pa.string(), pa.large_string(), pa.string_view()):
            raise DataError(f"column {name!r} is {schema.field(name).type}, expected texts")
    if taken := sorted(set(names) & set(schema.names)):
        raise DataError(f"it has the column {taken[0]!r} already; give the new ones another name by --prefix")
    identity = json.dumps([asdict(job), state.st_size, state.st_mtime_ns, unit])
    parts = folders[1] / PARTS / file / text_sha256(identity)[:16]
    return Source(str(path), str(output), str(parts), state.st_size, state.st_mtime_ns, metadata.num_rows, unit)


def difference(source: Source, job: Job) -> str:
    """Why an output that is there is not that of this input by this job; empty if it is."""
    try:
        metadata = pq.read_metadata(source.output)
        found = json.loads((metadata.metadata or {})[KEY])
    except (pa.ArrowException, KeyError, ValueError):
        return "was not written by this program"
    if fields := job.differs(found["job"]):
        return f"was made with another {' and another '.join(fields)}"
    was = found["input"]
    same = was["size"] == source.size and was["rows"] == source.rows == metadata.num_rows
    if same and was["mtime_ns"] != source.mtime_ns:  # copied or touched, or another content
        same = was["sha256"] == sha256(Path(source.path))
    return "" if same else "is of an earlier content of its input"


def plan(folders: tuple[Path, Path], job: Job, names: list[str], unit: int, summary: Summary) -> Iterator[Source]:
    """The sources that are not done; files that cannot be used are noted as failed.

    Raises:
        InputError: there is no input, or none that can be used.
    """
    files = files_of(folders[0])
    if not files:
        raise InputError(f"{folders[0]} holds no .parquet file")

    def read(file: Path) -> Source | str:
        try:
            return read_source(file, folders, job, names, unit)
        except (OSError, pa.ArrowException, DataError) as error:
            return f"{folders[0] / file}: {error}"

    with ThreadPoolExecutor(PLANNERS) as pool:
        sources = list(pool.map(read, files))
    summary.files = len(files)
    summary.failed = [source for source in sources if isinstance(source, str)]
    if len(summary.failed) == len(files):
        raise InputError(f"no file of {folders[0]} can be used; the first: {summary.failed[0]}")
    yield from (source for source in sources if isinstance(source, Source))


def undone(sources: Iterator[Source], job: Job, *, redo: bool, summary: Summary) -> list[Source]:
    """The sources that have no output of their own.

    Raises:
        InputError: there are other outputs in their places, and ``redo`` is not set.
    """
    wanted, others = [], []
    for source in sources:
        fault = difference(source, job) if Path(source.output).exists() else None
        if fault == "":
            summary.skipped += 1
            continue
        wanted.append(source)
        if fault:
            others.append(f"{source.output} {fault}")
    if others and not redo:
        raise InputError(f"{others[0]}; {len(others)} such files: replace them by --redo, or take another OUT_DIR")
    return wanted


def check_folders(folders: tuple[Path, Path]) -> None:
    if not folders[0].is_dir():
        raise InputError(f"{folders[0]} is no directory, expected one with Parquet files")
    first, second = (folder.resolve() for folder in folders)
    if first == second or first in second.parents or second in first.parents:
        raise InputError(f"{folders[1]} and {folders[0]} lie within one another; take an OUT_DIR elsewhere")


def columns_of(manifest: Manifest, column: str, pair: str | None) -> tuple[str, ...]:
    if manifest.task == "feature-extraction" and manifest.pooling is None:
        raise InputError("the model has no vector of a text, only of its tokens, for which this program has no column")
    if manifest.task in ("question-answering", "multiple-choice") and pair is None:
        raise InputError(f"{manifest.task} takes pairs: give the second column by --pair-column")
    return (column,) if pair is None else (column, pair)

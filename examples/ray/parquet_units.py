"""Parquet files in units of rows: a unit's answers go to a part, the parts of a file to its output.

No Ray here. Memory is bounded by what is read at a time and by the tokens of a batch, whatever the size of
a file, of its row groups or of a unit.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mbexport.errors import InputError, MbexportError
from mbexport.files import sha256
from mbexport.manifest import Manifest
from mbexport.runtime import Model
from mbexport.runtime.answers import characters

KEY = b"mbexport"  # of a finished file's metadata: the job and the input that it was made of
READ_BYTES, READ_ROWS = 8 * 2**20, 1024  # of rows that are read at a time
ROW_GROUP_BYTES = 64 * 2**20  # of an output's row group in memory
BATCH_TOKENS = 32_768  # of one call of the model, which schedules them by length; more gain nothing
GROUP_CHARACTERS = 2**18  # that are tokenized at a time
MOST_CHARACTERS = 2_000_000  # of a text: of a pair the tokenizer reads all, however little the model takes


class DataError(MbexportError):
    """A file of the job cannot be used: damaged, changed, or without the column."""


@dataclass(frozen=True)
class Job:
    """What is computed; outputs and parts of another job are never taken for this one's.

    Attributes:
        bundle: what of the bundle decides the answers, by name.
        columns: the column of texts, or the two of pairs.
        prefix: stands before the names of the new columns.
        precision: as ``load`` takes it.
    """

    bundle: dict[str, Any]
    columns: tuple[str, ...]
    prefix: str
    precision: str

    def differs(self, found: dict[str, Any]) -> list[str]:
        """In which fields another job, read from a file's metadata, is not this one."""
        wanted = json.loads(json.dumps(asdict(self)))
        return [name for name, value in wanted.items() if found.get(name) != value]


@dataclass(frozen=True)
class Source:
    """One input file as it was when the job was planned, and where its parts and its output go.

    ``unit``: rows that are answered at a time, and lost if that is interrupted.
    """

    path: str
    output: str
    parts: str
    size: int
    mtime_ns: int
    rows: int
    unit: int

    @property
    def units(self) -> list[tuple[int, int]]:
        """First row and the one after the last of each unit; of a file without rows one that is empty."""
        starts = range(0, self.rows, self.unit) or [0]
        return [(start, min(start + self.unit, self.rows)) for start in starts]

    def check(self) -> None:
        """DataError if the input is no longer the file that was planned."""
        state = Path(self.path).stat()
        if (state.st_size, state.st_mtime_ns) != (self.size, self.mtime_ns):
            raise DataError(f"{self.path} was changed while the job ran; run it again")

    def part(self, start: int, stop: int) -> Path:
        """Where the answers to rows [start, stop) go."""
        return Path(self.parts) / f"{start:012}-{stop:012}.parquet"


def bundle_identity(bundle: Path, manifest: Manifest, precision: str) -> dict[str, Any]:
    """What decides a bundle's answers: weights, tokenizer, and the graphs that ``precision`` may take."""
    graphs = [graph for graph in manifest.graphs if precision in ("auto", graph.precision)]
    return {
        "weights": manifest.source.sha256,
        "graphs": {graph.file: [graph.sha256, graph.gate] for graph in graphs},
        "tokenizer": sha256(bundle / "tokenizer.json"),
        "task": manifest.task,
        "max_length": manifest.max_length,
    }


def new_columns(manifest: Manifest, prefix: str) -> list[str]:
    """Names of the columns that a job appends."""
    names = ["answer"]
    if manifest.task == "feature-extraction":
        names = ["embedding"]
    elif manifest.task == "text-classification":
        names = ["label", "score", "scores"] if _several(manifest) else ["label", "score"]
    return [f"{prefix}{name}" for name in (*names, "error")]


def _several(manifest: Manifest) -> bool:
    """Whether labels do not exclude one another, so that each has a score of its own."""
    return manifest.activation != "softmax" and len(manifest.labels or ()) > 1


def _types(model: Model) -> list[pa.DataType]:
    """Arrow types of the new columns."""
    manifest = model.manifest
    if manifest.task == "feature-extraction":
        return [pa.list_(pa.float32(), model.embed(["a"]).shape[1]), pa.string()]
    if manifest.task == "text-classification":
        scores = [pa.map_(pa.string(), pa.float32())] if _several(manifest) else []
        return [pa.string(), pa.float32(), *scores, pa.string()]
    return [pa.string(), pa.string()]


def _values(answer: Any, manifest: Manifest) -> tuple[Any, ...]:
    """An answer as the values of the new columns without the error's; all null where there is none."""
    if manifest.task == "feature-extraction":
        return (answer,)
    if manifest.task == "text-classification":
        fields = ("label", "score", "scores") if _several(manifest) else ("label", "score")
        values = [answer[field] if answer else None for field in fields]
        return tuple(list(value.items()) if isinstance(value, dict) else value for value in values)
    return (None if answer is None else json.dumps(answer, ensure_ascii=False),)


@dataclass(frozen=True)
class Bad:
    """In the place of a text: why it has no answer."""

    why: str


def answer_unit(model: Model, job: Job, source: Source, start: int, stop: int) -> int:
    """Answer rows [start, stop) of a file into a part, unless it is there.

    Returns:
        How many texts were cut to the model's max_length.

    Raises:
        BackendError: the forward pass failed.
        DataError: the file was changed.
        OSError, pa.ArrowException: it cannot be read, or the part not be written.
    """
    part, cut = source.part(start, stop), 0
    if part.exists():
        return 0
    source.check()
    schema = pa.schema(list(zip(new_columns(model.manifest, job.prefix), _types(model), strict=True)))
    with _open(source.path) as file, _replacing(part, part.parent) as stream, pq.ParquetWriter(stream, schema) as out:
        read = (_texts(batch, job.columns) for batch in rows_of(file, start, stop, job.columns))
        texts = (text for batch in read for text in batch)
        for answers, truncated in answered(model, texts):
            rows = [(*_values(answer, model.manifest), why) for answer, why in answers]
            columns = zip(zip(*rows, strict=True), schema.types, strict=True)
            arrays = [pa.array(values, kind) for values, kind in columns]
            out.write_batch(pa.record_batch(arrays, schema=schema))
            cut += truncated
    return cut


def answered(model: Model, texts: Iterable[Any]) -> Iterator[tuple[list[tuple[Any, str | None]], int]]:
    """Answers in order, in batches bounded by tokens, each with why it is None, and how many texts were cut.

    Args:
        model: a loaded bundle.
        texts: as the model takes them, or :class:`Bad`.

    Raises:
        BackendError: the forward pass failed.
    """
    waiting: list[Any] = []
    tokens, most = 0, max(BATCH_TOKENS, model.batch_tokens)
    for group in _groups(texts):
        items = _prepared(model, group)
        waiting += items
        tokens += sum(item.tokens for item in items if not isinstance(item, Bad))
        if tokens >= most:
            yield _run(model, waiting)
            waiting, tokens = [], 0
    if waiting:
        yield _run(model, waiting)


def _groups(texts: Iterable[Any]) -> Iterator[list[Any]]:
    """Texts to be tokenized at a time."""
    group: list[Any] = []
    size = 0
    for text in texts:
        group.append(text)
        size += characters(text)  # a Bad has none
        if size >= GROUP_CHARACTERS or len(group) == READ_ROWS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _prepared(model: Model, group: Sequence[Any]) -> list[Any]:
    """Each text tokenized, or why it cannot be."""
    good = [text for text in group if not isinstance(text, Bad)]
    try:
        prepared = iter(model.prepare(good))
    except InputError:  # one of them: which ones, and why
        return [text if isinstance(text, Bad) else _prepared_alone(model, text) for text in group]
    return [text if isinstance(text, Bad) else next(prepared) for text in group]


def _prepared_alone(model: Model, text: Any) -> Any:
    try:
        return model.prepare([text])[0]
    except InputError as error:
        return Bad(str(error).removeprefix("text 0 ").removeprefix("item 0: "))


def _run(model: Model, waiting: Sequence[Any]) -> tuple[list[tuple[Any, str | None]], int]:
    places = [place for place, item in enumerate(waiting) if not isinstance(item, Bad)]
    rows: list[tuple[Any, str | None]] = [(None, item.why if isinstance(item, Bad) else None) for item in waiting]
    for number, answer in model.answers([waiting[place] for place in places]):
        rows[places[number]] = answer, None
    return rows, sum(any(part.truncated for part in waiting[place].parts) for place in places)


def _texts(batch: pa.RecordBatch, columns: Sequence[str]) -> list[Any]:
    """The texts of rows, pairs where there are two columns; :class:`Bad` where there is none."""
    parts = [[_text(value, name) for value in batch.column(name)] for name in columns]
    rows = list(zip(*parts, strict=True))
    bad = [next((part for part in row if isinstance(part, Bad)), None) for row in rows]
    return [why or (row if len(row) > 1 else row[0]) for row, why in zip(rows, bad, strict=True)]


def _text(value: pa.Scalar, column: str) -> Any:
    try:
        text = value.as_py()
    except UnicodeDecodeError as error:  # Arrow takes a file's word for it that its strings are UTF-8
        return Bad(f"{column} is not valid UTF-8 at byte {error.start}")
    if text is None or (isinstance(text, list) and None in text):
        return Bad(f"{column} is null")
    if (size := characters(text)) > MOST_CHARACTERS:
        return Bad(f"{column} has {size} characters, at most {MOST_CHARACTERS} are read")
    return text


def rows_of(
    file: pq.ParquetFile, start: int, stop: int, columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Rows [start, stop), some at a time: a row group is never in memory as a whole."""
    first = 0
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        if group.num_rows and first < stop and start < first + group.num_rows:
            row_bytes = group.total_byte_size // group.num_rows + 1
            size = max(1, min(READ_ROWS, READ_BYTES // row_bytes))
            at = first
            for batch in file.iter_batches(size, row_groups=[number], columns=columns, use_threads=False):
                low, high = max(start - at, 0), min(stop - at, batch.num_rows)
                if low < high:
                    yield batch.slice(low, high - low)
                at += batch.num_rows
                if at >= stop:
                    break
        first += group.num_rows


def finish(job: Job, source: Source) -> tuple[int, int]:
    """Write a file's output of its rows and of all its parts, and remove the parts.

    Returns:
        Rows, and those among them without an answer.

    Raises:
        DataError: a part is missing or the input was changed.
        OSError, pa.ArrowException: a file cannot be read or written.
    """
    parts, output, bad = _Parts([source.part(*unit) for unit in source.units]), Path(source.output), 0
    told = {"size": source.size, "mtime_ns": source.mtime_ns, "rows": source.rows, "sha256": sha256(Path(source.path))}
    output.parent.mkdir(parents=True, exist_ok=True)
    with _open(source.path) as file, _replacing(output, Path(source.parts)) as stream:
        old = file.schema_arrow
        note = {KEY: json.dumps({"job": asdict(job), "input": told}).encode()}
        schema = pa.schema([*old, *parts.schema], metadata={**(old.metadata or {}), **note})
        with pq.ParquetWriter(stream, schema, compression=_codec(file)) as out:
            first = 0
            for number in range(file.num_row_groups):
                last = first + file.metadata.row_group(number).num_rows
                tables: list[pa.Table] = []
                for batch in rows_of(file, first, last):
                    answers = parts.take(batch.num_rows)
                    bad += answers.num_rows - answers.column(answers.num_columns - 1).null_count
                    tables.append(pa.Table.from_arrays([*batch.columns, *answers.columns], schema=schema))
                    if sum(table.nbytes for table in tables) >= ROW_GROUP_BYTES:
                        out.write_table(pa.concat_tables(tables))
                        tables = []
                if tables:
                    out.write_table(pa.concat_tables(tables))
                first = last
        source.check()  # before the output takes its place
    shutil.rmtree(source.parts)
    return source.rows, bad


class _Parts:
    """The answers of all parts of a file, in order."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files
        self.schema = pq.read_schema(self._files[0])
        self._batches = self._read()
        self._rest = pa.RecordBatch.from_pylist([], schema=self.schema)

    def _read(self) -> Iterator[pa.RecordBatch]:
        for path in self._files:
            with _open(path) as file:
                yield from rows_of(file, 0, file.metadata.num_rows)

    def take(self, rows: int) -> pa.Table:
        taken: list[pa.RecordBatch] = []
        while rows:
            if not self._rest.num_rows:
                self._rest = next(self._batches, None)
                if self._rest is None:
                    raise DataError(f"{self._files[0].parent} holds too few answers; remove it and run the job again")
            taken.append(self._rest.slice(0, rows))
            self._rest = self._rest.slice(taken[-1].num_rows)
            rows -= taken[-1].num_rows
        return pa.Table.from_batches(taken, self.schema)


def _open(path: str | Path) -> pq.ParquetFile:
    """A file that is read page by page, not by whole column chunks."""
    return pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20)


def _codec(file: pq.ParquetFile) -> str:
    """The compression of the input's first column; of an empty file, or one that cannot be written, zstd."""
    metadata = file.metadata
    name = metadata.row_group(0).column(0).compression.lower() if metadata.num_row_groups else "zstd"
    return {"uncompressed": "none"}.get(name, name) if pa.Codec.is_available(name) or name == "uncompressed" else "zstd"


@contextlib.contextmanager
def _replacing(path: Path, folder: Path) -> Iterator[Any]:
    """A stream whose file takes the place of ``path``, whole and on the disk, when the block ends without an error.

    Until then it is in ``folder``, on the same file system.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def text_sha256(text: str) -> str:
    """Of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()

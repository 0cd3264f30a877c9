"""Answers to a column of Parquet files, by Ray Data: python examples/ray/map_parquet.py BUNDLE IN_DIR OUT_DIR.

One loaded model an actor; a unit of work is some ten thousand rows of a file. Every file of IN_DIR becomes
one of the same name in OUT_DIR: the same rows in the same order, all their columns, and the answers.
Killed and started again, it does what is missing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before ray is imported: it reports usage by default

import click
import parquet_units
import pyarrow as pa
import ray
import ray.data
from parquet_plan import PARTS, Summary, check_folders, columns_of, plan, undone
from parquet_units import DataError, Job, Source, answer_unit, bundle_identity, finish, new_columns

from mbexport import manifest as manifests
from mbexport.errors import BackendError, InputError, MbexportError
from mbexport.manifest import Manifest
from mbexport.runtime import load
from mbexport.runtime.cpu_limit import available_cores

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
OBJECT_STORE = 128 * 2**20  # bytes: rows never pass through it, only the names of units
MOST_BLOCKS = 10_000  # of units: each is an object of Ray's
REPORT_EVERY = 10.0  # seconds


@dataclass(frozen=True)
class Settings:
    """How the work is spread: ``concurrency`` actors of ``threads`` cores, or a GPU, each."""

    bundle: str
    device: str
    concurrency: int
    threads: int


@dataclass(frozen=True)
class Options:
    """How a job goes about it, without effect on what comes out."""

    unit_rows: int
    redo: bool
    quiet: bool


class Answers:
    """The actor: one loaded model, a unit at a time."""

    def __init__(self, settings: Settings, job: Job) -> None:
        # Ray sets OMP_NUM_THREADS, which neither ONNX Runtime nor the tokenizer reads: each would take all cores.
        os.environ["RAYON_NUM_THREADS"] = str(settings.threads)
        self._job, self._fault, self._notes = job, "", [""]
        with warnings.catch_warnings(record=True) as caught:
            try:
                self._model = load(settings.bundle, settings.device, job.precision, threads=settings.threads)
                self._notes = [f"an actor runs {self._model.description}"]
                if settings.device == "cuda" != self._model.device:
                    self._fault = "--device cuda: no GPU is used; see the notes above, or take --device cpu"
            except MbexportError as error:
                self._fault = str(error)
        self._notes += [f"warning: {warning.message}" for warning in caught]
        warnings.simplefilter("ignore")  # texts that were cut are counted

    def __call__(self, unit: pa.Table) -> dict[str, list[Any]]:
        """Of one row, a unit, what became of it."""
        (row,) = unit.to_pylist()
        cut, error, code = 0, self._fault, BAD_INPUT if self._fault else 0
        if not self._fault:
            source = Source(**{name: row[name] for name in Source.__dataclass_fields__})
            try:
                cut = answer_unit(self._model, self._job, source, row["start"], row["stop"])
            except BackendError as failed:
                error, code = str(failed), FAILED
            except (OSError, pa.ArrowException, DataError) as failed:
                error = f"{row['path']}: {failed}"
        notes, self._notes = "\n".join(self._notes), []
        found = {"path": row["path"], "rows": row["stop"] - row["start"], "cut": cut, "error": error, "code": code}
        return {name: [value] for name, value in {**found, "notes": notes}.items()}


class StoppedError(MbexportError):
    """The job cannot go on; ``code`` is the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def say(message: str, *, quiet: bool) -> None:
    if not quiet:
        click.echo(message, err=True)


def resources(settings: Settings, *, quiet: bool) -> None:
    """Refuse what this machine can never give, for which Ray would wait; a cluster may grow.

    Raises:
        InputError: there are too few GPUs.
    """
    gpu = settings.device == "cuda"
    room = 0
    for node in (node["Resources"] for node in ray.nodes() if node["Alive"]):
        by_core = int(node.get("CPU", 0)) // settings.threads
        room += min(by_core, int(node.get("GPU", 0))) if gpu else by_core
    if room < settings.concurrency:
        message = f"{settings.concurrency} actors of {settings.threads} cores{' and a GPU' * gpu} each, room for {room}"
        if "RAY_ADDRESS" not in os.environ:
            raise InputError(f"{message}; lower --concurrency, or take --device cpu")
        say(f"{message}; Ray waits for the others", quiet=quiet)


def work(sources: list[Source], settings: Settings, job: Job, summary: Summary, *, quiet: bool) -> None:
    """Answer all units, finish each file when its last unit is there.

    Raises:
        StoppedError: the model cannot be loaded, or its device failed.
    """
    by_path = {source.path: source for source in sources}
    missing = [(source, unit) for source in sources for unit in source.units if not source.part(*unit).exists()]
    left = Counter(source.path for source, _ in missing)
    rows = [{**asdict(source), "start": start, "stop": stop} for source, (start, stop) in missing]
    all_units = sum(len(source.units) for source in sources)
    say(f"{all_units} units of rows to do, {all_units - len(rows)} of them done before", quiet=quiet)
    finishing = {finish_remote(job, source): source for source in sources if not left[source.path]}
    broken: set[str] = set()
    clock, began, done = time.monotonic(), time.monotonic(), 0
    for result in results(rows, settings, job) if rows else ():
        for note in filter(None, result["notes"].split("\n")):
            say(note, quiet=quiet)
        if result["code"]:
            raise StoppedError(result["error"], result["code"])
        path = result["path"]
        if result["error"]:
            if path not in broken:
                summary.failed.append(result["error"])
            broken.add(path)
        done += result["rows"]
        summary.rows_cut += result["cut"]
        left[path] -= 1
        if not left[path] and path not in broken:
            finishing[finish_remote(job, by_path[path])] = by_path[path]
        collect(finishing, summary, wait=len(finishing) > settings.concurrency)
        if time.monotonic() - clock > REPORT_EVERY:
            clock = time.monotonic()
            speed = f"{done / (clock - began):.0f} rows/s"
            say(f"{done} rows, {speed}, {left.total()} of {len(rows)} units left", quiet=quiet)
    while finishing:
        collect(finishing, summary, wait=True)


def finish_remote(job: Job, source: Source) -> Any:
    """Finish a file somewhere in the cluster. It needs no core of its own: actors may hold them all."""
    return ray.remote(num_cpus=0)(finish).remote(job, source)


def collect(finishing: dict[Any, Source], summary: Summary, *, wait: bool) -> None:
    """Note the files that are finished; with ``wait`` at least one."""
    ready, _ = ray.wait(list(finishing), num_returns=1, timeout=None if wait else 0) if finishing else ([], [])
    for reference in ready:
        source = finishing.pop(reference)
        try:
            rows, bad = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            summary.failed.append(f"{source.path}: {error.cause}")
            continue
        summary.rows += rows
        summary.rows_without_answer += bad


def results(rows: list[dict[str, Any]], settings: Settings, job: Job) -> Iterator[dict[str, Any]]:
    """What becomes of each unit, as it is done: the map of Ray Data."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    units = ray.data.from_items(rows, override_num_blocks=min(len(rows), MOST_BLOCKS))
    done = units.map_batches(
        Answers,
        fn_constructor_args=(settings, job),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=settings.concurrency, max_tasks_in_flight_per_actor=1),
        num_cpus=settings.threads,
        num_gpus=1 if settings.device == "cuda" else 0,
    )
    for block in done.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"):
        yield from block.to_pylist()


def start_ray(settings: Settings) -> None:
    """Join the cluster that RAY_ADDRESS names, else start one on this machine that is as large as the job."""
    ray.cloudpickle.register_pickle_by_value(parquet_units)  # workers elsewhere have no such module
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if "RAY_ADDRESS" in os.environ:
        ray.init(logging_level=logging.ERROR, log_to_driver=False)
        return
    cpus = settings.concurrency * settings.threads
    ray.init(
        address="local", num_cpus=cpus, object_store_memory=OBJECT_STORE, include_dashboard=False,
        logging_level=logging.ERROR, log_to_driver=False,
    )  # fmt: skip


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Refuse a second job on the same output; the system ends the lock of a job that died."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another job writes to {folder.parent}; wait for it, or take another OUT_DIR") from None
        yield


def run(folders: tuple[Path, Path], settings: Settings, job: Job, manifest: Manifest, options: Options) -> Summary:
    """Plan, answer, finish: the whole job.

    Raises:
        MbexportError: the folders or the bundle cannot be used, or the device failed.
    """
    check_folders(folders)
    summary = Summary()
    with alone(folders[1] / PARTS):
        sources = plan(folders, job, new_columns(manifest, job.prefix), options.unit_rows, summary)
        wanted = undone(sources, job, redo=options.redo, summary=summary)
        for fault in summary.failed:
            say(f"left out: {fault}", quiet=options.quiet)
        say(f"{summary.files} files, {summary.skipped} of them finished before", quiet=options.quiet)
        if wanted:
            start_ray(settings)
            try:
                resources(settings, quiet=options.quiet)
                work(wanted, settings, job, summary, quiet=options.quiet)
            finally:
                ray.shutdown()
        if not summary.failed:
            shutil.rmtree(folders[1] / PARTS)
    return summary


DIRECTORY = click.Path(path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("bundle", type=DIRECTORY)
@click.argument("in_dir", type=DIRECTORY)
@click.argument("out_dir", type=DIRECTORY)
@click.option("--column", default="text", show_default=True, help="The column with the texts.")
@click.option("--pair-column", help="The second column, for models of pairs.")
@click.option("--prefix", default="", help="Stands before the names of the new columns.")
@click.option("--concurrency", type=click.IntRange(min=1), default=1, show_default=True, help="Actors, a model each.")
@click.option("--threads", type=click.IntRange(min=1), help="Cores of an actor; default: this machine's, shared out.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--precision", default="auto", show_default=True, help="Of the bundle's, e.g. fp32 or int8.")
@click.option(
    "--unit-rows", type=click.IntRange(min=1), default=65_536, show_default=True,
    help="Rows that are answered at a time by an actor, and lost if it is stopped.",
)  # fmt: skip
@click.option("--redo", is_flag=True, help="Replace outputs of another bundle, of other settings or of changed inputs.")
@click.option("-q", "--quiet", is_flag=True, help="No progress on standard error.")
def main(**given: Any) -> None:
    """Answers to a column of the Parquet files of IN_DIR, by the model of BUNDLE, into OUT_DIR.

    Killed and started again, it does what is missing. Exit codes: 0 done; 1 some files could not be done;
    2 bad usage or input, nothing was done.
    """
    try:
        summary = run_given(**given)
    except (MbexportError, OSError, ray.exceptions.RayError) as error:
        click.echo(f"map_parquet: error: {' '.join(str(error).split())}", err=True)
        code = FAILED if isinstance(error, ray.exceptions.RayError) else BAD_INPUT
        sys.exit(error.code if isinstance(error, StoppedError) else code)
    except KeyboardInterrupt:
        click.echo("map_parquet: interrupted; the same command goes on from here", err=True)
        sys.exit(INTERRUPTED)
    click.echo(json.dumps(asdict(summary)))
    for fault in summary.failed:
        click.echo(f"map_parquet: failed: {' '.join(fault.split())}", err=True)
    sys.exit(FAILED if summary.failed else 0)


def run_given(  # noqa: PLR0913 (one parameter an option)
    bundle: Path, in_dir: Path, out_dir: Path, column: str, pair_column: str | None, prefix: str,
    concurrency: int, threads: int | None, device: str, precision: str, unit_rows: int, redo: bool, quiet: bool,
) -> Summary:  # fmt: skip
    manifest = manifests.read(bundle)
    manifests.check_files(bundle, manifest)
    if threads is None and "RAY_ADDRESS" in os.environ:
        raise InputError("--threads is missing: cores of an actor on the machines of the cluster")
    threads = threads or max(1, available_cores() // concurrency)
    job = Job(
        bundle_identity(bundle, manifest, precision), columns_of(manifest, column, pair_column), prefix, precision
    )
    settings = Settings(str(bundle.resolve()), device, concurrency, threads)
    return run((in_dir.resolve(), out_dir.resolve()), settings, job, manifest, Options(unit_rows, redo, quiet))


if __name__ == "__main__":
    main()

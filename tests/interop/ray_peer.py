"""What the Ray tests do in Ray's own environment; prints JSON.

python tests/interop/ray_peer.py write DIRECTORY < files.json
python tests/interop/ray_peer.py read FILE
python tests/interop/ray_peer.py units BUNDLE FILE OUTPUT COLUMN [COLUMN]
python tests/interop/ray_peer.py write-odd FILE
python tests/interop/ray_peer.py write-large FILE MEGABYTES
python tests/interop/ray_peer.py memory BUNDLE FILE OUTPUT COLUMN ROWS|all
python tests/interop/ray_peer.py serve < applications.json
python tests/interop/ray_peer.py health BUNDLE
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "ray"))


def write(directory: str) -> object:
    """Parquet files of texts, by name: many types of columns beside them, gzip, row groups of 300."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name, texts in json.load(sys.stdin).items():
        path = Path(directory) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        count = len(texts)
        table = pa.table(
            {
                "id": pa.array(range(count), pa.int16()),
                "text": pa.array(texts, pa.string()).dictionary_encode(),
                "when": pa.array(range(count), pa.timestamp("us", "UTC")),
                "tags": pa.array([["a", None][: n % 3] for n in range(count)], pa.list_(pa.string())),
            }
        ).replace_schema_metadata({"owner": "tests"})
        pq.write_table(table, path, row_group_size=300, compression="gzip")
    return None


def write_odd(path: str) -> object:
    """One file whose texts are: a good one, null, no UTF-8, too long, a good one."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from parquet_units import MOST_CHARACTERS

    values = [b"The bank raised its rate.", None, b"\xff\xfe", b"a" * (MOST_CHARACTERS + 1), b"The striker scored."]
    texts = pa.array(values, pa.binary())
    texts = pa.StringArray.from_buffers(len(texts), texts.buffers()[1], texts.buffers()[2], texts.buffers()[0])
    pq.write_table(pa.table({"text": texts, "second": ["b"] * len(values)}), path)
    return None


def read(path: str, *columns: str) -> object:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    table = file.read(list(columns) or None)
    groups = [file.metadata.row_group(n) for n in range(file.num_row_groups)]
    return {
        "schema": {field.name: str(field.type) for field in table.schema},
        "metadata": {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()},
        "groups": [group.num_rows for group in groups],
        "codecs": sorted({g.column(n).compression for g in groups for n in range(g.num_columns)}),
        "rows": json.loads(json.dumps(table.to_pylist(), default=str)),
    }


def units(bundle: str, path: str, output: str, *columns: str) -> object:
    """One file, by units of two rows and without Ray."""
    from parquet_plan import read_source
    from parquet_units import Job, answer_unit, bundle_identity, finish, new_columns

    from mbexport import manifest as manifests
    from mbexport.runtime import load

    manifest = manifests.read(Path(bundle))
    job = Job(bundle_identity(Path(bundle), manifest, "auto"), columns, "", "auto")
    folders = Path(path).parent, Path(output)
    source = read_source(Path(path).relative_to(folders[0]), folders, job, new_columns(manifest, ""), 2)
    model = load(bundle, threads=1)
    for start, stop in source.units:
        answer_unit(model, job, source, start, stop)
    return [finish(job, source), read(source.output, *new_columns(manifest, ""))]


def write_large(path: str, megabytes: str) -> object:
    """One row group of short texts beside long ones."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = 100 * int(megabytes)
    letters = np.random.default_rng(0).integers(97, 123, rows * 10_000, dtype=np.uint8)
    ends = np.arange(rows + 1, dtype=np.int32) * 10_000
    body = pa.StringArray.from_buffers(rows, pa.py_buffer(ends), pa.py_buffer(letters))
    pq.write_table(pa.table({"text": [f"bank rate {n}" for n in range(rows)], "body": body}), path, row_group_size=rows)
    return Path(path).stat().st_size / 1e6


def memory(bundle: str, path: str, output: str, column: str, stop: str) -> object:
    """Peak resident memory in MB with a loaded model, after a unit of rows up to ``stop``, after all was written."""
    import parquet_units
    from parquet_units import Job, answer_unit, finish

    from mbexport.runtime import load

    def peak() -> float:
        status = Path("/proc/self/status").read_text()  # getrusage counts what a parent had before exec
        return int(status.split("VmHWM:")[1].split()[0]) / 1e3

    state, model = Path(path).stat(), load(bundle, threads=2)
    model(["bank rate"] * 600 if stop == "all" else ["bank rate " * model.manifest.max_length] * 4)  # its own memory
    job = Job({}, (column,), "", "auto")
    rows = parquet_units.pq.read_metadata(path).num_rows if stop == "all" else int(stop)
    source = parquet_units.Source(path, output, f"{output}-parts", state.st_size, state.st_mtime_ns, rows, rows)
    peaks = [peak()]
    answer_unit(model, job, source, 0, rows)
    peaks.append(peak())
    if stop == "all":
        finish(job, source)
    return [*peaks, peak()]


def serve() -> object:
    """Applications on a small local Ray, until standard input ends; a line there is one to delete."""
    import ray
    from ray import serve
    from serve_app import Arguments, build

    request = json.loads(sys.stdin.readline())
    ray.init(
        address="local", num_cpus=len(request["applications"]), object_store_memory=100 * 2**20, include_dashboard=False
    )
    serve.start(http_options={"host": "127.0.0.1", "port": request["port"]})
    for name, arguments in request["applications"].items():
        serve.run(build(Arguments(**arguments)), name=name, route_prefix=f"/{name}")
    texts = ["The striker scored twice.", "The bank raised its rate."]
    first = next(iter(request["applications"]))
    by_handle = serve.get_app_handle(first).answers.remote(texts).result()
    print(json.dumps(by_handle), flush=True)
    for line in sys.stdin:
        serve.delete(line.strip())
        print(json.dumps(f"deleted {line.strip()}"), flush=True)
    serve.shutdown()
    ray.shutdown()
    return None


def health(bundle: str) -> object:
    """A replica's check: its forward passes, and what it raises when the batcher is gone."""
    from serve_app import Arguments, ModernBert

    replica: Any = ModernBert.func_or_class(Arguments(bundle=bundle, threads=1))
    before = replica._batcher.last_success
    asyncio.run(replica.check_health())
    after = replica._batcher.last_success
    replica.__del__()
    try:
        asyncio.run(replica.check_health())
    except Exception as error:
        return [before != after, type(error).__name__]
    return [before != after, None]


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1].replace("-", "_")](*sys.argv[2:])))

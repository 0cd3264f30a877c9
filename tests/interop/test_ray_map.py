"""examples/ray/map_parquet.py, really run on a local Ray."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mbexport import export_onnx
from mbexport.runtime import load
from tests.checkpoints import ENCODER, EXAMPLE, save_checkpoint
from tests.interop.ray_driver import BIN, EXAMPLES, Ray, ray_folder, wait_for

pytestmark = pytest.mark.interop
SENTENCES = (EXAMPLE.parent / "sentences.txt").read_text().splitlines()


@pytest.fixture
def ray() -> Iterator[Ray]:
    with ray_folder() as found:
        yield found


def texts_of(count: int, seed: int) -> list[str | None]:
    """Texts of one to eight sentences; number 7 is null."""
    rng = np.random.default_rng(seed)
    texts: list[str | None] = [" ".join(rng.choice(SENTENCES, rng.choice([1, 1, 2, 8]))) for _ in range(count)]
    return [None if number == 7 else text for number, text in enumerate(texts)]


def run(ray: Ray, bundle: Path, *options: object) -> subprocess.CompletedProcess[str]:
    return ray.run(BIN / "python", EXAMPLES / "map_parquet.py", bundle, "in", "out", *options)


def done(result: subprocess.CompletedProcess[str]) -> Any:
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout)  # and nothing else


def outputs(ray: Ray) -> dict[str, tuple[int, int]]:
    """Finished files, and what tells whether one was written again."""
    folder = ray.folder / "out"
    states = {path.relative_to(folder).as_posix(): path.stat() for path in folder.rglob("[!.]*.parquet")}
    return {name: (s.st_ino, s.st_mtime_ns) for name, s in states.items() if not name.startswith(".")}


def check(ray: Ray, bundle: Path, files: dict[str, list[str | None]]) -> None:
    """Outputs hold the inputs' rows in order with all columns, and the answers of direct calls."""
    model = load(bundle)
    assert set(outputs(ray)) == set(files)
    for name, texts in files.items():
        before, after = (ray.peer("read", ray.folder / folder / name) for folder in ("in", "out"))
        assert after["schema"] == before["schema"] | {"label": "string", "score": "float", "error": "string"}
        assert after["metadata"]["owner"] == "tests"
        assert after["groups"] == [rows for rows in before["groups"] if rows]
        assert after["codecs"] == (["GZIP"] if texts else [])
        new = ("label", "score", "error")
        assert [{k: v for k, v in row.items() if k not in new} for row in after["rows"]] == before["rows"]
        answers = iter(model([text for text in texts if text is not None]))
        for text, row in zip(texts, after["rows"], strict=True):
            if text is None:
                assert [row[name] for name in new] == [None, None, "text is null"]
            else:
                answer = next(answers)
                assert [row["label"], row["error"]] == [answer["label"], None]
                assert row["score"] == pytest.approx(answer["score"], abs=1e-5)


def test_files_in_files_out(ray: Ray, example_bundle: Path, tmp_path: Path) -> None:
    files = {"a.parquet": texts_of(1000, 1), "deep/er/b.parquet": texts_of(650, 2), "none.parquet": []}
    ray.peer("write", "in", given=files | {"_other/c.parquet": ["a"]})
    summary = done(run(ray, example_bundle, "--concurrency", 2, "--threads", 1, "--unit-rows", 400))
    assert summary | {"rows_cut": 0} == {
        "files": 3, "skipped": 0, "failed": [], "rows": 1650, "rows_without_answer": 2, "rows_cut": 0,
    }  # fmt: skip
    check(ray, example_bundle, files)
    assert ray.all_gone()
    assert not (ray.folder / "out" / ".mbexport-parts").exists()
    first = outputs(ray)

    # All is done, also where a file was only copied; then one has another text, of the same length.
    os.utime(ray.folder / "in" / "a.parquet")
    assert done(run(ray, example_bundle))["skipped"] == 3
    files["a.parquet"][0] = "b" * len(str(files["a.parquet"][0]))
    ray.peer("write", "in", given={"a.parquet": files["a.parquet"]})
    refused = run(ray, example_bundle)
    assert refused.returncode == 2
    assert "out/a.parquet is of an earlier content of its input; 1 such files: replace them by --redo" in refused.stderr
    assert outputs(ray) == first
    summary = done(run(ray, example_bundle, "--redo", "--threads", 2))
    assert (summary["skipped"], summary["rows"]) == (2, 1000)
    check(ray, example_bundle, files)
    assert {name for name, state in outputs(ray).items() if state != first[name]} == {"a.parquet"}

    # Another model, and another setting of the job.
    other = export_to(tmp_path, save_with_tokenizer(tmp_path / "other", seed=3))
    for bundle, options, what in ((other, (), "bundle"), (example_bundle, ("--precision", "fp32"), "precision")):
        refused = run(ray, bundle, *options)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert f"was made with another {what}" in refused.stderr


def test_killed_and_started_again(ray: Ray, example_bundle: Path) -> None:
    files = {f"{number}.parquet": texts_of(2400, number) for number in range(4)}
    ray.peer("write", "in", given=files)
    options = "--concurrency", "1", "--threads", "2", "--unit-rows", "200"
    parts = ray.folder / "out" / ".mbexport-parts"

    def half_way() -> bool:
        """One file is finished, and another has a few of its twelve parts."""
        finished = set(outputs(ray))
        others = [path for path in parts.glob("*.parquet") if path.name not in finished]
        return bool(finished) and any(1 <= len(list(path.glob("*/*.parquet"))) <= 6 for path in others)

    driver = ray.start(
        BIN / "python", EXAMPLES / "map_parquet.py", example_bundle, "in", "out", *options, stderr=subprocess.DEVNULL
    )
    assert wait_for(lambda: half_way() or driver.poll() is not None)
    driver.kill()
    assert driver.wait() == -9
    assert ray.all_gone(but="Agent")  # Ray dies with it; two agents of its own see it within a minute
    before = outputs(ray)
    assert 1 <= len(before) < len(files)

    result = run(ray, example_bundle, *options)
    summary = done(result)
    assert summary["skipped"] == len(before)
    assert summary["rows"] == 2400 * (len(files) - len(before))
    assert f"4 files, {len(before)} of them finished before" in result.stderr
    kept = int(result.stderr.split(" units of rows to do, ")[1].split()[0])
    assert kept >= 1  # parts of files that were not finished
    assert {name: state for name, state in outputs(ray).items() if name in before} == before
    check(ray, example_bundle, files)


def test_what_cannot_be_done(ray: Ray, example_bundle: Path) -> None:
    ray.peer("write", "in", given={"good.parquet": ["The striker scored."], "damaged.parquet": ["a"]})
    damaged = ray.folder / "in" / "damaged.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    for options, message in (
        (["--column", "body"], "no column 'body', found id, text, when, tags"),
        (["--column", "id"], "column 'id' is int16, expected texts"),
    ):
        refused = run(ray, example_bundle, *options)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert message in refused.stderr or "damaged.parquet" in refused.stderr.splitlines()[-1]
    refused = ray.run(BIN / "python", EXAMPLES / "map_parquet.py", example_bundle, "in", "in/out")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert run(ray, ray.folder / "nothing").returncode == 2

    result = run(ray, example_bundle, "--precision", "int8", "--threads", 1)  # found only when the model loads
    assert result.returncode == 2
    assert "int8" in result.stderr.splitlines()[-1]
    assert not outputs(ray)

    result = run(ray, example_bundle, "--threads", 1, "-q")
    assert result.returncode == 1
    assert set(outputs(ray)) == {"good.parquet"}
    assert [line for line in result.stderr.splitlines() if "rows" in line or "runs" in line] == []  # -q
    (failed,) = json.loads(result.stdout)["failed"]
    assert "damaged.parquet" in failed


def save_with_tokenizer(directory: Path, **config: Any) -> Path:
    checkpoint = save_checkpoint(directory, vocab_size=5000, **config)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EXAMPLE / name, checkpoint)
    return checkpoint


def export_to(tmp_path: Path, checkpoint: Path) -> Path:
    bundle = tmp_path / f"{checkpoint.name}-bundle"
    export_onnx(checkpoint, bundle)
    return bundle


def test_bad_rows_and_pairs(ray: Ray, example_bundle: Path) -> None:
    (ray.folder / "in").mkdir()
    ray.peer("write-odd", "in/odd.parquet")
    counts, found = ray.peer("units", example_bundle, "in/odd.parquet", "out", "text")
    assert counts == [5, 3]
    good = load(example_bundle)(["The bank raised its rate.", "The striker scored."])
    rows = found["rows"]
    assert [row["label"] for row in rows] == [good[0]["label"], None, None, None, good[1]["label"]]
    assert [row["error"] for row in rows] == [
        None, "text is null", "text is not valid UTF-8 at byte 0",
        "text has 2000001 characters, at most 2000000 are read", None,
    ]  # fmt: skip


def test_vectors_scores_and_entities(ray: Ray, tmp_path: Path) -> None:
    texts = texts_of(9, 4)
    ray.peer("write", "in", given={"a.parquet": texts})
    good = [text for text in texts if text is not None]
    checkpoints = {
        "vectors": save_with_tokenizer(tmp_path / "vectors", architecture=ENCODER),
        "scores": save_with_tokenizer(tmp_path / "scores", problem_type="multi_label_classification"),
        "entities": save_with_tokenizer(tmp_path / "entities", architecture="ModernBertForTokenClassification"),
    }
    found = {}
    for name, checkpoint in checkpoints.items():
        bundle = export_to(tmp_path, checkpoint)
        (_, bad), output = ray.peer("units", bundle, "in/a.parquet", f"out-{name}", "text")
        assert bad == 1
        rows = [row for row in output["rows"] if row["error"] is None]
        found[name] = (load(bundle)(good), rows, output["schema"])
    answers, rows, schema = found["vectors"]
    assert schema["embedding"] == "fixed_size_list<element: float>[64]"
    np.testing.assert_allclose([row["embedding"] for row in rows], np.stack(answers), atol=1e-5)
    answers, rows, _ = found["scores"]
    for answer, row in zip(answers, rows, strict=True):
        assert dict(row["scores"]) == pytest.approx(answer["scores"], abs=1e-5)
        assert row["label"] == answer["label"]
    answers, rows, _ = found["entities"]
    for answer, row in zip(answers, rows, strict=True):
        entities = json.loads(row["answer"])
        assert [(e["start"], e["end"], e["entity_group"]) for e in entities] == [
            (e["start"], e["end"], e["entity_group"]) for e in answer
        ]


def test_memory_does_not_grow_with_the_file(ray: Ray, example_bundle: Path) -> None:
    size = ray.peer("write-large", "large.parquet", 300)
    assert size >= 300  # megabytes, in one row group
    for column, rows in (("text", "all"), ("body", 20)):
        loaded, answered, written = ray.peer("memory", example_bundle, "large.parquet", f"{column}.out", column, rows)
        print(f"{size:.0f} MB, column {column}: peak {loaded:.0f} MB, {answered:.0f} answered, {written:.0f} written")
        assert written - loaded < 400  # reading by column chunks: 570

"""``mbexport.runtime.Batcher`` on real bundles: right answers under load, and real faults."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mbexport import export_onnx
from mbexport.errors import BackendError, BusyError, InputError, MissingExtraError
from mbexport.runtime import Batcher, Model, load
from mbexport.runtime.backends.ort import OnnxRuntimeBackend
from tests.batching import PATIENCE, Record
from tests.checkpoints import ENCODER, EXAMPLE, edit_config, save_checkpoint

WORDS = (EXAMPLE.parent / "sentences.txt").read_text().split()


def some_texts(count: int, most_words: int = 30) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(1, most_words))) for _ in range(count)]


@pytest.fixture(scope="module")
def model(example_bundle: Path) -> Model:
    return load(example_bundle)


def assert_equal(answers: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> None:
    """Equal but for what another padding and another order of sums make of a score."""
    assert [answer["label"] for answer in answers] == [answer["label"] for answer in expected]
    scores = [answer["score"] for answer in answers]
    assert scores == pytest.approx([answer["score"] for answer in expected], abs=1e-5)


def test_many_threads_and_loops_get_their_own_answers(model: Model) -> None:
    texts = some_texts(400)
    alone = [model([text])[0] for text in texts]
    assert len({answer["score"] for answer in alone}) > 390  # answers of other texts would be seen
    record = Record()
    orders = [np.random.default_rng(seed).permutation(len(texts))[:200] for seed in range(20)]
    with Batcher(model, observer=record) as batcher, ThreadPoolExecutor(20) as pool:

        def by_thread(order: np.ndarray) -> list[Any]:
            return [batcher(texts[number]) for number in order]

        def by_loop(order: np.ndarray) -> list[Any]:
            async def gather() -> list[Any]:
                return await asyncio.gather(*[batcher.answer(texts[number]) for number in order])

            return asyncio.run(gather())

        answers = [pool.submit(by_thread, order) for order in orders[:16]]
        answers += [pool.submit(by_loop, order) for order in orders[16:]]
        for order, own in zip(orders, answers, strict=True):
            assert_equal(own.result(PATIENCE * 3), [alone[number] for number in order])
    assert record.outcomes == ["ok"] * 4000
    assert sum(size for size, _ in record.batches) == 4000
    assert len(record.batches) < 2000  # texts really ran together
    assert max(tokens for _, tokens in record.batches) <= model.batch_tokens
    assert record.depths[-1] == (0, 0)


def test_a_long_text_among_short_ones(model: Model) -> None:
    texts = [*some_texts(40), "The minister spoke of the tax. " * 300, *some_texts(40)]
    alone = [model([text])[0] for text in texts]
    record = Record()
    with Batcher(model, max_tokens=1024, max_waiting_tokens=100_000, observer=record) as batcher:
        futures = [batcher.submit(text) for text in texts]
        assert_equal([future.result(PATIENCE) for future in futures], alone)
    long = [size for size, tokens in record.batches if tokens > 1024]
    assert long == [1]


def test_vectors_are_the_callers_own(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", architecture=ENCODER, vocab_size=5000)
    shutil.copy(EXAMPLE / "tokenizer.json", checkpoint)
    export_onnx(checkpoint, tmp_path / "bundle")
    model, texts = load(tmp_path / "bundle"), some_texts(30)
    expected = model.embed(texts)
    with Batcher(model, max_delay=0.01) as batcher:
        futures = [batcher.submit(text, truncate_dim=8 if number % 2 else None) for number, text in enumerate(texts)]
        for number, future in enumerate(futures):
            vector = future.result(PATIENCE)
            assert vector.base is None  # else it would keep its whole batch in memory
            size = 8 if number % 2 else 64
            assert vector == pytest.approx(expected[number, :size], abs=1e-5)
        with pytest.raises(InputError, match="truncate_dim is 0"):
            batcher.submit("a", truncate_dim=0)
        with pytest.raises(InputError, match="there is no prompt 'query'"):
            batcher.submit("a", prompt_name="query")


@pytest.mark.parametrize("text", [None, 3, b"bytes", "\udcff"])
def test_what_is_no_text_fails_in_its_caller(text: Any, model: Model) -> None:
    with Batcher(model) as batcher:
        with pytest.raises(InputError, match="text 0"):
            batcher.submit(text)
        with pytest.raises(InputError, match="text 0"):
            asyncio.run(batcher.answer(text))
        assert batcher.waiting == 0
        assert batcher(["pairs may", "be lists"]) == model([("pairs may", "be lists")])[0]


def test_a_text_that_onnx_runtime_refuses_fails_alone(example_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(example_bundle, tmp_path / "bundle"))
    tokenizer = json.loads((bundle / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][-1] | {"id": 60_000, "content": "[OUTSIDE]"})
    (bundle / "tokenizer.json").write_text(json.dumps(tokenizer))
    edit_config(bundle, lambda config: config.update(vocab_size=60_001))  # the runtime lets it pass
    model, texts = load(bundle), some_texts(60)
    alone = [model([text])[0] for text in texts]
    with Batcher(model, max_delay=0.05) as batcher:
        futures = [batcher.submit(text) for text in texts]
        bad = [batcher.submit(f"a token [OUTSIDE] the vocabulary {number}") for number in range(3)]
        futures += [batcher.submit(text) for text in texts]
        assert_equal([future.result(PATIENCE) for future in futures], alone * 2)
        for future in bad:
            with pytest.raises(BackendError, match="ONNX Runtime failed"):
                future.result(PATIENCE)
        assert batcher.fault is None


def test_a_backend_that_dies_under_load(example_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, texts = load(example_bundle), some_texts(50)
    real_run, runs = OnnxRuntimeBackend.run, []

    def run(self: OnnxRuntimeBackend, *args: Any, **options: Any) -> Any:
        runs.append(1)
        if len(runs) > 20:
            raise BackendError("the device is lost")
        return real_run(self, *args, **options)

    def ask(_: int) -> str:
        try:
            for text in texts * 1000:
                batcher(text)
        except BackendError as error:
            return str(error)
        return "never"

    monkeypatch.setattr(OnnxRuntimeBackend, "run", run)
    with Batcher(model) as batcher, ThreadPoolExecutor(16) as pool:
        assert set(pool.map(ask, range(16), timeout=PATIENCE)) == {
            "the backend is dead, load the model again: the device is lost"
        }
        assert (batcher.waiting, batcher.waiting_tokens) == (0, 0)


def test_a_model_behind_a_batcher_serves_others_too(model: Model) -> None:
    texts = some_texts(100)
    expected = model(texts)
    with Batcher(model) as batcher, ThreadPoolExecutor(4) as pool:
        direct = [pool.submit(model, texts) for _ in range(3)]
        assert_equal([batcher(text) for text in texts], expected)
        for other in direct:
            assert_equal(other.result(PATIENCE), expected)
        batcher.check(PATIENCE)


def test_prometheus_hears_of_it(model: Model) -> None:
    client = pytest.importorskip("prometheus_client")
    from mbexport.runtime.prometheus import PrometheusObserver

    registry = client.CollectorRegistry()
    observer = PrometheusObserver(registry)
    text = "The bank raised its rate."
    tokens = model.prepare([text])[0].tokens
    with Batcher(model, max_tokens=1, max_waiting=1, max_delay=1000, observer=observer) as batcher:
        for _ in range(3):
            batcher(text)
        with pytest.raises(InputError):
            batcher(None)
    with Batcher(model, max_waiting=1, max_delay=1000, observer=observer) as batcher:
        waiting = batcher.submit(text)
        with pytest.raises(BusyError):
            batcher.submit(text)
        server, thread = client.start_http_server(0, "127.0.0.1", registry)
        try:
            url = f"http://127.0.0.1:{server.server_port}/metrics"
            page = urllib.request.urlopen(url, timeout=PATIENCE).read().decode()
        finally:
            server.shutdown()
            server.server_close()
            thread.join(PATIENCE)
        waiting.cancel()
    values = {name: float(value) for name, value in re.findall(r"^([^#\s]\S*) (\S+)$", page, re.MULTILINE)}
    assert values["mbexport_queue_texts"] == 1
    assert values["mbexport_queue_tokens"] == tokens
    assert values["mbexport_batch_texts_sum"] == values["mbexport_batch_seconds_count"] == 3
    assert values["mbexport_batch_tokens_sum"] == 3 * tokens
    assert values['mbexport_batch_tokens_bucket{le="16.0"}'] == 3
    counts = {name: value for name, value in values.items() if name.startswith("mbexport_request_seconds_count")}
    expected = {"ok": 3, "error": 1, "busy": 1, "timeout": 0, "cancelled": 0, "closed": 0}
    assert counts == {f'mbexport_request_seconds_count{{outcome="{name}"}}': n for name, n in expected.items()}
    assert registry.get_sample_value("mbexport_request_seconds_count", {"outcome": "cancelled"}) == 1
    with pytest.raises(ValueError, match="Duplicated"):
        PrometheusObserver(registry)
    PrometheusObserver(registry, prefix="other")


def test_prometheus_without_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    from mbexport import optional
    from mbexport.runtime.prometheus import PrometheusObserver

    monkeypatch.setattr(optional, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"prometheus_client.*mbexport\[serve\]"):
        PrometheusObserver()


def test_the_readmes_snippet_runs(example_bundle: Path, tmp_path: Path) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    section = readme.split("## Many callers: the batcher")[1].split("\n## ")[0]
    snippet = section.split("```python\n")[1].split("```")[0]
    shutil.copytree(example_bundle, tmp_path / "mbexport-out")
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", snippet],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE * 2,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == re.findall(r"# prints (\w+)", snippet)

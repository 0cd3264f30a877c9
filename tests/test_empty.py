"""No texts, empty texts, and texts of which nothing is left: every task, on the CPU, engines, batchers and Triton."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.service.process import Service
from mbexport import package
from mbexport.cli import main
from mbexport.errors import InputError
from mbexport.runtime import Batcher, load
from tests.gpu_standin import Machine, add_engine
from tests.packages import TASKS, Task, assert_same, expected, given, inputs_of
from tests.triton_standin import Request, Server, TritonError

PATIENCE = 60.0
EMPTY = ["", " ", "\t\n  \r\n", "\x00", "\x00" * 50, "\u200b\ufeff", "́"]
PAIRS = [[first, second] for first in ("", "who") for second in EMPTY]
ITEMS: dict[str, list[Any]] = {
    "classifier": [*EMPTY, *PAIRS],
    "reranker": PAIRS,
    "entities": EMPTY,
    "spans": PAIRS,
    "choices": [["", [""]], ["who", [""]], ["", ["a", ""]], [" ", EMPTY]],
    "masks": [f"{text}[MASK]{text}" for text in EMPTY],
    "encoder": EMPTY,
    "sentences": EMPTY,
    "late": EMPTY,
}
Made = Callable[[str], Path]


def assert_finite(answer: Any) -> None:
    if isinstance(answer, dict):
        answer = list(answer.values())
    if isinstance(answer, list):
        for part in answer:
            assert_finite(part)
    if isinstance(answer, np.ndarray):
        assert (answer.dtype, np.isfinite(answer).all()) == (np.float32, True)
    assert not isinstance(answer, float) or math.isfinite(answer)


@pytest.mark.parametrize("task", TASKS)
def test_no_texts(task: str, bundle_of: Made) -> None:
    model = load(bundle_of(task))
    assert (model([]), model.outputs([]), model.outputs_of_tokens([]), list(model.answers([]))) == ([], [], [], [])
    shapes = {"encoder": (0, 64), "sentences": (0, 64)}
    if task in shapes:
        assert (model.embed([]).shape, model.embed([]).dtype) == (shapes[task], np.float32)
        assert model.embed([], truncate_dim=16).shape == (0, 16)
    if task in ("classifier", "reranker"):
        assert (model.logits([]).shape, model.logits([]).dtype) == ((0, len(model.manifest.labels or ())), np.float32)


@pytest.mark.parametrize("task", TASKS)
def test_empty_texts_have_finite_answers_the_same_everywhere(
    task: str, bundle_of: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, items, kind = bundle_of(task), ITEMS[task], TASKS[task]
    model = load(bundle, device="cpu")
    answers = expected(model, kind, items)
    assert_finite(answers)
    assert_same([expected(model, kind, [item])[0] for item in items], answers)
    with Batcher(model) as batcher:
        assert_same([batcher(item, **(kind.parameters or {})) for item in items], answers)
    assert_same(on_triton(bundle, kind, items, tmp_path / "repository", monkeypatch), answers)
    own = Path(shutil.copytree(bundle, tmp_path / "own"))
    Machine(monkeypatch)
    add_engine(own, "2x8:8x128:32x2048")
    assert_same(expected(load(own, device="cuda"), kind, items), answers)


def on_triton(
    bundle: Path, kind: Task, items: list[Any], repository: Path, monkeypatch: pytest.MonkeyPatch
) -> list[Any]:
    """What Triton answers, to a request for each item: rows of one hold texts or pairs, not both."""
    package(bundle, repository)
    server, answers = Server(repository, monkeypatch), []
    for item in items:
        pair = item if kind.second or isinstance(item, str) else None
        if pair is None:
            request = {"TEXT": [[item[0].encode()]], "PAIR": [[item[1].encode()]]}
        else:
            request = inputs_of(kind, [item])
        (answered,) = server.execute(Request(parameters=kind.parameters, **request))
        answers += given(answered)
    return answers


def test_what_there_is_to_say_of_nothing(bundle_of: Made) -> None:
    nothing = {"answer": "", "score": 0.0, "start": 0, "end": 0}
    assert load(bundle_of("spans"))([("who", ""), ("", "")]) == [nothing, nothing]
    assert load(bundle_of("entities"))(["", "  "]) == [[], []]
    answer = {"label": "", "score": 1.0, "choice": 0, "scores": [1.0]}
    assert load(bundle_of("choices"))([("", [""]), ("who", [""])]) == [answer, answer]
    for item in (("who", []), ("who", ()), ("who", ""), "who"):
        with pytest.raises(InputError, match="item 0: multiple choice takes pairs"):
            load(bundle_of("choices"))([item])
    for text in ("", " "):
        with pytest.raises(InputError, match=r"text 1 has no \[MASK\]"):
            load(bundle_of("masks"))(["[MASK]", text])


def test_a_tokenizer_that_makes_no_tokens_of_an_empty_text(
    example_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Path(shutil.copytree(example_bundle, tmp_path / "bundle"))
    tokenizer = json.loads((bundle / "tokenizer.json").read_text())
    (bundle / "tokenizer.json").write_text(json.dumps(tokenizer | {"post_processor": None}))
    model = load(bundle)
    assert model(["a"])[0]["label"]
    for call in (model, model.logits, model.outputs, model.prepare):
        with pytest.raises(InputError, match="text 1 has no tokens; this tokenizer adds none of its own"):
            call(["a", ""])
    with Batcher(model) as batcher, pytest.raises(InputError, match="text 0 has no tokens"):
        batcher.submit("")
    package(bundle, tmp_path / "repository")
    first, second = Server(tmp_path / "repository", monkeypatch).execute(
        Request(TEXT=[[b"a"]]), Request(TEXT=[[b"a"], [b""]])
    )
    assert json.loads(first["ANSWER"][0][0])["label"]
    assert (second.code(), "text 1 has no tokens" in second.message()) == (TritonError.INVALID_ARG, True)
    with Service(bundle) as service:
        service.until_ready(PATIENCE)
        status, found, _ = service.ask("POST", "/predict", {"inputs": ["a", ""]})
        assert (status, found["error"]["items"][0]["item"]) == (422, 1)


def test_predict_of_nothing(example_bundle: Path, tmp_path: Path) -> None:
    def predict(*arguments: str, given: str = "") -> tuple[int, str, str]:
        result = CliRunner().invoke(main, ["predict", str(example_bundle), "--json", *arguments], input=given)
        return result.exit_code, result.stdout, result.stderr

    assert predict() == (0, "", "")
    code, out, _ = predict(given="\n\n")  # two empty lines are two empty texts
    assert (code, [json.loads(line)["text"] for line in out.splitlines()]) == (0, ["", ""])
    for name, content in (("a.txt", ""), ("b.txt", "\n\n"), ("c.json", "[]"), ("d.csv", "text\n"), ("e.jsonl", "")):
        (tmp_path / name).write_text(content)
        code, out, said = predict("--file", str(tmp_path / name))
        assert (code, out) == (2, "")
        assert f"{name} holds no text" in said

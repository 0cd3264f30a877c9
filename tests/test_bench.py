"""The benchmark with real worker processes. Nothing here asserts a time."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mbexport import export_onnx
from mbexport.bench.arithmetic import model_size
from mbexport.bench.contenders import Contender
from mbexport.bench.plan import make_plan, own_contenders, shapes_to_run
from mbexport.bench.process import Pool
from mbexport.bench.run import Plan, run_bench
from mbexport.bench.workloads import Maker, Workload
from mbexport.cli import main
from mbexport.cli.show import bench_text
from mbexport.errors import ContenderError
from mbexport.manifest import read
from tests.checkpoints import ENCODER, EXAMPLE, copy_example, edit_tensors, save_checkpoint
from tests.int8 import add_int8


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["bench", *(str(argument) for argument in arguments)])


def example_plan(
    bundle: Path, peers: dict[str, tuple[str, Path]], workloads: list[Workload], **options: object
) -> Plan:
    ours = Contender("mbexport", "mbexport", str(bundle), 1)
    others = [Contender(name, kind, str(path), 1) for name, (kind, path) in peers.items()]
    size = model_size(bundle, read(bundle))
    tokenizer = bundle / "tokenizer.json"
    return Plan("example", size, (ours, *others), tuple(workloads), tokenizer, rounds=1, **options)  # type: ignore[arg-type]


def test_bench_on_shapes_and_a_file(example_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("Rates rose again on Thursday.\nThe cup final.\n\nnaïve 東京\nnot this one\n")
    result = bench(
        example_bundle, "--shapes", "1x16,2x70", "--file", tmp_path / "texts.txt", "--limit", 4, "--rounds", 2,
        "--against", "onnxruntime", "--threads", 1, "--json", "--report", tmp_path / "deep" / "report.json",
        "--pictures", tmp_path / "pictures",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report == json.loads((tmp_path / "deep" / "report.json").read_text())
    assert [(w["name"], w["texts"]) for w in report["workloads"]] == [("1x16", 1), ("2x70", 2), ("texts.txt", 4)]
    assert report["workloads"][1]["tokens"] == 140
    assert report["workloads"][2]["padding"] == "longest"
    for workload in report["workloads"]:
        ours, peer = workload["rows"]
        assert (ours["contender"], peer["contender"]) == ("mbexport", "onnxruntime")
        assert (ours["ratio"], ours["agreement"]) == (1.0, None)
        assert peer["agreement"]["difference"] <= peer["agreement"]["limit"]
        for row in workload["rows"]:
            assert row["state"] == "measured"
            assert len(row["seconds"]) == 2
            assert row["minimum"] <= row["median"]
            assert row["floor_share"] == pytest.approx(workload["floor"] / row["median"])
            assert row["tokens_per_second"] == pytest.approx(workload["tokens"] / row["median"])
            assert 10**7 < row["peak_bytes"] < 10**10
    assert report["workloads"][0]["floor"] == pytest.approx(report["workloads"][0]["multiply_adds"] / report["rate"])
    assert [len(start["totals"]) for start in report["starts"]] == [2, 2]
    assert report["machine"]["threads"] == 1
    assert set(report["entrants"][0]["versions"]) == {"mbexport", "onnxruntime", "numpy"}
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"ratio.svg", "memory.svg"}


def test_wrong_and_broken_peers_are_named_and_the_others_go_on(example_bundle: Path, tmp_path: Path) -> None:
    checkpoint = copy_example(tmp_path / "checkpoint")
    edit_tensors(checkpoint, lambda tensors: {n: t * 1.02 if "classifier" in n else t for n, t in tensors.items()})
    export_onnx(checkpoint, tmp_path / "other")
    wrong, broken = tmp_path / "other" / "onnx" / "model.onnx", tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    result = bench(
        example_bundle, "--shapes", "1x70", "--rounds", 1, "--against", f"onnxruntime={wrong}",
        "--against", f"onnxruntime={broken}", "--against", "onnxruntime",
    )  # fmt: skip
    assert result.exit_code == 1, result.output
    lines = result.stdout.splitlines()
    rows = {line.split()[0]: line.split() for line in lines[3:9] if line}
    assert rows[f"onnxruntime={wrong}"][-1] == "WRONG"
    assert rows[f"onnxruntime={broken}"][-1] == "failed"
    assert rows["onnxruntime"][-1] not in ("WRONG", "failed")
    assert any(line.startswith(f"onnxruntime={wrong}: its answers differ by") for line in lines)
    assert any(line.startswith(f"onnxruntime={broken}: ") and "INVALID_PROTOBUF" in line.upper() for line in lines)
    assert lines[1].endswith("GFLOP/s in matrix products")


def test_int8_is_a_contender_of_its_own(example_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(example_bundle, tmp_path / "bundle"))
    graph = add_int8(bundle, "model_int8_reduced.onnx", bits=7)
    other = ("--against", f"onnxruntime={bundle / graph.file}")
    result = bench(bundle, "--shapes", "1x70", "--rounds", 1, *other, "--allow-error", 25, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [entrant["kind"] for entrant in report["entrants"]] == ["mbexport", "mbexport-int8", "onnxruntime"]
    ours, quick, peer = report["workloads"][0]["rows"]
    assert (ours["agreement"], quick["contender"]) == (None, "mbexport int8")
    assert 1e-3 < quick["agreement"]["share"] < 0.25
    assert quick["agreement"]["share"] == pytest.approx(peer["agreement"]["share"], rel=1e-3)
    shown = bench(bundle, "--shapes", "1x70", "--rounds", 1, *other)
    assert shown.exit_code == 1, shown.output
    lines = shown.stdout.splitlines()
    (quick_row,) = (line for line in lines if line.startswith("mbexport int8 ") and "off by" in line)
    assert quick_row.endswith(" %")
    (peer_row,) = (line for line in lines if line.endswith("WRONG"))
    assert peer_row.startswith("onnxruntime=")


@pytest.mark.parametrize(("gate", "wrong"), [("passed", False), (None, False), ("failed", True)])
def test_int8_whose_gate_failed_is_wrong(gate: str | None, wrong: bool, example_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(example_bundle, tmp_path / "bundle"))
    add_int8(bundle, "model_int8_reduced.onnx", gate, bits=7)
    workload = Maker(5000).padded(210)
    own, notes = own_contenders(bundle, read(bundle), 1)
    assert (notes, own[1].on_padded_rows().path) == ([], str(bundle / "onnx" / "model_int8_reduced.onnx"))
    plan = example_plan(bundle, {}, [workload], memory=())
    report = run_bench(dataclasses.replace(plan, contenders=tuple(own)))
    row = report.workloads[0].rows[1]
    assert row.counts is not wrong
    assert report.faults == (["mbexport int8 is WRONG on 1x210-padded"] if wrong else [])
    assert ("mbexport int8: its quality gate failed" in bench_text(report).splitlines()) is wrong


def test_an_int8_graph_that_saturates_here_is_left_out(
    example_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Path(shutil.copytree(example_bundle, tmp_path / "bundle"))
    add_int8(bundle, "model_int8.onnx")
    monkeypatch.setattr("mbexport.runtime.graphs.products_saturate", lambda: True)
    plan = make_plan(bundle, shapes=["1x16"])
    assert [contender.name for contender in plan.contenders] == ["mbexport"]
    assert len(plan.notes) == 1
    assert plan.notes[0].startswith(f"INT8 not run: {bundle}: its int8 graph has activations of 8 bits")


def test_peers_of_every_kind_agree_on_padded_rows(example_bundle: Path) -> None:
    pytest.importorskip("torch")
    graph = example_bundle / "onnx" / "model.onnx"
    peers = {"openvino": ("openvino", graph), "sdpa": ("torch-sdpa", EXAMPLE), "eager": ("torch-eager", EXAMPLE)}
    maker = Maker(5000)
    texts = [workload.texts[0] for workload in map(maker.shape, ("1x90", "1x20", "1x140"))]
    workloads = [maker.padded(210), maker.from_ids("texts", texts)]
    plan = example_plan(
        example_bundle, peers, workloads, memory=("1x210-padded",),
        leave_out=lambda contender, name, _: "by a rule" if (contender.name, name) == ("eager", "texts") else None,
        alone=lambda contender, _name, _longest: contender.name == "openvino",
    )  # fmt: skip
    report = run_bench(plan)
    assert report.faults == []
    padded, ragged = report.workloads
    assert (padded.tokens, padded.longest, ragged.rows[0].peak_bytes) == (140, 210, None)
    assert [row.state for row in padded.rows] == ["measured"] * 4
    assert ragged.rows[3].reason == "by a rule"
    assert padded.rows[0].peak_bytes is not None
    compared = [row.agreement for row in (*padded.rows[1:], *ragged.rows[1:3])]
    assert all(a is not None and a.difference is not None and not a.wrong for a in compared)
    assert set(report.entrants[2].versions) == {"torch", "transformers", "numpy"}


def export_with_tokenizer(architecture: str, folder: Path) -> None:
    """A small random model with the example's tokenizer, exported to folder / "bundle"."""
    checkpoint = save_checkpoint(folder / "checkpoint", architecture, vocab_size=5000)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (checkpoint / name).write_bytes((EXAMPLE / name).read_bytes())
    export_onnx(checkpoint, folder / "bundle")


@pytest.mark.parametrize("architecture", ["ModernBertForMaskedLM", ENCODER])
def test_outputs_of_tokens_are_compared_where_tokens_are_real(architecture: str, tmp_path: Path) -> None:
    export_with_tokenizer(architecture, tmp_path)
    (tmp_path / "texts.txt").write_text("Rates [MASK] on Thursday in the whole country.\nA [MASK].\n")
    result = bench(
        tmp_path / "bundle", "--shapes", "2x70", "--file", tmp_path / "texts.txt", "--rounds", 1,
        "--against", "onnxruntime", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for workload in json.loads(result.stdout)["workloads"]:
        agreement = workload["rows"][1]["agreement"]
        assert agreement["difference"] <= agreement["limit"]


def test_texts_without_a_mask_are_refused(tmp_path: Path) -> None:
    export_with_tokenizer("ModernBertForMaskedLM", tmp_path)
    (tmp_path / "texts.txt").write_text("A [MASK].\nNone here.\n")
    result = bench(tmp_path / "bundle", "--file", tmp_path / "texts.txt")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "text 1 has no [MASK] in its first" in result.stderr


def test_a_process_that_dies_is_told(example_bundle: Path) -> None:
    contender = Contender("mbexport", "mbexport", str(example_bundle), 1)
    with Pool() as pool:
        worker = pool.worker(contender)
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(ContenderError, match=r"its process ended with code -9 \(killed"):
            worker.ask(do="run", workload="x", again_below=0, outputs=None)
        pool.close(contender)
        with pytest.raises(ContenderError, match="FileNotFoundError"):
            pool.worker(contender).ask(do="run", workload="none.npz", again_below=0, outputs=None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--against", "tensorflow"], "no contender 'tensorflow', expected one of onnxruntime, openvino"),
        (["--against", "torch-sdpa"], "torch-sdpa needs the checkpoint that it loads: --against torch-sdpa=CHECKPOINT"),
        (["--against", "torch-sdpa=/none"], "/none/config.json is no file, expected a checkpoint directory"),
        (["--against", "onnxruntime=/none.onnx"], "/none.onnx is no file, expected an ONNX file"),
        (["--against", "onnxruntime", "--against", "onnxruntime"], "the same contender twice"),
        (["--shapes", "8by128"], "found '8by128', expected texts x tokens, e.g. 8x128"),
        (["--shapes", "1x16,"], "found ''"),
        (["--shapes", "1x8193"], "1x8193 is longer than the model's 8192 tokens"),
        (["--limit", "3"], "give --file, too"),
        (["--file", "none.txt"], "none.txt cannot be read"),
        (["--report", "/"], "--report / is a directory"),
        (["--allow-error", "-1"], "'--allow-error': -1.0 is not in the range"),
        (["--threads", "0"], "'--threads': 0 is not in the range"),
    ],
)
def test_bad_usage_is_one_line(arguments: list[str], message: str, example_bundle: Path) -> None:
    result = bench(example_bundle, *arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_usual_shapes_that_are_too_long_are_named() -> None:
    assert shapes_to_run(None, 600, has_texts=False) == (
        ["1x16", "1x128", "8x128", "1x512"], ["not run: 1x2048; the model takes 600 tokens"],
    )  # fmt: skip
    assert shapes_to_run(None, 9, has_texts=False)[0] == ["1x9"]
    assert shapes_to_run(None, 600, has_texts=True) == ([], [])

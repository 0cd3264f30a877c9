from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks import cpu, parts, table
from mbexport.bench.agreement import compare
from mbexport.bench.arithmetic import ModelSize, model_size
from mbexport.bench.contenders import Contender
from mbexport.bench.machine import this_machine
from mbexport.bench.markdown import markdown
from mbexport.bench.measure import rounds_for
from mbexport.bench.pictures import draw
from mbexport.bench.products import MatrixProducts, matmul_model
from mbexport.bench.report import (
    Agreement,
    Entrant,
    Report,
    Row,
    Start,
    WorkloadFigures,
    quartile_range,
    ratio_of,
    read,
    write,
)
from mbexport.bench.workloads import Maker, Workload, normal_lengths
from mbexport.checkpoint.spec import parse_config
from mbexport.errors import BundleError, InputError
from mbexport.manifest import Manifest, Source

CLASSIFIER = {
    "architectures": ["ModernBertForSequenceClassification"], "model_type": "modernbert", "num_attention_heads": 4,
}  # fmt: skip
SIZE = ModelSize(
    hidden=8, intermediate=6, layer_is_global=(True, False, False), half_window=3, vocab_size=50, pad_id=0,
    head_outputs=5, per_token=False,
)  # fmt: skip


def counted(size: ModelSize, length: int) -> int:
    """Multiply-adds of one text, counted one matrix and one pair at a time."""
    total = 0
    for is_global in size.layer_is_global:
        for inputs, outputs in ((8, 8), (8, 8), (8, 8), (8, 8), (8, 6), (8, 6), (6, 8)):
            total += length * inputs * outputs
        for query in range(length):
            seen = sum(is_global or abs(query - key) <= size.half_window for key in range(length))
            total += 2 * size.hidden * seen
    rows = length if size.per_token else 1
    return total + rows * (8 * 8 + 8 * size.head_outputs)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 17, 40])
@pytest.mark.parametrize("per_token", [False, True])
def test_multiply_adds_are_those_of_a_count(length: int, per_token: bool) -> None:
    size = dataclasses.replace(SIZE, per_token=per_token)
    assert size.multiply_adds([length]) == counted(size, length)
    assert size.multiply_adds([length, 9]) == counted(size, length) + counted(size, 9)
    assert dataclasses.replace(size, half_window=40).multiply_adds([length]) >= counted(size, length)


def test_size_of_both_config_generations(tmp_path: Path) -> None:
    older = {"num_hidden_layers": 4, "global_attn_every_n_layers": 3, "hidden_size": 64, "local_attention": 128}
    newer = {"layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]}
    manifest = Manifest(Source("x", ""), "text-classification", 512, labels=("a", "b"))
    sizes = []
    for config in (older, newer | {"hidden_size": 64}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        size = model_size(tmp_path, manifest)
        spec, _ = parse_config(CLASSIFIER | config, 2)
        assert (size.layer_is_global, size.half_window) == (spec.layer_is_global, spec.half_window)
        sizes.append(size)
    assert sizes[0] == sizes[1]
    (tmp_path / "config.json").write_text('{"hidden_size": "big"}')
    with pytest.raises(BundleError, match="hidden_size is 'big', expected a whole number"):
        model_size(tmp_path, manifest)


def test_products_are_computed() -> None:
    products = MatrixProducts([(3, 4), (5, 2)], threads=1)
    assert [value.shape for value in products.run()] == [(512, 4), (512, 2)]
    assert products.multiply_adds == 512 * (12 + 10)
    weight = np.arange(300 * 7, dtype=np.float32).reshape(300, 7)  # sizes that need more than one byte
    model = onnx.load_from_string(matmul_model([weight]))
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(model.graph.initializer[0]), weight)


def test_workloads_come_from_a_seed() -> None:
    first, again = Maker(5000, mask_id=4).shape("2x9"), Maker(5000, mask_id=4).shape("2x9")
    for text, same in zip(first.texts, again.texts, strict=True):
        np.testing.assert_array_equal(text, same)
        assert text[4] == 4
        assert text.dtype == np.int64
    ids = np.concatenate(Maker(50_368).shape("1x5000").texts)
    assert (ids.min() >= 100, ids.max() < 16_000) == (True, True)
    assert np.concatenate(Maker(60).shape("1x500").texts).max() < 60


def test_efficiency_sets_have_the_papers_lengths() -> None:
    sets = {workload.name: workload for workload in Maker(5000).efficiency_sets()}
    assert sets["fixed-short"].lengths == (512,) * 32
    assert sets["fixed-long"].lengths == (8192,) * 2
    short, long = sets["variable-short-fixed"].lengths, sets["variable-long-fixed"].lengths
    assert (len(short), len(long)) == (64, 4)
    assert 16 <= min(short) < 200
    assert 300 < max(short) <= 512
    assert short == sets["variable-short-longest"].lengths == tuple(normal_lengths(64, 256, 64, 512))
    assert sets["variable-short-longest"].padding == "longest"
    rows = {name: {mask.shape[1] for _, mask in workload.batches()} for name, workload in sets.items()}
    assert (rows["variable-short-fixed"], rows["variable-long-fixed"]) == ({512}, {8192})
    assert max(rows["variable-short-longest"]) == max(short)


def test_padding_policies(tmp_path: Path) -> None:
    texts = tuple(np.arange(1, length + 1) for length in (3, 1, 5, 2))
    rows = {}
    for padding, row in (("longest", None), ("fixed", 6)):
        Workload("x", texts, 2, padding, row, pad_id=7, mask_id=9).save(tmp_path / "x.npz")
        workload = Workload.load(tmp_path / "x.npz")
        assert (workload.name, workload.batch, workload.padding, workload.row) == ("x", 2, padding, row)
        assert not workload.given_padded
        assert (workload.pad_id, workload.mask_id, workload.tokens) == (7, 9, 11)
        rows[padding] = list(workload.batches())
    assert [ids.shape for ids, _ in rows["longest"]] == [(2, 3), (2, 5)]
    assert [ids.shape for ids, _ in rows["fixed"]] == [(2, 6), (2, 6)]
    ids, mask = rows["longest"][0]
    assert ids.tolist() == [[1, 2, 3], [1, 7, 7]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    padded = Maker(5000).padded(30)
    padded.save(tmp_path / "padded.npz")
    assert Workload.load(tmp_path / "padded.npz").given_padded
    assert (padded.tokens, padded.longest, next(padded.batches())[0].shape) == (20, 30, (1, 30))
    ours = Contender("mbexport", "mbexport", "bundle", 2).on_padded_rows()
    assert (ours.name, ours.kind, ours.path) == ("mbexport", "onnxruntime", str(Path("bundle/onnx/model_ort.onnx")))
    own = Contender("mbexport int8", "mbexport-int8", "bundle", 2, 0.25, graph="onnx/model_int8.onnx").on_padded_rows()
    assert (own.kind, own.path) == ("onnxruntime", str(Path("bundle/onnx/model_int8.onnx")))
    assert own.allowed_error == 0.25


def test_statistics() -> None:
    assert quartile_range([5.0]) == 0
    assert quartile_range([1.0, 2.0, 3.0, 4.0, 5.0]) == 2
    assert ratio_of([2.0, 9.0, 4.0], [1.0, 3.0, 4.0], paired=True) == 2
    assert ratio_of([2.0], [1.0, 3.0], paired=True) == 2
    assert ratio_of([], [1.0], paired=True) is ratio_of([], [1.0], paired=False) is None
    assert ratio_of([6.0, 2.0], [1.0, 3.0, 8.0], paired=False) == 4 / 3
    assert [rounds_for(seconds) for seconds in (0.1, 1, 4, 10, 80)] == [11, 7, 5, 3, 2]


@pytest.mark.parametrize(
    ("found", "wrong"),
    [([1.0, 2.0], False), ([1.0005, 2.0], False), ([1.0, 2.002], True), ([1.0, float("nan")], True), ([1.0], True)],
)
def test_agreement(found: list[float], wrong: bool, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", np.array([1.0, 2.0], np.float32))
    np.savez(tmp_path / "b.npz", np.array(found, np.float32))
    assert compare(tmp_path / "a.npz", "logits", tmp_path / "b.npz", "logits", 1e-3).wrong == wrong
    other = compare(tmp_path / "a.npz", "logits", tmp_path / "b.npz", "pooled", 1e-3)
    assert not other.wrong
    assert other.reason == "not compared: it gives pooled, the first contender logits"


def test_allowed_error_is_a_share_of_the_spread(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", np.array([1.0, 3.0], np.float32))
    np.savez(tmp_path / "b.npz", np.array([1.0, 3.25], np.float32))
    found = compare(tmp_path / "a.npz", "logits", tmp_path / "b.npz", "logits", 0.2)
    assert (found.difference, found.limit, found.share, found.wrong) == (0.25, 0.4, 0.125, False)
    assert compare(tmp_path / "a.npz", "logits", tmp_path / "b.npz", "logits", 0.1).wrong


def small_report() -> Report:
    rows = (
        Row("ours", "measured", None, (1.0, 2.0), 1.5, 1.0, 0.5, 1.0, 20.0, 0.5, 10**8),
        Row("fast", "measured", None, (0.1,), 0.1, 0.1, 0.0, 0.1, 9.0, 5.0, 10**8, Agreement(1.0, 0.1, wrong=True)),
        Row("slow", "measured", None, (3.0,), 3.0, 3.0, 0.0, 2.0, 9.0, 0.2, 2 * 10**8, Agreement(0.01, 0.1)),
        Row("dead", "failed", "it died"),
        Row("large", "left out", "needs 17 GB"),
    )
    names = [row.contender for row in rows]
    workloads = tuple(
        WorkloadFigures(f"1x{length}", 1, length, length, 1, "none", 10**9, 0.75, rows) for length in (16, 512)
    )
    return Report(
        date="2026-11-22",
        model="x",
        machine=this_machine(2),
        entrants=tuple(Entrant(name, "onnxruntime", "x.onnx", {"onnxruntime": "1"}) for name in names),
        rate=1e9,
        workloads=workloads,
        starts=(Start("ours", 1.0, 0.5, (1.0, 1.0)), Start("dead", reason="it died", failed=True)),
        parts={"1x16": dict.fromkeys((parts.PRODUCTS, parts.GLOBAL, parts.LOCAL, parts.OTHER), 0.1)},
    )


def test_own_contenders_are_no_peers() -> None:
    report = small_report()
    quick = dataclasses.replace(report.entrants[2], kind="mbexport-int8")
    report = dataclasses.replace(report, entrants=(*report.entrants[:2], quick, *report.entrants[3:]))
    assert report.own == {"ours", "slow"}
    assert report.workloads[0].best_peer(report.own) is None


def test_report_round_trip(tmp_path: Path) -> None:
    report = small_report()
    write(report, tmp_path / "report.json")
    assert read(tmp_path / "report.json") == report
    raw = json.loads(report.to_json())
    for damaged, message in ((raw | {"schema_version": 9}, "schema_version 9"), (raw | {"starts": 1}, "is no report")):
        (tmp_path / "report.json").write_text(json.dumps(damaged))
        with pytest.raises(InputError, match=message):
            read(tmp_path / "report.json")


def test_a_wrong_answer_is_no_result() -> None:
    report = small_report()
    best = report.workloads[0].best_peer(report.own)
    assert best is not None
    assert best.contender == "slow"
    shown = markdown(report).splitlines()
    assert "| 1x16 | 2 | 1500 | WRONG | 3000 | failed | - | slow | 2.00 | 50 % |" in shown
    assert "| peak MB, 1x16 | 100 | 100 | 200 | - | - |" in shown
    assert "| first answer, s | 1.00 | - | - | - | - |" in shown
    assert report.faults[:2] == ["dead failed on 1x16: it died", "dead failed on 1x512: it died"]
    assert report.faults[2:] == [
        "fast is WRONG on 1x16", "fast is WRONG on 1x512", "dead failed at its start: it died",
    ]  # fmt: skip


def test_pictures_are_drawn_and_always_the_same(tmp_path: Path) -> None:
    files = draw(small_report(), tmp_path, "cpu_")
    assert [file.name for file in files] == ["cpu_ratio.svg", "cpu_length.svg", "cpu_memory.svg"]
    before = [file.read_bytes() for file in files]
    draw(small_report(), tmp_path, "cpu_")
    assert [file.read_bytes() for file in files] == before


@pytest.mark.parametrize("section", table.SECTIONS)
def test_readme_shows_the_committed_figures(section: str) -> None:
    assert table.split_readme(section)[1].strip() == table.SECTIONS[section]()


def test_parts_of_a_profile(example_bundle: Path) -> None:
    spec, _ = parse_config(json.loads((example_bundle / "config.json").read_text()))
    cases = {
        ("layers.0/attn/Wq", "MatMul"): parts.PRODUCTS,
        ("layers.0/attn/Wk", "Product"): parts.PRODUCTS,
        ("layers.1/mlp/Wi_gate", "MatMul"): parts.PRODUCTS,
        ("decoder/tied", "Gemm"): parts.PRODUCTS,
        ("layers.0/attn/out_then/flash_else/attended", "MultiHeadAttention"): parts.GLOBAL,
        ("layers.1/attn/out_then/attended", "Attention"): parts.LOCAL,
        ("local_attention/band", "LessOrEqual"): parts.LOCAL,
        ("layers.1/mlp/act", "Gelu"): parts.OTHER,
    }
    for (name, operator), part in cases.items():
        assert parts.part_of(name, operator, spec) == part, name
    seconds = parts.profile(example_bundle, 150, 1, spec)
    assert set(seconds) == {parts.PRODUCTS, parts.GLOBAL, parts.LOCAL, parts.OTHER}
    assert all(value > 0 for value in seconds.values())


def test_who_runs_what_in_make_bench(tmp_path: Path) -> None:
    graphs = {name: tmp_path / name for name in ("optimum", "optimum O2", "transformers", "transformers fused")}
    entrants = cpu.contenders(tmp_path, tmp_path, graphs, 2)
    assert entrants[0].name == cpu.OURS
    assert {*cpu.QUADRATIC, *cpu.LARGE, *cpu.SHORT_SET_PEERS, *cpu.LONG_SET_PEERS} <= {c.name for c in entrants}
    runs = {workload.name: workload for workload in cpu.workloads(Maker(50_368), 8192)}
    assert {*cpu.MEMORY, *cpu.SET_PEERS, *cpu.MOST_ROUNDS} <= set(runs)
    short = [workload.name for workload in cpu.workloads(Maker(50_368), 512)]
    assert short == [name for name, workload in runs.items() if workload.longest <= 512]
    assert "variable-short-fixed" in short
    running = {
        name: [c.name for c in entrants if cpu.leave_out(c, name, workload.longest) is None]
        for name, workload in runs.items()
    }
    assert len(running["8x512"]) == len(running["1x2048"]) == 10
    assert running["variable-short-longest"] == list(cpu.SHORT_SET_PEERS)
    assert running["fixed-long"] == list(cpu.LONG_SET_PEERS)
    assert running["1x8192"] == [cpu.OURS, *cpu.LARGE, "torch sdpa"]


def test_a_busy_machine_is_named() -> None:
    machine = dataclasses.replace(this_machine(1), cores=2)
    assert dataclasses.replace(machine, load=0.3).busy is None
    assert dataclasses.replace(machine, load=None).busy is None
    assert "load 1.5 on 2 cores" in (dataclasses.replace(machine, load=1.5).busy or "")


def test_a_branch_is_not_counted_with_its_nodes(example_bundle: Path) -> None:
    spec, _ = parse_config(json.loads((example_bundle / "config.json").read_text()))

    def node(name: str, operator: str, start: int, duration: int) -> dict[str, object]:
        return {
            "cat": "Node",
            "name": f"{name}_kernel_time",
            "ts": start,
            "dur": duration,
            "args": {"op_name": operator},
        }

    runs = [{"name": "model_run", "ts": start, "dur": 100} for start in (0, 100)]
    nodes = [node("layers.1/attn/out", "If", 110, 50), node("layers.1/attn/out_else/attended", "Attention", 115, 40)]
    seconds = parts.split_by_part([*runs, *nodes], spec)
    assert seconds == {parts.PRODUCTS: 0, parts.GLOBAL: 0, parts.LOCAL: 40e-6, parts.OTHER: 0}


def test_texts_of_a_file_are_given_by_length() -> None:
    workload = Maker(5000).from_ids("x", [np.arange(1, length + 1) for length in (9, 3, 5)])
    assert workload.lengths == (3, 5, 9)

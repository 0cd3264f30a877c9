"""Where graphs say that their tensors lie: files beside them, whatever the library underneath would open."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mbexport import manifest as manifests
from mbexport.bundle.half import ensure_half_graph
from mbexport.checkpoint.load import read_bundle_spec
from mbexport.disk.external import check_external_data, locations
from mbexport.engines.prepare import prepare
from mbexport.errors import BundleError, InputError
from mbexport.parity.subjects import open_subject
from mbexport.runtime import load
from tests.bundles import rehash
from tests.checkpoints import EXAMPLE
from tests.hostile.bounded import run_bounded

DATA = "model.onnx_data"


def external(location: str, name: str = "t") -> TensorProto:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor


def model(*nodes: onnx.NodeProto, initializers: tuple[TensorProto, ...] = ()) -> onnx.ModelProto:
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    graph = helper.make_graph(list(nodes), "g", [], [output], initializer=initializers)
    return helper.make_model(graph)


def in_an_initializer(location: str) -> onnx.ModelProto:
    return model(helper.make_node("Identity", ["t"], ["y"]), initializers=(external(location),))


def in_a_constant(location: str) -> onnx.ModelProto:
    return model(helper.make_node("Constant", [], ["y"], value=external(location)))


def in_a_list_of_an_attribute(location: str) -> onnx.ModelProto:
    return model(helper.make_node("X", [], ["y"], domain="x", values=[external(location)]))


def in_a_branch(location: str) -> onnx.ModelProto:
    branch = in_a_constant(location).graph
    return model(helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch))


def in_a_function(location: str) -> onnx.ModelProto:
    made = model(helper.make_node("f", [], ["y"], domain="d"))
    constant = helper.make_node("Constant", [], ["y"], value=external(location))
    made.functions.append(helper.make_function("d", "f", [], ["y"], [constant], [helper.make_opsetid("", 20)]))
    return made


def in_a_sparse_tensor(location: str) -> onnx.ModelProto:
    made = model()
    made.graph.sparse_initializer.add().values.CopyFrom(external(location))
    return made


HIDING_PLACES: list[Callable[[str], onnx.ModelProto]] = [
    in_an_initializer, in_a_constant, in_a_list_of_an_attribute, in_a_branch, in_a_function, in_a_sparse_tensor,
]  # fmt: skip


@pytest.mark.parametrize("make", HIDING_PLACES, ids=lambda make: make.__name__)
def test_every_place_of_a_tensor_is_found(make: Callable[[str], onnx.ModelProto], tmp_path: Path) -> None:
    (tmp_path / DATA).write_bytes(bytes(16))
    graph = tmp_path / "model.onnx"
    graph.write_bytes(make(DATA).SerializeToString())
    assert locations(graph) == {DATA}
    check_external_data(graph, InputError)
    graph.write_bytes(make("../secret").SerializeToString())
    with pytest.raises(InputError, match=r"'\.\./secret', expected a file beside the graph"):
        check_external_data(graph, InputError)


def field(number: int, content: bytes, size: bytes | None = None) -> bytes:
    return bytes([number << 3 | 2]) + (bytes([len(content)]) if size is None else size) + content


KEY, GOOD, BAD = field(1, b"location"), field(2, DATA.encode()), field(2, b"/etc/passwd")
ENTRIES = {
    "value first": BAD + KEY,
    "two values, the last counts": KEY + GOOD + BAD,
    "long lengths": field(1, b"location", b"\x88\x00") + field(2, b"/etc/passwd", b"\x8b\x80\x00"),
    "a good one in another key": field(2, b"j" + KEY + GOOD) + KEY + BAD,
    "unknown fields": b"\x78\x01" + field(9, KEY + GOOD) + KEY + BAD,
}


@pytest.mark.parametrize("name", ENTRIES)
def test_entries_are_read_as_protobuf_reads_them(name: str, tmp_path: Path) -> None:
    tensor = field(13, ENTRIES[name])
    assert {e.key: e.value for e in TensorProto.FromString(tensor).external_data} == {"location": "/etc/passwd"}
    graph = tmp_path / "model.onnx"
    graph.write_bytes(field(7, field(5, tensor)))
    assert locations(graph) == {"/etc/passwd"}


def test_graphs_given_in_two_parts_are_one(tmp_path: Path) -> None:
    content = in_an_initializer("/etc/passwd").SerializeToString() + in_a_constant(DATA).SerializeToString()
    (tmp_path / "model.onnx").write_bytes(content)
    assert locations(tmp_path / "model.onnx") == {"/etc/passwd", DATA}


@pytest.mark.parametrize(
    "content",
    [
        b"location",
        b"\x3a\xff\xff\xff\xff\x0flocation",
        b"\x3a\x09location",
        b"\x3b location",
        b"\x80" * 11 + b"location",
    ],
)
def test_what_is_no_message_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as an ONNX graph"):
        check_external_data(tmp_path / "model.onnx", InputError)


def test_depth_is_bounded(tmp_path: Path) -> None:
    content = field(13, KEY + GOOD)
    for _ in range(200):  # a graph in an attribute of a node of a graph
        size = len(content)
        sized = bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14])
        content = b"\x32" + sized + content
        for tag in (b"\x2a", b"\x0a"):
            size = len(content)
            content = tag + bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14]) + content
    size = len(content)
    (tmp_path / "model.onnx").write_bytes(
        b"\x3a" + bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14]) + content
    )
    with pytest.raises(InputError, match="nested deeper"):
        check_external_data(tmp_path / "model.onnx", InputError)


def outside(bundle: Path) -> Path:
    path = bundle.parent / "outside"
    shutil.copy(bundle / "onnx" / DATA, path)
    return path


PLACES: dict[str, Callable[[Path], str]] = {
    "absolute": lambda bundle: str(outside(bundle)),
    "above": lambda bundle: f"../../{outside(bundle).name}",
    "a link out": lambda bundle: linked(bundle / "onnx" / "link", outside(bundle)),
    "a folder that is a link": lambda bundle: linked(bundle / "onnx" / "link", outside(bundle).parent) + "/outside",
    "a device": lambda bundle: linked(bundle / "onnx" / "link", Path("/dev/zero")),
    "a pipe": lambda bundle: piped(bundle / "onnx" / "pipe"),
    "a folder": lambda _: "../onnx",
    "no name": lambda _: "",
    "a name for memory": lambda _: "*/_ORT_MEM_ADDR_/*",  # at which OpenVINO 2026.4 reads any address
    "a name with a zero": lambda _: f"{DATA}\0x",
}  # fmt: skip


def linked(link: Path, target: Path) -> str:
    link.symlink_to(target)
    return link.name


def piped(path: Path) -> str:
    os.mkfifo(path)
    return path.name


def relocate(graph: Path, location: str) -> None:
    """Have a graph take one of its tensors from elsewhere, and the manifest agree."""
    made = onnx.load(graph, load_external_data=False)
    tensor = next(tensor for tensor in made.graph.initializer if tensor.external_data)
    next(entry for entry in tensor.external_data if entry.key == "location").value = location
    graph.write_bytes(made.SerializeToString())
    rehash(graph)


def test_no_command_opens_what_lies_elsewhere(example_bundle: Path, tmp_path: Path) -> None:
    commands = []
    for number, (name, place) in enumerate(PLACES.items()):
        bundle = Path(shutil.copytree(example_bundle, tmp_path / str(number) / "bundle"))
        location = place(bundle)
        for graph in ("model.onnx", "model_ort.onnx"):
            relocate(bundle / "onnx" / graph, location)
        commands.append(["predict", bundle, "a text"])
        if name in ("absolute", "a pipe"):
            foreign = bundle / "onnx" / "model.onnx"
            commands += [
                ["prepack", bundle],
                ["int8", bundle, "--calibration", EXAMPLE.parent / "sentences.txt"],
                ["trt", bundle, "--gpu", "t4"],
                ["validate", bundle, "--against", example_bundle],
                ["validate", foreign, "--against", example_bundle],
                ["bench", example_bundle, "--against", f"onnxruntime={foreign}", "--shapes", "1x8"],
                ["bench", example_bundle, "--against", f"openvino={foreign}", "--shapes", "1x8"],
            ]
        if name == "absolute":  # of others nothing is copied
            commands.append(["package", bundle, "-o", bundle.parent / "repository"])
    for outcome in run_bounded(commands):
        outcome.assert_refused("tensors are said to lie in")


@pytest.mark.parametrize("fault", ["offset", "length"])
def test_a_place_beyond_the_file_is_refused(fault: str, example_bundle: Path, tmp_path: Path) -> None:
    """Also where it is 2**63 and more: no library gets as far as to add it up."""
    commands = []
    for number, value in enumerate((str(2**40), str(2**63), str(2**64 + 4096), "-4096", "abc")):
        bundle = Path(shutil.copytree(example_bundle, tmp_path / str(number)))
        for graph in ("model.onnx", "model_ort.onnx"):
            made = onnx.load(bundle / "onnx" / graph, load_external_data=False)
            tensor = next(tensor for tensor in made.graph.initializer if tensor.external_data)
            next(entry for entry in tensor.external_data if entry.key == fault).value = value
            (bundle / "onnx" / graph).write_bytes(made.SerializeToString())
            rehash(bundle / "onnx" / graph)
        commands.append(["predict", bundle, "a text"])
        if fault == "offset":
            commands.append(["trt", bundle, "--gpu", "t4"])
    for outcome in run_bounded(commands):
        outcome.assert_refused("onnx")


def test_a_directory_of_graphs_may_hold_pipes_and_folders(example_bundle: Path, tmp_path: Path) -> None:
    graphs = Path(shutil.copytree(example_bundle / "onnx", tmp_path / "graphs"))
    shutil.copy(example_bundle / "config.json", graphs)
    os.mkfifo(graphs / "pipe.onnx")
    (graphs / "folder.onnx").mkdir()
    (outcome,) = run_bounded([["validate", graphs, "--against", example_bundle, "--max-length", "70"]])
    assert outcome.code == 0, outcome.stderr
    assert "pipe.onnx: not compared: it is no file" in outcome.stdout


def test_a_bundle_in_the_hub_s_cache_is_loaded(example_bundle: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    snapshot = blobs.parent / "snapshots" / "main"
    for number, file in enumerate(sorted(path for path in example_bundle.rglob("*") if path.is_file())):
        link = snapshot / file.relative_to(example_bundle)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blobs / str(number))
        link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
    texts = ["The central bank raised its main interest rate.", "The striker scored twice."]
    assert np.array_equal(load(snapshot).logits(texts), load(example_bundle).logits(texts))


def test_tensorrt_s_parser_is_given_no_such_graph(example_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(example_bundle, tmp_path / "bundle"))
    relocate(bundle / "onnx" / "model.onnx", str(outside(bundle)))
    with pytest.raises(BundleError, match="tensors are said to lie in"):
        prepare(bundle / "onnx" / "model.onnx", [True])


def test_graphs_of_a_bundle_are_looked_through_before_they_are_compared(example_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(example_bundle, tmp_path / "bundle"))
    graph = ensure_half_graph(bundle, "fp16")
    relocate(bundle / graph.file, piped(bundle / "onnx" / "pipe"))
    with pytest.raises(BundleError, match=r"model_fp16\.onnx: tensors are said to lie in 'pipe'"):
        open_subject(bundle, read_bundle_spec(bundle, manifests.read(bundle)), bisect=False)

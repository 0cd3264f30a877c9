"""From a bundle to Triton's model repository: two models, one of texts, one of token ids."""

from __future__ import annotations

import dataclasses
import re
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mbexport import manifest as manifests
from mbexport.disk.writing import check_target, new_directory
from mbexport.errors import BundleError, InputError
from mbexport.files import Progress, sha256, to_json
from mbexport.manifest import FILE_NAME, Manifest
from mbexport.options import PACKAGE_DEVICES, PACKAGE_FORMATS, PACKAGE_PRECISIONS
from mbexport.packaging.choose import Choice, choose
from mbexport.packaging.config import Plan, graph_config, text_config, warm_shapes, warm_up_file
from mbexport.packaging.guide import guide
from mbexport.packaging.signature import read_signature
from mbexport.runtime.text import bundle_encoder
from mbexport.version import __version__

REPORT = "mbexport-package.json"  # marks a repository that --force may replace
VERSION = "1"  # of both models: the folder that Triton takes
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
MODEL_PY = f'''"""Texts in, answers out. Written by mbexport {__version__}, which Triton's Python must have."""

from mbexport.packaging.serve import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True)
class Options:
    """What is wanted of a repository; see :func:`mbexport.package`."""

    format: str
    name: str
    device: str
    precision: str
    engine: str | None


@dataclass(frozen=True)
class PackageReport:
    """What was written: the models' names, the bundle's file that is run, and where.

    ``backend`` is Triton's, ``bytes`` the size of all files.
    """

    format: str
    name: str
    graph_model: str
    backend: str
    device: str
    file: str
    precision: str
    sha256: str
    bytes: int
    task: str
    source: str
    mbexport: str


def package(bundle: Path, output: Path, options: Options, *, force: bool, progress: Progress) -> PackageReport:
    """Write a repository in one step; see :func:`mbexport.package`."""
    _check(options)
    check_target(output, force=force, marker=REPORT, kind="repository that mbexport package wrote")
    inside, around = output.resolve(), bundle.resolve()
    if inside == around or inside in around.parents or around in inside.parents:
        raise BundleError(f"{output} and {bundle} lie in one another; choose another place with -o")
    manifest = manifests.read(bundle)
    manifests.check_files(bundle, manifest)
    bundle_encoder(bundle, manifest)  # a tokenizer that cannot be read shows here, not in the server
    choice = choose(bundle, manifest, options.device, options.precision, options.engine)
    with new_directory(output, replace=force) as directory:
        folder = directory / f"{options.name}_model" / VERSION
        folder.mkdir(parents=True)
        _copy(bundle, choice, folder, progress)
        readable = bundle / choice.graph.file if choice.engine else folder / PurePosixPath(choice.graph.file).name
        plan = Plan(options.name, manifest, choice, read_signature(readable))
        _write_graph_model(folder.parent, plan)
        _write_text_model(directory / options.name, bundle, plan)
        report = _report(directory, plan, options)
        (directory / REPORT).write_text(to_json(dataclasses.asdict(report)) + "\n", encoding="utf-8")
        (directory / "README.md").write_text(guide(plan, output), encoding="utf-8")
    return report


def _check(options: Options) -> None:
    for what, given, accepted in (
        ("format", options.format, PACKAGE_FORMATS),
        ("device", options.device, PACKAGE_DEVICES),
        ("precision", options.precision, PACKAGE_PRECISIONS),
    ):
        if given not in accepted:
            raise InputError(f"{what} is {given!r}, expected one of {', '.join(accepted)}")
    if options.engine is not None and options.precision != PACKAGE_PRECISIONS[0]:
        raise InputError(f"precision is {options.precision!r}, and an engine has its own; leave one of the two out")
    if not NAME.fullmatch(options.name):
        raise InputError(f"name is {options.name!r:.100}, expected up to 64 letters, digits, '_', '-' and '.'")


def _copy(bundle: Path, choice: Choice, folder: Path, progress: Progress) -> None:
    """Copy what is run, and hold it to the manifest's hashes.

    Raises:
        BundleError: a file is missing, or not the manifest's.
    """
    wanted = [(part.file, part.sha256) for part in (choice.engine or choice.graph, *choice.weights)]
    for number, (file, digest) in enumerate(wanted):
        progress(number, len(wanted), file)
        target = folder / ("model.plan" if choice.engine else PurePosixPath(file).name)
        if not (bundle / file).is_file():
            raise BundleError(f"{bundle / file} is missing; copy the whole bundle, or export again")
        shutil.copyfile(bundle / file, target)
        if sha256(target) != digest:
            raise BundleError(f"{bundle / file} is not what the manifest says (SHA-256); copy the bundle again")
    progress(len(wanted), len(wanted), "")


def _write_graph_model(folder: Path, plan: Plan) -> None:
    (folder / "config.pbtxt").write_text(graph_config(plan), encoding="utf-8")
    warm_up = folder / "warmup"
    warm_up.mkdir()
    for shape in warm_shapes(plan):
        name, count = warm_up_file(*shape, plan)
        (warm_up / name).write_bytes(struct.pack("<q", 1) * count)  # int64, little-endian


def _write_text_model(folder: Path, bundle: Path, plan: Plan) -> None:
    version = folder / VERSION
    version.mkdir(parents=True)
    (folder / "config.pbtxt").write_text(text_config(plan), encoding="utf-8")
    (version / "model.py").write_text(MODEL_PY, encoding="utf-8")
    (version / FILE_NAME).write_text(_packaged(plan.manifest, plan.choice).to_json(), encoding="utf-8")
    for name in ("tokenizer.json", "config.json"):
        shutil.copyfile(bundle / name, version / name)


def _packaged(manifest: Manifest, choice: Choice) -> Manifest:
    """The manifest of what is run alone: how it answers, and an engine's profiles."""
    graph = manifest.origin(choice.engine) if choice.engine else choice.graph
    return dataclasses.replace(
        manifest,
        weights=(),
        graphs=(graph,) if graph else (),
        engines=(choice.engine,) if choice.engine else (),
        checks=tuple(check for check in manifest.checks if graph and check.what.endswith(f" of {graph.file}")),
    )


def _report(directory: Path, plan: Plan, options: Options) -> PackageReport:
    choice = plan.choice
    return PackageReport(
        format=options.format,
        name=plan.name,
        graph_model=plan.graph_model,
        backend="tensorrt" if choice.engine else "onnxruntime",
        device=choice.device,
        file=choice.file,
        precision=choice.precision,
        sha256=choice.engine.sha256 if choice.engine else choice.graph.sha256,
        bytes=sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()),
        task=plan.manifest.task,
        source=plan.manifest.source.name,
        mbexport=__version__,
    )

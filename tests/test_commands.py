"""The commands as a user types them."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from mbexport import export_onnx
from mbexport import manifest as manifests
from mbexport.cli import main
from tests.checkpoints import ENCODER, EXAMPLE, copy_example, edit_tensors, save_checkpoint
from tests.parity.test_mutations import ignore_the_mask, mutant, replacing


def run(*arguments: object, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


def test_two_commands_with_the_default_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("onnx", EXAMPLE).exit_code == 0
    result = run("predict", "The striker scored twice in the second half of the match.", "Parliament voted on the tax.")
    assert result.exit_code == 0
    labels = [line.split("\t")[0].split()[1] for line in result.stdout.splitlines()]
    assert labels == ["sports", "politics"]


def test_bundle_holds_what_the_contract_lists(example_bundle: Path) -> None:
    raw = json.loads((example_bundle / "mbexport.json").read_text())
    assert raw["schema_version"] == 1
    assert raw["source"]["name"] == "checkpoint"
    assert (raw["task"], raw["pooling"], raw["max_length"]) == ("text-classification", "mean", 8192)
    assert raw["labels"] == ["business", "entertainment", "politics", "sports", "tech"]
    assert [(g["file"], g["dialect"], g["precision"]) for g in raw["graphs"]] == [
        ("onnx/model.onnx", "portable", "fp32"),
        ("onnx/model_ort.onnx", "onnxruntime", "fp32"),
    ]
    for entry in (*raw["graphs"], *raw["weights"]):
        digest = hashlib.sha256((example_bundle / entry["file"]).read_bytes()).hexdigest()
        assert digest == entry["sha256"]
    config = json.loads((example_bundle / "config.json").read_text())
    assert config.pop("transformers.js_config") == {"use_external_data_format": {"model.onnx": 1}}
    assert config == json.loads((EXAMPLE / "config.json").read_text())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (example_bundle / name).read_bytes() == (EXAMPLE / name).read_bytes()


def test_predict_prints_json_lines(example_bundle: Path) -> None:
    result = run("predict", example_bundle, "--json", "Shares of the bank rose.", "")
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["text"] for answer in answers] == ["Shares of the bank rose.", ""]
    assert all(set(answer) == {"text", "label", "score"} for answer in answers)
    assert result.stderr == ""


def test_predict_reads_files_and_standard_input_alike(example_bundle: Path, tmp_path: Path) -> None:
    texts = ["The film won an award.", "naïve 東京 🎉", "Prices rose."] * 100  # more than one chunk
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    from_file = run("predict", example_bundle, "--json", "--file", tmp_path / "texts.txt")
    from_stdin = run("predict", example_bundle, "--json", stdin="\n".join(texts).encode())
    assert from_file.exit_code == from_stdin.exit_code == 0
    assert from_file.stdout == from_stdin.stdout
    assert [json.loads(line)["text"] for line in from_file.stdout.splitlines()] == texts


def test_predict_says_once_that_texts_were_cut(tmp_path: Path) -> None:
    checkpoint = copy_example(tmp_path / "checkpoint")
    path = checkpoint / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 16}))
    export_onnx(checkpoint, tmp_path / "bundle")
    result = run("predict", tmp_path / "bundle", "long " * 50, "short", "long " * 60)
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 3
    assert result.stderr.count("2 of 3 texts had more than 16 tokens") == 1
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "{bundle}", "--file", "none.txt"], "none.txt cannot be read"),
        (["predict", "{bundle}", "--file", "texts.txt", "text"], "give one of them"),
        (["predict", "/"], "is no bundle"),
        (["inspect", "/none"], "is no bundle"),
        (["validate", "{bundle}"], "one of --checkpoint and --against; neither of them is given"),
        (["validate", "{bundle}", "--checkpoint", "{other}", "--against", "{bundle}"], "both of them"),
        (["validate", "{bundle}", "--against", "{bundle}", "--base", "{other}"], "leave it out with --against"),
        (["validate", "/none", "--checkpoint", "{other}"], "/none does not exist: expected a bundle"),
        (["validate", "{bundle}", "--against", "/none"], "/none does not exist: expected a bundle"),
        (["validate", "{bundle}", "--checkpoint", "{other}"], "exported from other weights"),
        (["validate", "{bundle}", "--checkpoint", str(EXAMPLE), "--reference", "flash_attention_2"], "needs a GPU"),
        (["onnx"], "Missing argument 'CHECKPOINT'"),
        (["onnx", "x", "--none"], "No such option"),
        (["none"], "No such command 'none'"),
    ],
)
def test_bad_usage_is_one_line(arguments: list[str], message: str, example_bundle: Path, tiny: Path) -> None:
    result = run(*(a.format(bundle=example_bundle, other=tiny) for a in arguments))
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_standard_input_that_is_not_utf8(example_bundle: Path) -> None:
    result = run("predict", example_bundle, stdin=b"fine\n\xff\xfe\n")
    assert result.exit_code == 2
    assert "standard input is not UTF-8" in result.stderr


def test_validate_passes_and_is_recorded(example_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(example_bundle, tmp_path / "bundle"))
    result = run("validate", bundle, "--checkpoint", EXAMPLE, "--max-length", 300, "--report", tmp_path / "report")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("PASSED: 2 graphs")
    assert "torch's CPU flash kernel" in result.stdout
    checks = manifests.read(bundle).checks
    assert [check.what for check in checks] == ["parity of onnx/model.onnx", "parity of onnx/model_ort.onnx"]
    assert all(check.passed and check.figures["max_error"] <= check.figures["limits"]["max_error"] for check in checks)
    report = json.loads((bundle / "reports" / "parity.json").read_text())
    assert report == json.loads((tmp_path / "report" / "parity.json").read_text())
    for folder in (bundle / "reports", tmp_path / "report"):
        assert "PASSED" in (folder / "parity.html").read_text()
    assert set(report["graphs"][0]["by_padding"]) == {"none", "right", "left", "interleaved"}
    assert "257-512" not in report["graphs"][0]["by_length"] or report["passed"]
    inspected = run("inspect", bundle)
    assert "parity of onnx/model_ort.onnx: passed" in inspected.stdout


def test_validate_takes_texts_and_references(example_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(example_bundle, tmp_path / "bundle"))
    (tmp_path / "texts.csv").write_text("text,label\nRates rose.,business\nThe cup final.,sport\n")
    result = run(
        "validate", bundle, "--checkpoint", EXAMPLE, "--data", tmp_path / "texts.csv", "--reference", "eager",
        "--max-length", 70, "--json",
    )  # fmt: skip
    report = json.loads(result.stdout)
    assert result.exit_code == 0
    assert report["reference"].startswith("eager, float32")
    assert report["texts"] == "2 texts"


def test_validate_of_an_encoder_without_tokenizer(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", architecture=ENCODER)
    export_onnx(checkpoint, tmp_path / "bundle")
    result = run("validate", tmp_path / "bundle", "--checkpoint", checkpoint, "--max-length", 300)
    assert result.exit_code == 0, result.output
    assert "random token ids" in result.stdout


def test_validate_of_weights_saved_under_compile(tmp_path: Path) -> None:
    checkpoint = copy_example(tmp_path / "checkpoint")
    edit_tensors(checkpoint, lambda tensors: {f"_orig_mod.{name}": t for name, t in tensors.items()})
    export_onnx(checkpoint, tmp_path / "bundle")
    assert run("validate", tmp_path / "bundle", "--checkpoint", checkpoint, "--max-length", 70).exit_code == 0


@pytest.mark.parametrize("fault", ["window", "mask", "weights"])
def test_validate_fails_on_a_faulty_graph(fault: str, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    mutant(EXAMPLE, replacing(half_window=63) if fault == "window" else lambda spec: spec, bundle)
    if fault == "mask":
        ignore_the_mask(bundle / "onnx" / "model_ort.onnx")
    if fault == "weights":
        model = onnx.load(bundle / "onnx" / "model.onnx", load_external_data=False)
        tensor = next(t for t in model.graph.initializer if t.name == "layers.2.attn.Wk.weight")
        offset = int(next(entry.value for entry in tensor.external_data if entry.key == "offset"))
        data = np.memmap(bundle / "onnx" / "model.onnx_data", np.float32, "r+")
        data[offset // 4] = np.nan
        data.flush()
    result = run("validate", bundle, "--checkpoint", EXAMPLE, "--max-length", 300)
    assert result.exit_code == 1, result.output
    assert result.stdout.startswith("FAILED")
    assert not manifests.read(bundle).checks[1].passed
    assert manifests.read(bundle).checks[0].passed == (fault == "mask")


def test_inspect(example_bundle: Path) -> None:
    assert json.loads(run("inspect", example_bundle, "--json").stdout)["task"] == "text-classification"
    shown = run("inspect", example_bundle).stdout
    for fact in (
        "business, entertainment", "softmax", "mean", "8192 tokens", "onnx/model_ort.onnx: fp32", "15.3 MB",
        "6 layers, hidden size 192, 3 heads of 64", "GllGll (G global, l local to 64 tokens on either side)",
        "global default, theta 160000; local default, theta 10000",
    ):  # fmt: skip
        assert fact in shown


def test_real_process_with_a_closed_pipe(example_bundle: Path) -> None:
    """`mbexport predict ... | head -1` ends quietly."""
    texts = "\n".join(["Prices rose."] * 2000)
    command = f"{sys.executable} -m mbexport predict {example_bundle} --json | head -1"
    result = subprocess.run(command, shell=True, input=texts, capture_output=True, text=True, check=False)  # noqa: S602
    assert json.loads(result.stdout)["text"] == "Prices rose."
    assert "Traceback" not in result.stderr


def test_inspect_verifies_every_file(example_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(example_bundle, tmp_path / "bundle"))
    held = run("inspect", bundle, "--verify", "--json")
    assert (held.exit_code, json.loads(held.stdout)["task"]) == (0, "text-classification")
    assert "all files are as the manifest says" in held.stderr
    with (bundle / "onnx" / "model.onnx_data").open("r+b") as weights:
        weights.seek(10_000)
        byte = weights.read(1)
        weights.seek(10_000)
        weights.write(bytes([byte[0] ^ 1]))  # a single bit; the size stays
    (bundle / "onnx" / "model_ort.onnx").unlink()
    result = run("inspect", bundle, "--verify")
    assert result.exit_code == 1
    assert "onnx/model_ort.onnx: missing\n" in result.stderr
    assert "onnx/model.onnx_data: its SHA-256 is " in result.stderr
    assert "onnx/model.onnx:" not in result.stderr
    assert run("inspect", bundle).exit_code == 0  # who does not ask is told what the manifest says


@pytest.mark.parametrize("command", ["onnx", "trt", "validate", "bench", "predict", "inspect"])
def test_help(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "--quiet" in result.stdout


def test_text_too_long_to_be_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("onnx", EXAMPLE).exit_code == 0
    result = run("predict", "The striker scored twice in the match. " * 40)
    assert result.exit_code == 0, result.output
    assert " sports\t" in result.stdout


def test_no_command_shows_the_help() -> None:
    result = run()
    assert result.exit_code == 0
    assert "validate" in result.stdout


def test_checkpoint_inside_the_bundle_that_would_be_replaced(tmp_path: Path) -> None:
    export_onnx(EXAMPLE, tmp_path / "bundle")
    copy_example(tmp_path / "bundle" / "checkpoint")
    result = run("onnx", tmp_path / "bundle" / "checkpoint", "-o", tmp_path / "bundle", "--force")
    assert result.exit_code == 2
    assert "lies inside" in result.stderr
    assert (tmp_path / "bundle" / "checkpoint" / "config.json").is_file()


def test_report_that_cannot_be_written_is_told_in_one_line(example_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    result = run("validate", example_bundle, "--checkpoint", EXAMPLE, "--report", tmp_path / "file" / "x")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [f"mbexport: error: {tmp_path / 'file' / 'x'}: Not a directory"]


def test_short_inputs_are_named_for_what_they_cannot_show(example_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(example_bundle, tmp_path / "bundle"))
    result = run("validate", bundle, "--checkpoint", EXAMPLE, "--max-length", 64)
    assert "a lost window cannot be seen" in result.stderr
    assert manifests.read(bundle).checks[0].figures["longest"] == 64


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def test_figures_that_are_not_finite_are_still_json(tmp_path: Path) -> None:
    bundle = mutant(EXAMPLE, lambda spec: spec, tmp_path / "bundle")
    data = np.memmap(bundle / "onnx" / "model.onnx_data", np.float32, "r+")
    data[-(6 * 10**5) : -(5 * 10**5)] = np.nan  # rotary tables
    data.flush()
    result = run("validate", bundle, "--checkpoint", EXAMPLE, "--max-length", 130, "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout, parse_constant=refuse)
    assert report["graphs"][0]["overall"]["max_error"] == "inf"
    json.loads((bundle / "mbexport.json").read_text(), parse_constant=refuse)


def test_tokenizer_of_a_larger_vocabulary(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint")  # 512 rows of embedding, 5,000 tokens
    shutil.copy(EXAMPLE / "tokenizer.json", checkpoint)
    exported = run("onnx", checkpoint, "-o", tmp_path / "bundle")
    assert exported.exit_code == 0
    assert "has ids up to 4999, the embedding 512 rows" in exported.stderr
    predicted = run("predict", tmp_path / "bundle", "The central bank raised its rate.")
    assert (predicted.exit_code, len(predicted.stderr.splitlines())) == (2, 1)
    validated = run("validate", tmp_path / "bundle", "--checkpoint", checkpoint)
    assert (validated.exit_code, len(validated.stderr.splitlines())) == (2, 1)


def test_tokenizer_without_special_tokens(tmp_path: Path) -> None:
    checkpoint = copy_example(tmp_path / "checkpoint")
    path = checkpoint / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": None}))
    export_onnx(checkpoint, tmp_path / "bundle")
    predicted = run("predict", tmp_path / "bundle", "fine", "")
    assert predicted.exit_code == 2
    assert "text 1 has no tokens" in predicted.stderr
    validated = run("validate", tmp_path / "bundle", "--checkpoint", checkpoint, "--max-length", 70)
    assert validated.exit_code == 0, validated.output


def test_control_characters_do_not_reach_the_terminal(example_bundle: Path) -> None:
    result = run("predict", example_bundle, "a\x1b[31mred\x07")
    assert "\x1b" not in result.stdout
    assert "\x07" not in result.stdout


def test_config_that_transformers_refuses_is_one_line(tmp_path: Path) -> None:
    checkpoint = copy_example(tmp_path / "checkpoint")
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bos_token_id": "x"}))
    export_onnx(checkpoint, tmp_path / "bundle")
    result = run("validate", tmp_path / "bundle", "--checkpoint", checkpoint)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "cannot load the checkpoint" in result.stderr

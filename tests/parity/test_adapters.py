"""LoRA adapters against PEFT itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from peft import LoraConfig, PeftModel, get_peft_model

from mbexport import export_onnx
from mbexport.checkpoint.load import load_checkpoint
from mbexport.cli import main
from mbexport.errors import CheckpointError
from tests.checkpoints import ENCODER, save_checkpoint, torch_model, torch_output
from tests.inputs import GRAPHS, allowed_error, error, padded_batch, run_graph

KINDS: dict[str, dict[str, Any]] = {
    "all projections": {},
    "attention only": {"target_modules": ["Wqkv"]},
    "rank-stabilised": {"use_rslora": True},
    "ranks and alphas by module": {"rank_pattern": {"mlp.Wo": 2}, "alpha_pattern": {r"layers\.1\.attn\.Wo": 32}},
    "the head saved whole": {"modules_to_save": ["classifier", "head"]},
}


def save_adapter(directory: Path, base: Path, task: str | None = "SEQ_CLS", **settings: Any) -> Path:
    """A trained-looking adapter: neither factor is zero, and saved modules differ from the base's."""
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["Wqkv", "Wo", "Wi"], "task_type": task} | settings
    torch.manual_seed(7)
    model = get_peft_model(torch_model(base), LoraConfig(**config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_(0, 0.2)
    model.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("kind", KINDS)
def test_merge_equals_pefts(
    kind: str, tiny: Path, tmp_path: Path, record_parity: Callable[[str, str, float], None]
) -> None:
    adapter = save_adapter(tmp_path / "adapter", tiny, **KINDS[kind])
    manifest = export_onnx(adapter, tmp_path / "bundle")
    assert any("merged into checkpoint" in note for note in manifest.notes)
    adapted = PeftModel.from_pretrained(torch_model(tiny), adapter).eval()
    ids, mask = padded_batch(300, vocabulary=512)
    unmerged = torch_output(adapted, ids, mask)
    merged = adapted.merge_and_unload()
    state = {name.removeprefix("model."): tensor.numpy() for name, tensor in merged.state_dict().items()}
    checkpoint = load_checkpoint(adapter)
    for name, array in checkpoint.weights.read(checkpoint.weights.names()):
        assert np.abs(array - state[name]).max() <= 1e-6, name
    plain = torch_output(torch_model(tiny), ids, mask)
    for graph in GRAPHS:
        found = run_graph(tmp_path / "bundle", graph, ids, mask)
        assert error(found, unmerged, mask) <= allowed_error(unmerged)
        record_parity("LoRA adapter", kind, error(found, unmerged, mask) / float(np.ptp(unmerged)))
        assert error(found, plain, mask) > 100 * allowed_error(unmerged)  # the control: the base alone


def test_adapter_of_a_bare_encoder(tmp_path: Path) -> None:
    base = save_checkpoint(tmp_path / "base", architecture=ENCODER)
    adapter = save_adapter(tmp_path / "adapter", base, task="FEATURE_EXTRACTION")
    export_onnx(adapter, tmp_path / "bundle")
    ids, mask = padded_batch(129, vocabulary=512)
    expected = torch_output(PeftModel.from_pretrained(torch_model(base), adapter).eval(), ids, mask)
    for graph in GRAPHS:
        assert error(run_graph(tmp_path / "bundle", graph, ids, mask), expected, mask) <= allowed_error(expected)


def test_classifier_trained_on_a_masked_lm(tmp_path: Path) -> None:
    """The usual case: the base is the pre-trained masked LM, the adapter brings the classifier."""
    from transformers import ModernBertForSequenceClassification

    base = save_checkpoint(tmp_path / "base", architecture="ModernBertForMaskedLM")
    model = ModernBertForSequenceClassification.from_pretrained(base, num_labels=4, attn_implementation="eager")
    adapted = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["Wqkv"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
    adapted.save_pretrained(tmp_path / "adapter")
    manifest = export_onnx(tmp_path / "adapter", tmp_path / "bundle")
    assert manifest.task == "text-classification"
    assert manifest.labels == ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")
    config = json.loads((tmp_path / "bundle" / "config.json").read_text())
    assert config["architectures"] == ["ModernBertForSequenceClassification"]
    ids, mask = padded_batch(129, vocabulary=512)
    expected = torch_output(adapted.eval(), ids, mask)
    assert expected.shape == (4, 4)
    for graph in GRAPHS:
        assert error(run_graph(tmp_path / "bundle", graph, ids, mask), expected, mask) <= allowed_error(expected)


def adapter_on_a_masked_lm(tmp_path: Path, task: str | None, modules: list[str], architecture: str) -> Path:
    import transformers

    base = save_checkpoint(tmp_path / "base", architecture="ModernBertForMaskedLM")
    model = getattr(transformers, architecture).from_pretrained(base, attn_implementation="eager")
    config = LoraConfig(task_type=task, r=2, target_modules=["Wqkv"], modules_to_save=modules)
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_head_that_the_task_would_lose_is_refused(tmp_path: Path) -> None:
    adapter = adapter_on_a_masked_lm(tmp_path, None, ["classifier"], "ModernBertForSequenceClassification")
    with pytest.raises(CheckpointError, match=r"brings classifier\.bias, classifier\.weight, which the model's task"):
        export_onnx(adapter, tmp_path / "bundle")


def test_task_type_is_stronger_than_a_config_beside_the_adapter(tmp_path: Path) -> None:
    adapter = adapter_on_a_masked_lm(tmp_path, "SEQ_CLS", ["classifier"], "ModernBertForSequenceClassification")
    (adapter / "config.json").write_text((tmp_path / "base" / "config.json").read_text())
    assert export_onnx(adapter, tmp_path / "bundle").task == "text-classification"


@pytest.mark.parametrize("module", ["decoder", "tok_embeddings"])
def test_adapter_that_unties_the_decoder_is_refused(module: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    adapter = adapter_on_a_masked_lm(tmp_path, None, [module], "ModernBertForMaskedLM")
    path = adapter / "adapter_model.safetensors"
    save_file({name: tensor + (module in name) for name, tensor in load_file(path).items()}, path)
    with pytest.raises(CheckpointError, match=r"tied|ties"):
        export_onnx(adapter, tmp_path / "bundle")


def test_adapter_of_a_sentence_pipeline_keeps_the_pipeline(tmp_path: Path) -> None:
    from tests.parity.test_sentences import PIPELINES, save_pipeline

    pipeline = save_pipeline(tmp_path, *PIPELINES["dense"]())
    adapter = save_adapter(tmp_path / "adapter", pipeline, task="FEATURE_EXTRACTION")
    manifest = export_onnx(adapter, tmp_path / "bundle")
    assert manifest.sentence is not None
    assert manifest.sentence.normalized
    assert (tmp_path / "bundle" / "1_Pooling" / "config.json").is_file()


def test_validate_an_adapter(tiny: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", tiny)
    export_onnx(adapter, tmp_path / "bundle")
    command = ["validate", str(tmp_path / "bundle"), "--max-length", "129", "--checkpoint"]
    assert CliRunner().invoke(main, [*command, str(adapter)]).exit_code == 0
    assert CliRunner().invoke(main, [*command, str(tiny)]).exit_code == 2  # the base's weights are others


def test_base_given_on_the_command_line(tiny: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", tiny)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "someone/on-a-hub"}))
    with pytest.raises(CheckpointError, match=r"'someone/on-a-hub', which is no directory here; give it: --base"):
        export_onnx(adapter, tmp_path / "bundle")
    command = ["onnx", str(adapter), "-o", str(tmp_path / "bundle"), "--base", str(tiny)]
    assert CliRunner().invoke(main, command).exit_code == 0
    with pytest.raises(CheckpointError, match="is no adapter"):
        export_onnx(tiny, tmp_path / "other", base=tiny)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another kind": ({"peft_type": "IA3"}, "peft_type is 'IA3', expected 'LORA'"),
    "DoRA": ({"use_dora": True}, "use_dora is True"),
    "biases": ({"bias": "all"}, "bias is 'all'"),
    "a base that was changed": ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
    "an unknown task": ({"task_type": "CAUSAL_LM"}, "task_type is 'CAUSAL_LM'"),
    "a pattern that is none": ({"alpha_pattern": {"(": 3}}, "alpha_pattern has '(', no regular expression"),
    "patterns that are a list": ({"alpha_pattern": ["Wo"]}, "alpha_pattern is ['Wo'], expected an object"),
    "alpha that is no number": ({"lora_alpha": "8"}, "lora_alpha of"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str, tiny: Path, tmp_path: Path) -> None:
    changes, message = REFUSED[name]
    adapter = save_adapter(tmp_path / "adapter", tiny)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError) as raised:
        export_onnx(adapter, tmp_path / "bundle")
    assert message in str(raised.value)


@pytest.mark.parametrize("fault", ["unknown tensor", "unknown module", "half a pair", "wrong shape", "missing"])
def test_tensors_that_do_not_fit(fault: str, tiny: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    adapter = save_adapter(tmp_path / "adapter", tiny)
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    module = "base_model.model.model.layers.1.attn.Wo"
    message = {
        "unknown tensor": "lora_magnitude_vector",
        "unknown module": "changes layers.9.attn.Wo.weight, which the base model does not have",
        "half a pair": "lora_A and lora_B of model.layers.1.attn.Wo do not fit",
        "wrong shape": r"the change to layers.1.attn.Wo.weight has shape \[64, 32\]",
        "missing": "adapter_model.safetensors is missing",
    }[fault]
    if fault == "unknown tensor":
        tensors[f"{module}.lora_magnitude_vector"] = torch.ones(64)
    elif fault == "unknown module":
        for part in "AB":
            name = f"{module}.lora_{part}.weight"
            tensors[name.replace("layers.1", "layers.9")] = tensors[name].clone()
    elif fault == "half a pair":
        del tensors[f"{module}.lora_B.weight"]
    elif fault == "wrong shape":
        tensors[f"{module}.lora_A.weight"] = torch.ones(4, 32)
    save_file(tensors, path)
    if fault == "missing":
        path.unlink()
    with pytest.raises(CheckpointError, match=message):
        export_onnx(adapter, tmp_path / "bundle")

"""Valid files of a few kB to begin from: checkpoints of every form, and their bundles. Needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from mbexport import export_onnx
from mbexport.checkpoint.load import load_checkpoint
from mbexport.checkpoint.spec import parse_config
from mbexport.checkpoint.weights import expected_tensors

CONFIG: dict[str, Any] = {
    "model_type": "modernbert", "vocab_size": 40, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2,
    "num_attention_heads": 1, "max_position_embeddings": 64, "local_attention": 8, "global_attn_every_n_layers": 2,
    "id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}, "pad_token_id": 3,
    "problem_type": "single_label_classification", "hidden_activation": "gelu", "norm_eps": 1e-5, "norm_bias": False,
    "global_rope_theta": 160000.0, "local_rope_theta": 10000.0, "classifier_pooling": "mean", "sliding_window": 4,
}  # fmt: skip
# The keys of the newer generation, and some of other tools'.
NEWER: dict[str, Any] = {
    "layer_types": ["full_attention", "sliding_attention"], "tie_word_embeddings": True, "num_labels": 2,
    "rope_parameters": {
        "full_attention": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 160000.0, "beta_fast": 32},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "classifier_activation": "gelu", "attention_bias": False, "mlp_bias": False, "is_decoder": False,
    "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"},
}  # fmt: skip
WORDS = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "a", "b", "ab", "##b", "c", ".")
ARCHITECTURES = {
    "text-classification": "ModernBertForSequenceClassification",
    "token-classification": "ModernBertForTokenClassification",
    "question-answering": "ModernBertForQuestionAnswering",
    "multiple-choice": "ModernBertForMultipleChoice",
    "fill-mask": "ModernBertForMaskedLM",
    "feature-extraction": "ModernBertModel",
}
BOMB = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}
TOKENIZER_PARTS: tuple[Any, ...] = (
    BOMB,
    {"type": "Sequence", "normalizers": [BOMB] * 6},
    {"type": "Prepend", "prepend": "a" * 10**6},
    {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"},
    {"type": "Strip", "strip_left": True},
    {"type": "Replace", "pattern": {"Regex": ""}, "content": "aa"},
    {"type": "Replace", "pattern": {"String": ""}, "content": "a"},
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    {"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8="},
    {"type": "Precompiled", "precompiled_charsmap": "/////wAAAAA="},
    {"type": "ByteLevel"},
    {"type": "Nmt"},
    {"type": "NFKD"},
    {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": True,
    },
    {"type": "Split", "pattern": {"Regex": "(a|a)*$"}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"Regex": ""}, "behavior": "MergedWithPrevious", "invert": True},
    {"type": "Split", "pattern": {"String": ""}, "behavior": "Removed", "invert": False},
    {"type": "FixedLength", "length": 0},
    {"type": "FixedLength", "length": 2**63},
    {"type": "Punctuation", "behavior": "Contiguous"},
    {"type": "Digits", "individual_digits": True},
    {"type": "CharDelimiterSplit", "delimiter": "a"},
    {"type": "UnicodeScripts"},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
    {"type": "Whitespace"},
    {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}],
        "pair": [],
        "special_tokens": {},
    },
    {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 9,
        "pair": [],
        "special_tokens": {},
    },
    {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "B", "type_id": 0}}],
        "pair": [],
        "special_tokens": {},
    },
    {
        "type": "RobertaProcessing",
        "sep": ["x", 2**32 - 1],
        "cls": ["y", 0],
        "trim_offsets": True,
        "add_prefix_space": True,
    },
    {"type": "BertProcessing", "sep": ["x", 1], "cls": ["y", 0]},
    {"type": "ByteLevel", "use_regex": False},
    {"type": "Sequence", "processors": []},
    {"type": "Sequence", "pretokenizers": []},
    {"type": "Sequence", "decoders": []},
    {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"], "continuing_subword_prefix": "##"},
    {
        "type": "BPE",
        "vocab": {"a": 0},
        "merges": [],
        "unk_token": "b",
        "fuse_unk": True,
        "byte_fallback": True,
        "dropout": 1.0,
    },
    {"type": "Unigram", "unk_id": None, "vocab": [["a", -1.0], ["", 0.0]], "byte_fallback": True},
    {"type": "Unigram", "unk_id": 0, "vocab": [["a", -1e308], ["aa", 1e308]]},
    {"type": "WordLevel", "vocab": {"a": 2**32 - 1}},
    {
        "type": "WordPiece",
        "vocab": {"a": 0},
        "max_input_chars_per_word": 2**63,
        "continuing_subword_prefix": "",
        "unk_token": "a",
    },
    {"id": 2**32 - 1, "content": "a", "special": True},
    {"id": 5, "content": "", "special": False},
    {"String": "a"},
    {"Regex": "a*"},
    {"id": 5, "content": " ", "single_word": True, "lstrip": True, "rstrip": True, "normalized": True, "special": True},
    {"type": "WordPiece", "prefix": "", "cleanup": True},
    {"type": "CTC", "pad_token": "", "word_delimiter_token": ""},
    {"type": "Fuse"},
    {"type": "ByteFallback"},
    {"type": "Strip", "content": "a", "start": 2**63, "stop": 2**63},
    {"direction": "Left", "max_length": 2**63, "strategy": "OnlyFirst", "stride": 2**63},
    {"Fixed": 2**40},
    "BatchLongest",
    {
        "strategy": {"Fixed": 2**40},
        "direction": "Left",
        "pad_to_multiple_of": 0,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "a",
    },
)
DENSE = {"in_features": 8, "out_features": 4, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}
ADAPTER = {
    "peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": "../text-classification", "bias": "none",
    "lora_alpha": 16, "r": 2, "use_rslora": False, "alpha_pattern": {"layers.1.attn.Wqkv": 8}, "use_dora": False,
    "init_lora_weights": True, "modules_to_save": ["classifier"],
}  # fmt: skip
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
    {"idx": 3, "name": "3", "path": "3_Normalize", "type": "sentence_transformers.models.Normalize"},
]


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def make_tokenizers() -> dict[str, Tokenizer]:
    """Small ones of every kind of model, with every part that a tokenizer.json may have."""
    numbers = {word: number for number, word in enumerate(WORDS)}
    special = [(word, numbers[word]) for word in ("[CLS]", "[SEP]")]
    pieces = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    pieces.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace("~", " ")])
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    pieces.add_special_tokens(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"])
    pieces.enable_truncation(16)
    pieces.enable_padding(pad_id=3, pad_token="[PAD]")
    pairs = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, "Ġ": 3, "<s>": 4}, [("a", "b")], unk_token="<s>"))
    pairs.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pre_tokenizers_pattern(), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    pairs.post_processor = processors.RobertaProcessing(("<s>", 4), ("<s>", 4))
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁", -1.0), ("a", -1.5), ("ab", -2.0), ("b", -3.0)], 0, False))
    unigram.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.NFKC(), normalizers.Lowercase()])
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    words = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return {"pieces": pieces, "pairs": pairs, "unigram": unigram, "words": words}


def pre_tokenizers_pattern() -> Any:
    from tokenizers import Regex

    return Regex(r"\s+|[^\s]+")


def _tensors(config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    spec, _ = parse_config(config, None)
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in expected_tensors(spec).items()}


def _plain(folder: Path, task: str) -> Path:
    config = CONFIG | {"architectures": [ARCHITECTURES[task]]}
    write_json(folder / "config.json", config)
    save_file(_tensors(config, seed=0), folder / "model.safetensors")
    make_tokenizers()["pieces"].save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"model_max_length": 32, "mask_token": "[MASK]"})
    write_json(folder / "special_tokens_map.json", {"mask_token": {"content": "[MASK]", "lstrip": True}})
    return folder


def _sharded(folder: Path) -> None:
    _plain(folder, "text-classification")
    tensors = _tensors(CONFIG | {"architectures": [ARCHITECTURES["text-classification"]]}, seed=0)
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    index = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": 1}, "weight_map": index})


def _adapter(folder: Path) -> None:
    rng = np.random.default_rng(1)
    write_json(folder / "adapter_config.json", ADAPTER)
    target = "base_model.model.model.layers.1.attn.Wqkv"
    tensors = {f"{target}.lora_A.weight": (2, 8), f"{target}.lora_B.weight": (24, 2)}
    tensors |= {"base_model.model.classifier.weight": (2, 8), "base_model.model.classifier.bias": (2,)}
    save_file(
        {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in tensors.items()},
        folder / "adapter_model.safetensors",
    )


def _sentence(folder: Path) -> None:
    _plain(folder, "feature-extraction")
    write_json(folder / "modules.json", MODULES)
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True, "include_prompt": True})
    write_json(folder / "2_Dense" / "config.json", DENSE)
    rng = np.random.default_rng(2)
    shapes = {"linear.weight": (4, 8), "linear.bias": (4,)}
    save_file(
        {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()},
        folder / "2_Dense" / "model.safetensors",
    )
    settings = {"prompts": {"query": "a ", "document": ""}, "default_prompt_name": "query", "truncate_dim": 3}
    write_json(folder / "config_sentence_transformers.json", settings)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 32, "do_lower_case": False})


def build(folder: Path) -> Path:
    """Checkpoints, by task or by form, below ``checkpoints``; their bundles below ``bundles``.

    The bundle of text classification also has what ``mbexport int8`` writes of a calibration.
    """
    checkpoints, bundles = folder / "checkpoints", folder / "bundles"
    for task in ARCHITECTURES:
        _plain(checkpoints / task, task)
    _sharded(checkpoints / "sharded")
    _adapter(checkpoints / "adapter")
    _sentence(checkpoints / "sentence")
    for checkpoint in sorted(checkpoints.iterdir()):
        load_checkpoint(checkpoint)
    for name in (*ARCHITECTURES, "sentence"):
        export_onnx(checkpoints / name, bundles / name)
    return folder

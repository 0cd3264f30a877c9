"""Models of the same architecture with other tokenizers and other sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from mbexport import export_onnx
from mbexport.runtime import load
from tests.checkpoints import save_checkpoint, torch_model, torch_output
from tests.inputs import GRAPHS, allowed_error, error, padded_batch, run_graph

CORPUS = ["The striker scored twice in the final minutes.", "naïve café 東京 🎉", "Rates rose on Thursday."] * 20
TEXTS = ["The striker rose.", "", "naïve 東京 🎉 unknown ☃", "Rates " * 50]


def sentencepiece_tokenizer() -> Tokenizer:
    """A unigram model with ▁ for blanks, as SentencePiece tokenizers look when converted."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


def test_sentencepiece_tokenizer_and_entities(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    checkpoint = save_checkpoint(tmp_path / "checkpoint", architecture="ModernBertForTokenClassification")
    tokenizer = sentencepiece_tokenizer()
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    export_onnx(checkpoint, tmp_path / "bundle")
    model, reference = load(tmp_path / "bundle"), torch_model(checkpoint)
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    for text, output, answer in zip(TEXTS, model.outputs(TEXTS), model(TEXTS), strict=True):
        inputs = theirs(text, return_tensors="np")
        expected = torch_output(reference, inputs["input_ids"], inputs["attention_mask"])[0]
        assert np.abs(output["logits"] - expected).max() <= allowed_error(expected)
        for entity in answer:
            assert text[entity["start"] : entity["end"]] == entity["word"] != ""


@pytest.mark.parametrize(
    "config",
    [
        {"vocab_size": 262_144},
        {"hidden_size": 96, "num_attention_heads": 8, "intermediate_size": 33},
        {"num_hidden_layers": 7, "global_attn_every_n_layers": 2},
        {"max_position_embeddings": 257, "local_attention": 100},
    ],
    ids=["vocabulary of 256K", "heads of 12", "every second layer global", "short, window of 100"],
)
def test_other_sizes(config: dict[str, int], tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", **config)
    export_onnx(checkpoint, tmp_path / "bundle")
    model = torch_model(checkpoint)
    for length in (66, 257):
        ids, mask = padded_batch(length, config.get("vocab_size", 512))
        expected = torch_output(model, ids, mask)
        for graph in GRAPHS:
            assert error(run_graph(tmp_path / "bundle", graph, ids, mask), expected, mask) <= allowed_error(expected)


def test_tables_are_stored_once_and_no_longer_than_needed(tmp_path: Path) -> None:
    """Two kinds of layers, a cosine and a sine table each, max_position_embeddings rows."""
    sizes = []
    for positions in (512, 1024):
        export_onnx(
            save_checkpoint(
                tmp_path / f"{positions}-checkpoint", max_position_embeddings=positions, num_hidden_layers=6
            ),
            tmp_path / str(positions),
        )
        sizes.append((tmp_path / str(positions) / "onnx" / "model.onnx_data").stat().st_size)
    assert sizes[1] - sizes[0] == 4 * 512 * (16 // 2) * 4

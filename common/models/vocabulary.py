"""A small BERT for people and tests without weights: its vocabulary is learned from the titles.

The sizes are those of Turc et al., "Well-read students learn better", arXiv 1908.08962, 2019.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MINIATURES = {"bert_tiny": (2, 128), "bert_mini": (4, 256), "bert_small": (4, 512)}  # layers, width


def miniature(name: str, tokenizer: Tokenizer) -> Any:
    """The transformers config of one of `MINIATURES` for a vocabulary."""
    from transformers import BertConfig

    layers, width = MINIATURES[name]
    return BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        pad_token_id=SPECIAL.index("[PAD]"),
    )


def train_tokenizer(
    titles: Sequence[str] | np.ndarray, *, size: int = 8000, letters: int = 1000
) -> Tokenizer:
    """A WordPiece tokenizer with BERT's rules, lower case and without accents.

    The same titles give the same one, in any order and process, so that a training that goes on
    finds its own words again.

    Args:
        titles: what to learn from.
        size: entries of the vocabulary, special tokens included.
        letters: different letters at most; words with a rarer one become [UNK].
    """
    texts = sorted(titles.tolist() if isinstance(titles, np.ndarray) else titles)
    learner = _plain(models.WordPiece(unk_token="[UNK]"))
    counts = Counter(
        letter
        for text in texts
        for word, _ in learner.pre_tokenizer.pre_tokenize_str(
            learner.normalizer.normalize_str(text)
        )
        for letter in word
    )
    alphabet = sorted(counts, key=lambda letter: (-counts[letter], letter))[:letters]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=2,
        # The trainer numbers letters inside words in the order of a hash table, by which it then
        # decides between pieces that are equally frequent; as special tokens they come first.
        special_tokens=[*SPECIAL, *(f"##{letter}" for letter in alphabet)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    # Anew from the vocabulary: there a title that says [SEP] says a word like any other.
    tokenizer = _plain(models.WordPiece(vocab=learner.get_vocab(), unk_token="[UNK]"))
    cls, sep = (SPECIAL.index(token) for token in ("[CLS]", "[SEP]"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", cls), ("[SEP]", sep)]
    )
    return tokenizer


def _plain(model: models.Model) -> Tokenizer:
    """A tokenizer with BERT's rules of what a word is."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer

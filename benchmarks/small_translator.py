"""Writes a small T5 with random weights and a vocabulary of the given parallel files: a folder to train from scratch.

    python benchmarks/small_translator.py FOLDER FILE [FILE ...]

The vocabulary is one byte-level BPE over all files (plain or gzip), source and target language together.
"""

import argparse
import gzip
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, T5Config

SPECIAL = ["<pad>", "</s>", "<unk>"]


def main(argv: list[str]) -> int:
    """Write the folder: config.json and the tokenizer's files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--vocab_size", type=int, default=8000)
    asked = parser.parse_args(argv)
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=asked.vocab_size, special_tokens=SPECIAL, initial_alphabet=alphabet)
    bpe.train_from_iterator(_lines(asked.files), trainer)
    bpe.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    tokenizer.save_pretrained(asked.folder)
    T5Config(
        vocab_size=len(tokenizer),
        d_model=256,
        d_kv=32,
        num_heads=8,
        d_ff=768,
        num_layers=3,
        num_decoder_layers=3,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.1,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    ).save_pretrained(asked.folder)
    return 0


def _lines(files: list[Path]) -> Iterator[str]:
    for path in files:
        opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8")
        with opened as file:
            yield from (line.strip() for line in file)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

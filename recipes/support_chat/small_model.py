"""Writes a small Llama with random weights, and a vocabulary of the documents and questions: a start that needs no hub.

    python recipes/support_chat/small_model.py FOLDER [--seed N]

It has never read anything. For answers that are worth reading, start from a pretrained model (README.md).
"""

import argparse
import sys
from pathlib import Path

from passages import read_documents
from prompt import SYSTEM
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from training_rows import read_questions

from onecurve.errors import UserError
from onecurve.machine import files
from onecurve.machine.log_noise import hush_transformers

HERE = Path(__file__).parent
SPECIAL = ["<|pad|>", "<|im_start|>", "<|im_end|>"]


def main(argv: list[str]) -> int:
    """Write the folder: weights, config, the tokenizer and its chat template."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=HERE / "data")
    parser.add_argument("--documents", type=Path, default=HERE / "documents")
    parser.add_argument("--vocab_size", type=int, default=1500)
    parser.add_argument("--layers", type=int, default=2)
    asked = parser.parse_args(argv)
    try:
        write_model(asked)
    except UserError as error:
        print(f"small_model.py: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def write_model(asked: argparse.Namespace) -> None:
    """Build the vocabulary and draw the weights."""
    hush_transformers()
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    texts = [SYSTEM, *(passage.whole for passage in read_documents(asked.documents))]
    for row in read_questions(asked.data / "questions-train.jsonl", "answer"):
        texts += [row["question"], row["answer"]]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=asked.vocab_size, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<|pad|>", eos_token="<|im_end|>", model_max_length=2048
    )
    template = files.root() / "recipes" / "tiny-llama" / "chat_template.jinja"
    tokenizer.chat_template = template.read_text(encoding="utf-8")
    tokenizer.save_pretrained(asked.folder)
    torch.manual_seed(asked.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=asked.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(asked.folder)
    print(f"{model.num_parameters():,} random weights, {len(tokenizer):,} tokens: {asked.folder}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

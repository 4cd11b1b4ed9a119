"""Tiny encoder-decoders as translation models ship, of random weights: mBART, M2M100, NLLB, Marian and BART."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

CORPUS = (
    "the dog sleeps in the sun and the fox jumps over it",
    "der Hund schläft in der Sonne und der Fuchs springt über ihn",
)
SIZES = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
}
WORDS = sorted({f"▁{word}" for line in CORPUS for word in line.split()})
LETTERS = sorted({letter for line in CORPUS for letter in f"{line}▁" if letter != " "})
WRITTEN = ["de_DE", "__de__", "deu_Latn"]
"""Of the special tokens, what is written besides the end: the vocabulary is small, and most of it are languages."""
NAMED = ["<s>", "<pad>", "</s>", "<unk>"]


def _pieces(folder: Path, name: str) -> list[str]:
    """Train a sentencepiece model and return its pieces."""
    import sentencepiece

    (folder / "corpus").write_text("\n".join(CORPUS * 4))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus"),
        model_prefix=str(folder / name),
        vocab_size=50,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / f"{name}.model").rename(folder / name)
    model = sentencepiece.SentencePieceProcessor(str(folder / name))
    return [model.id_to_piece(number) for number in range(len(model))]


def _mbart(folder: Path) -> tuple[Any, Any, Any]:
    from transformers import MBartConfig, MBartForConditionalGeneration, MBartTokenizer
    from transformers.models.mbart.tokenization_mbart import FAIRSEQ_LANGUAGE_CODES

    known = [*NAMED, *WORDS, *LETTERS, *FAIRSEQ_LANGUAGE_CODES, "<mask>"]
    tokenizer = MBartTokenizer(vocab=[(piece, -1.0 - len(piece) / 9) for piece in known])
    return tokenizer, MBartConfig, MBartForConditionalGeneration


def _mbart_50(folder: Path) -> tuple[Any, Any, Any]:
    from transformers import MBart50Tokenizer, MBartConfig, MBartForConditionalGeneration

    pieces = [(piece, -1.0) for piece in ["<unk>", "<s>", "</s>", *WORDS, *LETTERS]]
    return MBart50Tokenizer(vocab=pieces), MBartConfig, MBartForConditionalGeneration


def _m2m100(folder: Path) -> tuple[Any, Any, Any]:
    from transformers import M2M100Config, M2M100ForConditionalGeneration, M2M100Tokenizer

    pieces = dict.fromkeys([*NAMED, *_pieces(folder, "sentencepiece.bpe.model")])
    (folder / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
    tokenizer = M2M100Tokenizer(str(folder / "vocab.json"), str(folder / "sentencepiece.bpe.model"))
    return tokenizer, M2M100Config, M2M100ForConditionalGeneration


def _nllb(folder: Path) -> tuple[Any, Any, Any]:
    from transformers import M2M100Config, M2M100ForConditionalGeneration, NllbTokenizer

    known = {piece: number for number, piece in enumerate([*NAMED, *LETTERS])}
    return NllbTokenizer(vocab=known, merges=[]), M2M100Config, M2M100ForConditionalGeneration


def _marian(folder: Path) -> tuple[Any, Any, Any]:
    from transformers import MarianConfig, MarianMTModel, MarianTokenizer

    pieces = dict.fromkeys(["</s>", "<unk>", *_pieces(folder, "source.spm"), *_pieces(folder, "target.spm"), "<pad>"])
    (folder / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
    files = [str(folder / name) for name in ("source.spm", "target.spm", "vocab.json")]
    return MarianTokenizer(*files, source_lang="en", target_lang="de"), MarianConfig, MarianMTModel


def _bart(folder: Path) -> tuple[Any, Any, Any]:
    from transformers import BartConfig, BartForConditionalGeneration

    from tests.tiny_models import _tokenizer

    names = {"bos_token": "<s>", "eos_token": "</s>"}
    return _tokenizer("<s>", "</s>", "<pad>", [], pairs=True, names=names), BartConfig, BartForConditionalGeneration


FAMILIES: dict[str, tuple[Callable[[Path], tuple[Any, Any, Any]], dict[str, str]]] = {
    "mbart": (_mbart, {"source_lang": "en_XX", "target_lang": "de_DE"}),
    "mbart-50": (_mbart_50, {"source_lang": "en_XX", "target_lang": "de_DE"}),
    "m2m100": (_m2m100, {"source_lang": "en", "target_lang": "de"}),
    "nllb": (_nllb, {"source_lang": "eng_Latn", "target_lang": "deu_Latn"}),
    "marian": (_marian, {}),
    "bart": (_bart, {}),
}
"""Family -> what builds its parts, and the task's settings for it."""


def build(family: str, folder: Path) -> Path:
    """Write a model folder as a hub has it: its tokenizer says of no language."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, config, model = FAMILIES[family][0](folder)
    start = tokenizer.pad_token_id if family == "marian" else tokenizer.eos_token_id
    size = max(*tokenizer.get_vocab().values(), *getattr(tokenizer, "id_to_lang_token", [0])) + 1
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    built = model(config(vocab_size=size, decoder_start_token_id=start, **ids, **SIZES)).eval()
    built.generation_config.forced_eos_token_id = None
    written = {*tokenizer.convert_tokens_to_ids(WRITTEN), tokenizer.eos_token_id}
    built.generation_config.suppress_tokens = [n for n in tokenizer.all_special_ids if n not in written]
    with torch.no_grad():
        for weight in built.parameters():  # upstream starts at 0.02, where every source is answered alike
            weight.mul_(8)
    tokenizer.save_pretrained(folder)
    built.save_pretrained(folder)
    return folder

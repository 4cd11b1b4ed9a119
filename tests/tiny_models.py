"""Models and tokenizers small enough to train in a test, written to a folder with no network."""

from pathlib import Path
from typing import Any

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_CORPUS = (
    "the quick brown fox jumps over the lazy dog and the dog sleeps in the sun",
    "what is the answer to the question? the answer is that there is no answer.",
    "def add(left, right):\n    return left + right\n",
    "we were happy with the film, and they were not.",
)


def build_tiny_llama(
    folder: str | Path,
    *,
    chat_template: str | None = CHAT_TEMPLATE,
    weights: bool = True,
    seed: int = 0,
    pad_is_eos: bool = False,
    **config: Any,
) -> Path:
    """Write a Llama of two layers with a byte-level tokenizer that has bos, eos and pad.

    Args:
        folder: Where to write; made when it does not exist.
        chat_template: ChatML unless another is given; None: no template.
        weights: Whether to write weights beside the config.
        seed: Of the weights.
        pad_is_eos: Whether padding shares the end token, as in many published models.
        **config: Further LlamaConfig fields, such as hidden_size or max_position_embeddings.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer("<|begin|>", "<|end|>", "<|pad|>", extra=["<|im_start|>", "<|im_end|>"])
    if pad_is_eos:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = chat_template
    fields = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "attention_dropout": 0.1,
        "tie_word_embeddings": False,
        **config,
    }
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    model_config = LlamaConfig(vocab_size=len(tokenizer), **ids, **fields)
    return _write(folder, tokenizer, model_config, LlamaForCausalLM if weights else None, seed)


def build_tiny_bert(
    folder: str | Path, *, weights: bool = True, masked_lm: bool = False, seed: int = 0, **config: Any
) -> Path:
    """Write a BERT of two layers with a byte-level tokenizer that has cls, sep, pad and mask.

    Args:
        folder: Where to write; made when it does not exist.
        weights: Whether to write weights beside the config.
        masked_lm: Whether it has the head of masked language modelling.
        seed: Of the weights.
        **config: Further BertConfig fields, such as hidden_dropout_prob.
    """
    from transformers import BertConfig, BertForMaskedLM, BertModel

    tokenizer = _tokenizer("[CLS]", "[SEP]", "[PAD]", extra=["[MASK]"], pairs=True)
    tokenizer.mask_token = "[MASK]"
    fields = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        **config,
    }
    kind = BertForMaskedLM if masked_lm else BertModel
    model_config = BertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **fields)
    return _write(folder, tokenizer, model_config, kind if weights else None, seed)


def build_tiny_t5(folder: str | Path, *, weights: bool = True, seed: int = 0, **config: Any) -> Path:
    """Write a T5 of two layers with a byte-level tokenizer that ends every text with eos and has pad.

    Args:
        folder: Where to write; made when it does not exist.
        weights: Whether to write weights beside the config.
        seed: Of the weights.
        **config: Further T5Config fields, such as dropout_rate.
    """
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = _tokenizer("<s>", "</s>", "<pad>", extra=[], pairs=True, names={"eos_token": "</s>"})
    fields = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.1, **config}
    ids = {"pad_token_id": tokenizer.pad_token_id, "decoder_start_token_id": tokenizer.pad_token_id}
    model_config = T5Config(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **ids, **fields)
    return _write(folder, tokenizer, model_config, T5ForConditionalGeneration if weights else None, seed)


def _tokenizer(
    first: str, last: str, padding: str, extra: list[str], pairs: bool = False, names: dict[str, str] | None = None
) -> Any:
    """Train a byte-level BPE; a single text starts with `first`, and as `pairs` every text ends with `last`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = [padding, first, last, *extra]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(_CORPUS, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}" if pairs else f"{first} $A",
        pair=f"{first} $A {last} $B:1 {last}:1" if pairs else f"{first} $A $B:1",
        special_tokens=[(token, backend.token_to_id(token)) for token in (first, last)],
    )
    names = names or ({"cls_token": first, "sep_token": last} if pairs else {"bos_token": first, "eos_token": last})
    inputs = ["input_ids", "token_type_ids", "attention_mask"] if pairs else ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=padding, model_input_names=inputs, model_max_length=256, **names
    )


def _write(folder: str | Path, tokenizer: Any, config: Any, model: Any, seed: int) -> Path:
    import torch

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    if model is None:
        config.architectures = None
        config.save_pretrained(folder)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model(config).save_pretrained(folder)
    return folder

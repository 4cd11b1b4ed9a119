"""The arithmetic that training needs, and the share of a device's peak that it came to."""

from dataclasses import dataclass

H100_BF16 = 989e12
"""FLOP a second, dense bfloat16, of an H100 or H200 SXM (NVIDIA's data sheets give twice that, with sparsity)."""


@dataclass(frozen=True)
class LlamaShape:
    """What decides a Llama's arithmetic; the fields are transformers' config keys."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int

    @property
    def body(self) -> int:
        """Parameters of the layers that are matrices of a product: all but norms and embeddings."""
        keys_and_values = 2 * self.hidden_size * self.hidden_size // self.num_attention_heads * self.num_key_value_heads
        attention = 2 * self.hidden_size**2 + keys_and_values
        return self.num_hidden_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def head(self) -> int:
        """Parameters of the projection onto the vocabulary."""
        return self.vocab_size * self.hidden_size

    def adapter(self, r: int) -> int:
        """Parameters of LoRA of rank r on every linear layer but the head."""
        h, kv = self.hidden_size, self.hidden_size // self.num_attention_heads * self.num_key_value_heads
        widths = [h + h, h + kv, h + kv, h + h, *[h + self.intermediate_size] * 3]
        return self.num_hidden_layers * r * sum(widths)


def causal_context(lengths: list[int]) -> float:
    """Return how many tokens a token attends to, on average: half of its document's, weighted by token."""
    return sum(length**2 for length in lengths) / (2 * sum(lengths))


def train_flops(shape: LlamaShape, context: float, *, lora_r: int | None = None, labelled: float = 1.0) -> float:
    """Return the FLOP that training takes for each token.

    The formula is that of PaLM (Chowdhery et al. 2022, arXiv 2204.02311, appendix B): 6 N + 12 L H Q T for a token,
    with N the parameters, L layers, H heads of Q numbers, T tokens in the context. Three things are stricter here. N
    counts the matrices that a token is multiplied with, so no embedding, and the head only by the share of tokens that
    have a label. Attention counts causally: T is `context`, half of a document's length rather than all of it. And
    frozen weights count 4 N, not 6 N: the gradient passes through them, but they get none. LoRA's own count 6 N.

    What is computed again, as by gradient checkpointing, does not count.

    Args:
        shape: Of the model.
        context: Tokens that a token attends to, on average (`causal_context`).
        lora_r: LoRA's rank, on every linear layer but the head; None: every weight is trained.
        labelled: Share of the tokens whose logits enter the loss.
    """
    matrices = shape.body + labelled * shape.head
    products = 6 * matrices if lora_r is None else 4 * matrices + 6 * shape.adapter(lora_r)
    return products + 12 * shape.num_hidden_layers * shape.hidden_size * context


def utilisation(tokens_per_second: float, flops_per_token: float, peak: float = H100_BF16) -> float:
    """Return the model FLOP utilisation: the share of the peak that goes into what training needs."""
    return tokens_per_second * flops_per_token / peak

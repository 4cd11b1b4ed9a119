"""What the language model is given: the same words in training and at every question."""

from collections.abc import Sequence

from passages import Passage

NOT_FOUND = "The documents do not say that."
SYSTEM = f"Answer from the passages only. If they do not hold the answer, say: {NOT_FOUND}"

Turn = tuple[str, str]
"""A question and its answer."""


def messages(question: str, passages: Sequence[Passage], history: Sequence[Turn] = ()) -> list[dict[str, str]]:
    """Return the conversation that ends with a question below its passages; earlier questions come without theirs."""
    found = "\n\n".join(f"[{number}] {passage.whole}" for number, passage in enumerate(passages, 1))
    turns = [{"role": "system", "content": SYSTEM}]
    for asked, answer in history:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return [*turns, {"role": "user", "content": f"{found}\n\nQuestion: {question}"}]

"""A reward function for runs of tests: something that completions of a random model differ in."""


def letters(completions: list[str], answer: list[str]) -> list[float]:
    return [
        sum(text.count(letter) for letter in "aeiou" + right) for text, right in zip(completions, answer, strict=True)
    ]

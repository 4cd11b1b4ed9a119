"""The same comparison on one GPU, at the size of models in use: `python benchmarks/gpu.py --cells 1b_4k-lora`.

Llamas of 1 and 8 billion random weights in bf16, on full blocks of 4,096 and 8,192 tokens and on answers of GSM8K's
lengths. Prints the tables of peers.py with the model FLOP utilisation of each contender, whose formula and source are
`flops.train_flops`'s: attention counts causally, frozen weights count 4 N. `make bench-gpu` makes the environments;
where there is one Python with everything in it, `--interpreter` names it.
"""

import json
import tempfile
from pathlib import Path

from contenders import Machine
from flops import LlamaShape, causal_context, train_flops, utilisation
from peers import Cell, arguments_parser, chosen, measure, prepare_cell, report
from work import LORA, Work

SHAPES = {
    "1b": LlamaShape(128256, 2048, 8192, 16, 32, 8),
    "8b": LlamaShape(128256, 4096, 14336, 32, 32, 8),
}
"""Llama-3.2-1B's and Llama-3.1-8B's."""


def _work(name: str, task: str, micro_batch_size: int, max_length: int) -> Work:
    size = name.partition("_")[0]
    model = vars(SHAPES[size]) | {"max_position_embeddings": max_length, "tie_word_embeddings": size == "1b"}
    batch = 4 * micro_batch_size
    return Work(name, task, batch, micro_batch_size, 14, 1e-5, batch, max_length, None, model, "cuda", "bf16")


WORKS = {
    work.name: work
    for work in (
        _work("1b_4k", "causal_lm", 2, 4096),
        _work("1b_8k", "causal_lm", 1, 8192),
        _work("1b_answers", "sft", 32, 1024),
        _work("8b_4k", "causal_lm", 1, 4096),
    )
}
CELLS = [f"{name}-{method}" for name in WORKS for method in ("full", "lora") if (name[:2], method) != ("8b", "full")]
"""Eight billion weights, their gradients and Adam's moments in float32 are more than one GPU has."""


def flops_a_token(cell: Cell) -> float:
    """Return the FLOP a token of a cell needs."""
    examples = [json.loads(line) for line in (cell.folder / "train.jsonl").read_text().splitlines()]
    lengths = [len(example["input_ids"]) for example in examples]
    labelled = sum(label != -100 for example in examples for label in example["labels"][1:]) / sum(lengths)
    shape = SHAPES[cell.work.name.partition("_")[0]]
    lora_r = int(str(LORA["r"])) if cell.method == "lora" else None
    return train_flops(shape, causal_context(lengths), lora_r=lora_r, labelled=labelled)


def main() -> None:
    """Run rounds while there is time, then print the tables."""
    assert __doc__
    parser = arguments_parser(__doc__, CELLS, without="llama_factory", minutes=60)
    parser.add_argument("--interpreter", type=Path, help="a Python that has every peer")
    arguments = parser.parse_args()
    machine = Machine(arguments.threads, gpu=True, interpreter=arguments.interpreter)
    with tempfile.TemporaryDirectory() as folder:
        cells = [
            prepare_cell(WORKS[work], method, Path(folder), chosen(arguments.contenders))
            for work, _, method in (name.rpartition("-") for name in arguments.cells)
        ]
        measure(cells, machine, arguments.rounds, arguments.minutes, arguments.json)
        report(cells, machine, arguments.json, utilisations)


def utilisations(cell: Cell, rows: list[dict[str, object]]) -> str:
    """Return a Markdown list of what share of an H100's or H200's peak each contender made use of."""
    need = flops_a_token(cell)
    lines = [f"Of 989 TFLOP/s, at {need / 1e9:.2f} GFLOP a token:", ""]
    for row in rows:
        rates = row["tokens_per_second"]
        assert isinstance(rates, list)
        shares = ", ".join(f"{utilisation(rate, need):.1%}" for rate in rates)
        lines.append(f"- {row['contender']}: {'void' if row['void'] else shares}")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()

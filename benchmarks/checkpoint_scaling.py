"""What checkpoints of 7B and 70B cost, from the code's own accounting: `python benchmarks/checkpoint_scaling.py`.

No weights are made: models stand on torch's meta device, and their trained parameters and the optimizer's state are
counted by what train.py itself counts them with. Seconds follow from the bandwidths below, which are statements about
a cluster, not measurements.
"""

import warnings
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from onecurve.adapters import add_adapter
from onecurve.config import OptimSection, PeftSection
from onecurve.planning.disk_forecast import moments_per_parameter

TO_HOST = 20e9
"""Bytes a second from an accelerator to page-locked memory, each rank."""
DISK = 2e9
"""Bytes a second to the shared disk and back, each node."""
SHA256 = 1.5e9
"""Bytes a second through SHA-256, each rank (`openssl speed -evp sha256` on a CPU with SHA instructions)."""
RANKS_A_NODE = 8

SHAPES = {
    "7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "70B": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}
METHODS = {"full": None, "LoRA r 16": PeftSection(method="lora", r=16, target_modules="all-linear")}


@dataclass(frozen=True)
class Cost:
    """Of one checkpoint."""

    num_bytes: int
    """On disk."""
    ranks: int

    @property
    def host_bytes(self) -> float:
        """Host memory a rank copies into: what it holds alone, or its share of what all hold alike."""
        return self.num_bytes / self.ranks

    @property
    def stall(self) -> float:
        """Seconds training stands still."""
        return self.host_bytes / TO_HOST

    @property
    def behind(self) -> float:
        """Seconds until it is complete: hashed and written, read back and hashed again."""
        a_node = self.host_bytes * min(self.ranks, RANKS_A_NODE)
        return 2 * (self.host_bytes / SHA256 + a_node / DISK)


def trained_parameters(shape: dict[str, int], peft: PeftSection | None) -> int:
    """Count what is trained of a Llama of that shape."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LlamaForCausalLM(LlamaConfig(vocab_size=32000, tie_word_embeddings=False, **shape))
        model = add_adapter(model, peft, task_type="CAUSAL_LM", new_modules=[])
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def main() -> None:
    """Print the table."""
    moments = moments_per_parameter(OptimSection(name="adamw"))
    print("| model | trained | parameters trained | bytes on disk | ranks | host memory a rank | stall | behind |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for name, shape in SHAPES.items():
        for method, peft in METHODS.items():
            trained = trained_parameters(shape, peft)
            for ranks in (8, 64):
                cost = Cost(int(trained * 4 * (1 + moments)), ranks)
                print(
                    f"| {name} | {method} | {trained / 1e6:,.1f} M | {cost.num_bytes / 1e9:,.2f} GB | {ranks} | "
                    f"{cost.host_bytes / 1e9:,.3f} GB | {cost.stall:,.3f} s | {cost.behind:,.1f} s |"
                )


if __name__ == "__main__":
    main()

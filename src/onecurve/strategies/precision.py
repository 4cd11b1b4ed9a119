"""The dtypes of the recipe's precisions."""

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

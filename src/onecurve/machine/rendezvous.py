"""Rendezvous of the ranks after the launcher has restarted them."""

import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlparse

from torch.distributed import PrefixStore, Store, register_rendezvous_handler, rendezvous

RESTARTED = "restarted"
"""The scheme of an `init_method` that is `env://` with a part of the store for each restart.

torchrun's static rendezvous, which is `accelerate launch`'s too, keeps one store for all of them, and ranks would find
the addresses of those that died.
"""


def _rendezvous(url: str, **options: Any) -> Iterator[tuple[Store, int, int]]:
    part = f"restart-{os.environ['TORCHELASTIC_RESTART_COUNT']}"
    for store, rank, world_size in rendezvous(f"env://?{urlparse(url).query}", **options):
        yield PrefixStore(part, store), rank, world_size


register_rendezvous_handler(RESTARTED, _rendezvous)

"""From files to micro-batches: sources, the cache of encoded examples, the batch plan, the loader."""

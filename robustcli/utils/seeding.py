"""Seeds and generators: every random draw of the project comes from a generator that is derived here.

A generator is named by what it is for (run seed, purpose, sample, step), never by when it is asked for; so the draw of
a sample does not depend on batch size, order, neighbours, workers or a resume, and the global state of torch is never
touched. Only a model that draws by itself reads that state, which its caller seeds before and restores afterwards.
"""

import hashlib

import torch


def derive_seed(*parts: int | str | float) -> int:
    """A 63-bit seed that depends on every part and on their order, equal on every machine."""
    text = "\x1f".join(f"{type(part).__name__}:{part!r}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(*parts: int | str | float) -> torch.Generator:
    """A CPU generator for one purpose, for example ``generator(run_seed, "pgd", sample_id, restart)``."""
    return torch.Generator().manual_seed(derive_seed(*parts))

"""Independent random streams, by name.

Every random draw of the book comes from ``generator(seed, *names)``. Two different names (joined by
"/": "a/b" is also "a", "b") give unrelated streams, so adding a draw in one place does not move the
numbers of another, and two optimizers that ask for the same names see the same functions (common
random numbers).
"""

import hashlib

import torch


def generator(seed: int, *names: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator whose stream is fixed by the seed and the names, e.g. ``(0, "init", 17)``.

    The seed is the head of a SHA-256 of both, joined like a path: neighbouring seeds are unrelated.
    torch's CPU generator keeps 32 bits of it: two given streams coincide with chance 2^-32.
    """
    label = "/".join(str(part) for part in (seed, *names))
    digest = hashlib.sha256(label.encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)

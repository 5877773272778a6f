"""The list of packages beside a result, in versions/: a file for each lock that is named."""

from learnopt import atomic, provenance


def keep(root, text):
    """Write a list (provenance.installed) to where the results in folder `root` name it."""
    atomic.write({root / "versions" / f"{provenance.lock(text)}.txt": text.encode()})

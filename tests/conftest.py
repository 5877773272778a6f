"""Settings that every test shares: one thread, and no environment left over from the shell."""

import os

# Set before torch is imported: small operations are slower on many threads, and workers share cores
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# Of the book's own variables a test may see those that say where the images are, and no others.
for name in ("RUN_DIR", "TRAINED", "CONTENT", "RESULTS", "COMMIT"):
    os.environ.pop(f"LEARNOPT_{name}", None)

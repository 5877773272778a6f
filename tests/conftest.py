"""Settings that every test shares: one thread, and no environment left over from the shell."""

import os

# Set before torch is imported: small operations are slower on many threads, and workers share cores
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

"""Settings that every test shares: one thread, and no environment left over from the shell."""

import os

# Before torch is imported anywhere: small operations on many threads are slower, and two workers share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

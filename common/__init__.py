"""Reusable parts of the kit; the folder list reads as the pipeline."""

import os

# Must be set before the first `import torch`: OpenMP threads that busy-wait collapse (measured:
# a fifth of the speed) as soon as another process takes one of the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Kernels on Kaggle run without internet; a hub that cannot answer must not cost minutes of retries.
os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "5")

"""Write train.npz and test.npz of N-MNIST: 15 bins of 20 ms, 2 x 2 pixels joined to 17 x 17.

Usage: python make_digits.py FOLDER, with the lists and recordings that the recipe nmnist reads.
"""

import sys
from pathlib import Path

import numpy as np

from knarr.train.datasets.events.nmnist import bin_counts, read_nmnist

for split in ("train", "test"):
    found = read_nmnist(Path(sys.argv[1]), split)
    counts = bin_counts(found, np.arange(len(found.labels)), 15, 20_000)
    n, t, c, h, w = counts.shape
    joined = counts.reshape(n, t, c, h // 2, 2, w // 2, 2).sum(axis=(4, 6)) > 0
    path = Path(__file__).parent / f"{split}.npz"
    np.savez_compressed(path, inputs=joined, labels=found.labels, names=np.array(found.names))

"""Makes the embedded subset of Fashion-MNIST from the four files of the full set.

    python -m jaxvision.data.embedded.make /usr/share/datasets/fashion-mnist out/

The first 1,100 training and 200 test pictures of each class, in the order of the original file, so
that the labels stay mixed. The same input gives the same bytes with the same zlib.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from jaxvision.data.idx import idx_bytes, idx_sha256

PER_CLASS = {"train": 1100, "test": 200}


def first_of_each_class(labels: UInt8[np.ndarray, "n"], per_class: int) -> Int64[np.ndarray, "m"]:
    """The indices of the first `per_class` examples of each class, ascending."""
    firsts = [np.flatnonzero(labels == k)[:per_class] for k in np.unique(labels)]
    return np.sort(np.concatenate(firsts))


def make_fashion_mnist(source: Path, destination: Path) -> None:
    """Writes the subset's four IDX files into `destination` and prints their sha256."""
    from jaxvision.data.builders.fashion_mnist import FULL
    from jaxvision.data.builders.idx_files import read_split

    destination.mkdir(parents=True, exist_ok=True)
    for split in FULL.splits:
        images, labels = read_split(source, FULL, split)
        chosen = first_of_each_class(labels, PER_CLASS[split])
        files = FULL.splits[split]
        for stem, array in ((files.images, images[chosen]), (files.labels, labels[chosen])):
            # No time stamp: the file must not change when it is made again.
            packed = gzip.compress(idx_bytes(array), compresslevel=9, mtime=0)
            (destination / f"{stem}.gz").write_bytes(packed)
            print(f"{stem}.gz  {len(packed):,} bytes  sha256 unpacked {idx_sha256(array)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", type=Path, help="folder with the four files of the full set")
    parser.add_argument("destination", type=Path, help="folder to write the subset into")
    arguments = parser.parse_args()
    make_fashion_mnist(arguments.source, arguments.destination)


if __name__ == "__main__":
    main()

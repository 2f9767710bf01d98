"""make_digits.py - writes src/nonsingular/assets/digits.npz from scikit-learn's copy of the UCI digits (needs scikit-learn).

Running it again gives the same file, byte for byte.
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

TARGET = Path(__file__).parents[1] / "src" / "nonsingular" / "assets" / "digits.npz"


def main() -> None:
    digits = load_digits()
    x, y = digits.images.astype(np.uint8), digits.target.astype(np.uint8)  # pixels are whole numbers 0..16
    assert np.array_equal(x, digits.images)
    np.savez_compressed(TARGET, x=x, y=y)
    print(f"{TARGET}: {len(x)} images, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()

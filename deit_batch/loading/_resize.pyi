import numpy as np
from numpy.typing import NDArray

def resize(
    source: NDArray[np.uint8],
    size: tuple[int, int],
    resized: tuple[int, int],
    resample: int,
    window: tuple[int, int, int, int],
    target: NDArray[np.uint8],
    scratch: NDArray[np.uint8],
) -> None:
    """As Pillow's `resize(resized, resample)`, and a cut. `source`: pixels of three bytes, of `size` (width, height);
    `resample`: one of Pillow's filters, 1 to 5; `window`: left, top, width and height of what is wanted of the image of
    the size `resized`; `target`: room for it; `scratch`: to work in, as much as `scratch_bytes` of turbo.py says. Sides
    are of 65,535 at the most. Raises ValueError if these do not fit together, and MemoryError."""

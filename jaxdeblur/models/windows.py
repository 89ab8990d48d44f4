"""Which frames a clip's windows are made of."""

import numpy as np


def alternating_frame_numbers(count: int, past: int, future: int) -> np.ndarray:
    """Numbers of the frames that stand at -past .. count - 1 + future of a clip of `count`, where "alternate" says what
    stands beyond its ends: the end frame's neighbour and the end frame in turn; see restoration.clip.frame_windows."""
    before = [0 if number % 2 == 0 else min(1, count - 1) for number in range(past, 0, -1)]
    after = [count - 1 if number % 2 == 0 else max(count - 2, 0) for number in range(1, future + 1)]
    return np.array([*before, *range(count), *after])

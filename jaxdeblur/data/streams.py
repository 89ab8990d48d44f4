"""The streams of random numbers that are drawn from one seed, each under a number of its own."""

import enum


@enum.unique
class Stream(enum.IntEnum):
    """What keeps draws at the same seed apart: part of the seed of NumPy's generators, folded into JAX's keys.

    A number is for good: with another the same seed would draw other data, and a run that goes on would not go on as it
    began.
    """

    ORDER = 1  # of the windows of an epoch: clips
    GEOMETRY = 2  # where crops lie and how they are turned: transforms
    PAIR_SCALE = 3  # of pairs with flow: flow_pairs
    SYMMETRY = 4  # of batches of scenes that come round: scenes
    COMPRESSION = 5  # of rendered clips: compression
    SYNTHETIC_NOISE = 6  # of blurred frames made of sharp ones: synthesize
    UNLABELLED_CHOICE = 7  # of the windows that fit into memory: unlabelled
    CLIP_ENDS = 8  # where rendered clips are cut off: scenes

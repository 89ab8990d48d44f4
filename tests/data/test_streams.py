"""No two parts draw the same random numbers from one seed."""

import itertools
import re
from pathlib import Path

import jax
import numpy as np

import jaxdeblur
from jaxdeblur.data.scenes import scene_key
from jaxdeblur.data.streams import Stream


def test_every_stream_has_a_number_of_its_own():
    assert len({int(stream) for stream in Stream}) == len(Stream.__members__)  # members with one number would be one
    # Numbers are for good: these have been used to train.
    assert (Stream.ORDER, Stream.GEOMETRY, Stream.PAIR_SCALE, Stream.SYMMETRY, Stream.COMPRESSION) == (1, 2, 3, 4, 5)


def test_streams_differ_whatever_follows_their_number():
    # SeedSequence takes what is missing for zero: (5, seed) and (5, seed, 0) would be one.
    drawn = [
        np.random.Philox(np.random.SeedSequence((stream, *rest))).random_raw()
        for stream, rest in itertools.product(Stream, ((7,), (7, 1)))
    ]
    assert len(set(drawn)) == len(drawn)


def test_a_stream_folded_into_a_scenes_key_is_no_part_of_the_scene():
    key = scene_key(3, 4)
    folded = jax.random.key_data(jax.random.fold_in(key, Stream.CLIP_ENDS))
    assert not any(np.array_equal(folded, part) for part in jax.random.key_data(jax.random.split(key)))


def test_streams_are_named_in_one_place_and_used_once():
    folder = Path(jaxdeblur.__file__).parent
    used = []
    for file in folder.rglob("*.py"):
        text = file.read_text()
        assert not re.search(r"_STREAM = \d", text), file
        assert not re.search(r"SeedSequence\(\(\d", text), file
        if file.name != "streams.py":
            used += re.findall(r"Stream\.([A-Z_]+)", text)
    assert sorted(used) == sorted(Stream.__members__)

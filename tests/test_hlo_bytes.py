"""What the recurrence's benchmark counts as moved, on programs whose traffic is known."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.hlo_bytes import bytes_moved

SIZE = 100_000
UNIT = 4 * SIZE


def moved(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return bytes_moved(jax.jit(function).lower(*arguments).compile().as_text())


def test_elementwise_reads_each_argument_and_writes_once():
    assert moved(lambda x: jnp.exp(x) + 1, (SIZE,)) == 2 * UNIT
    assert moved(lambda x, y: jnp.exp(x) * y + x, (SIZE,), (SIZE,)) == 3 * UNIT


def test_a_slice_inside_a_fusion_reads_only_itself():
    assert moved(lambda x: jnp.exp(x[: SIZE // 4]), (SIZE,)) == UNIT // 2


@pytest.mark.parametrize("steps", [10, 50])
def test_a_loop_counts_as_often_as_it_runs(steps):
    width = SIZE // 10

    def scan(x):
        return jax.lax.scan(lambda h, x_i: (jnp.tanh(h + x_i), h), jnp.zeros(width), x)

    # A step reads its slice and the state, writes the state and what it yields; the compiler adds copies of the state.
    lower, upper = 3 * steps * width * 4, 9 * steps * width * 4
    assert lower <= moved(scan, (steps, width)) <= upper


def test_updates_in_place_touch_what_they_write():
    def fill(x):
        def body(i, out):
            return jax.lax.dynamic_update_slice(out, jnp.exp(jax.lax.dynamic_slice(x, (i, 0), (1, SIZE))), (i, 0))

        return jax.lax.fori_loop(0, 20, body, jnp.zeros((20, SIZE)))

    # Twenty rows read and written, and the array cleared; whole copies would be four hundred.
    assert 60 * UNIT <= moved(fill, (20, SIZE)) * 1.001 <= 90 * UNIT


def test_an_unknown_branch_is_refused():
    def branch(x):
        return jax.lax.cond(x[0] > 0, lambda x: jnp.cumsum(x), lambda x: jnp.sort(x), x)

    with pytest.raises(ValueError, match="which branch runs is not in the listing"):
        moved(branch, (SIZE,))

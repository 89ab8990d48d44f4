"""The benchmark of restoration takes frames of any size; nothing is compiled here."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import measure
from benchmarks.restoration import first_carry, frame_step
from jaxdeblur import create_model
from jaxdeblur.models import example_inputs


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mtu1", {"channels": 2, "residual_blocks": 0, "match_radius": 1, "scales": 3}),
        ("svrnn", {"width": 0.05}),
        ("vdflow", {"width": 0.05}),
        ("dbn", {"width": 0.05}),
        ("estrnn", {"features": 2, "blocks": 1}),
        ("cdvd_tsp", {"channels": 2, "residual_blocks": 0, "flow_width": 0.05}),
    ],
)
def test_sizes_that_a_network_does_not_take_are_filled_up(name, options):
    model = create_model(name, **options)
    variables = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model))
    frames = model.past_frames + 1 + model.future_frames
    window = jax.ShapeDtypeStruct((1, frames, 90, 75, 3), jnp.float32)
    carry = jax.eval_shape(lambda variables, window: first_carry(model, variables, window), variables, window)
    carry, restored = jax.eval_shape(
        lambda variables, *inputs: frame_step(model, variables)(*inputs), variables, carry, window
    )
    assert restored.shape == (1, 90, 75, 3)


def test_multiply_accumulates_are_those_that_are_made():
    """One branch of a choice, and every turn of a loop."""

    def chosen(x, kernel):
        def convolved(x):
            return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

        found = jax.lax.cond(jnp.sum(x) > 0, convolved, lambda x: convolved(2 * x), x)
        return jax.lax.scan(lambda total, _: (total + convolved(x), None), found, None, length=3)[0]

    found = measure.convolutions(chosen, jnp.ones((1, 8, 8, 2)), jnp.ones((3, 3, 2, 5)))
    assert [convolution.macs for convolution in found] == 4 * [6 * 6 * 9 * 2 * 5]


def test_multiply_accumulates_are_those_of_convolutions_and_products():
    kernel, matrix = jnp.ones((3, 3, 2, 5)), jnp.ones((4, 6))

    def call(x):
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        rows, _ = jax.lax.scan(lambda total, _: (total + (jnp.ones((7, 4)) @ matrix).sum(), None), x.sum(), length=3)
        return jax.lax.cond(rows > 0, lambda: (matrix @ matrix.T).sum(), lambda: rows)

    by_hand = 8 * 9 * 5 * 3 * 3 * 2 + 3 * 7 * 4 * 6 + 4 * 6 * 4
    assert measure.multiply_accumulates(call, jnp.ones((1, 8, 9, 2))) == by_hand

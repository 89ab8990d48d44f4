import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur.training.plateau import Plateau


@pytest.fixture(autouse=True)
def optax_promotes():
    with jax.numpy_dtype_promotion("standard"):
        yield


def scales(plateau, losses, group="a", plateaus=None):
    plateaus = plateau.init(["a", "b"]) if plateaus is None else plateaus
    found = []
    for loss in losses:
        plateaus = plateau.check(plateaus, group, loss)
        found.append(float(plateau.scale(plateaus)))
    return found, plateaus


def oracle(plateau, losses):
    best, bad, scale, found = np.inf, 0, 1.0, []
    for loss in losses:
        if loss < best * (1 - plateau.tolerance):
            best, bad = loss, 0
        else:
            bad += 1
        if bad == plateau.patience:
            scale, bad = max(scale * plateau.factor, plateau.least_scale), 0
        found.append(scale)
    return found


@pytest.mark.parametrize(
    "losses",
    [
        [5.0, 4.0, 4.0, 4.0, 4.0, 3.0, 3.0, 3.0, 3.0],
        [1.0, 0.9995, 0.999, 0.9985],  # each less, none by a thousandth of the best... until the last
        list(np.random.default_rng(0).random(40)),
        [1.0] * 60,
    ],
)
def test_it_follows_its_words(losses):
    plateau = Plateau()
    np.testing.assert_allclose(scales(plateau, losses)[0], oracle(plateau, losses))


def test_every_group_has_a_memory_and_all_have_one_learning_rate():
    plateau = Plateau(patience=1)
    _, plateaus = scales(plateau, [1.0, 1.0], "a")
    # A loss of another kind is no plateau of the first one's, and no news to it.
    found, plateaus = scales(plateau, [500.0, 400.0, 400.0], "b", plateaus)
    assert found == [0.5, 0.5, 0.25]
    assert scales(plateau, [0.5, 0.6], "a", plateaus)[0] == [0.25, 0.125]
    assert scales(Plateau(patience=1, least_scale=0.2), [1.0] * 9, "a")[0][-1] == pytest.approx(0.2)


def test_the_product_of_both_does_not_fall_below_the_least():
    plateau = Plateau(patience=1, least_scale=0.3)
    _, plateaus = scales(plateau, [1.0] * 5, "a")
    assert scales(plateau, [1.0] * 5, "b", plateaus)[0][-1] == pytest.approx(0.3)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="the held-out loss of a is nan"):
        Plateau().check(Plateau().init("a"), "a", float("nan"))
    for options in ({"factor": 1.0}, {"patience": 0}, {"tolerance": 0.0}, {"least_scale": 0.0}):
        with pytest.raises(ValueError, match="expected a factor, a tolerance and a least scale below 1"):
            Plateau(**options)


def test_it_traces():
    plateau = Plateau()
    assert jax.jit(plateau.scale)(plateau.init("ab")) == jnp.float32(1)

"""What the flow networks share: checks of what they are given, sizes, the activation and initial values."""

import flax.linen as nn

from jaxdeblur.types import Features, Image, Pixels

he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
he_normal_transposed = nn.initializers.variance_scaling(4 * 2.0, "fan_in", "normal")
"""For kernels of 4 and strides of 2: an output value sees a quarter of the taps."""


def leaky_relu(x: Features) -> Features:
    return nn.leaky_relu(x, negative_slope=0.1)


def rounded_up(height: Pixels, width: Pixels, multiple: int) -> tuple[Pixels, Pixels]:
    """The least multiples that are no less."""
    return -(-height // multiple) * multiple, -(-width // multiple) * multiple


def check_images(*images: Image) -> None:
    """Raises ValueError unless all are RGB, none is empty, and their shapes are the same."""
    shapes = [image.shape for image in images]
    if len(set(shapes)) > 1 or shapes[0][-1] != 3 or 0 in shapes[0]:
        raise ValueError(
            "flow needs RGB images of one shape (..., height, width, 3), none of them empty; got "
            + " and ".join(map(str, shapes))
        )


def check_multiple(method: str, height: Pixels, width: Pixels, multiple: int) -> None:
    """Raises ValueError, which names the method that was called, if a size is no multiple."""
    if (height, width) != rounded_up(height, width, multiple):
        raise ValueError(
            f"{method} takes sizes that are multiples of {multiple}, got height, width ({height}, {width}); resize the "
            "images, or call the model itself, which takes any size"
        )


def check_encoded_size(encoded: tuple[Pixels, Pixels], height: Pixels, width: Pixels, multiple: int) -> None:
    """Raises ValueError unless what was encoded, of that size, are images of height x width."""
    if encoded != rounded_up(height, width, multiple):
        raise ValueError(
            f"height, width ({height}, {width}) are not those of the encoded images, which fill {encoded} when rounded "
            f"up to multiples of {multiple}"
        )

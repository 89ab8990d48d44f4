"""Blurring a sharp frame along its motion: what a camera whose shutter is open while the scene moves would record.

Every pixel has a kernel of its own, two straight segments from the pixel along its flows, each with half of the mass:
what stood, or will stand, there during the exposure. One operation, `reblur`, in three forms of the same model, and in
the average of two warped frames that the paper compares it with.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxdeblur.ops.warp import warp_backward
from jaxdeblur.types import Array, Flow, Image

Form: TypeAlias = Literal["path", "taps", "materialised", "ends"]
FORMS: tuple[Form, ...] = get_args(Form)

LARGEST_FLOW_PX = 16
"""Longer flows are clipped to it, component by component."""


def reblur(
    image: Image,
    flow_next_to_cur: Flow,
    flow_prev_to_cur: Flow | None = None,
    *,
    exposure: float = 1.0,
    form: Form = "path",
    samples: int = 16,
) -> Image:
    """Blurs the current frame along the motion to it from its neighbours (Chen et al., ICCP 2018, Eq. 8).

    R(p) = sum over d of K(p)[d] S(p + d), K(p) = (k(flow_next(p)) + k(flow_prev(p))) / 2, k(F) the anti-aliased segment
    from 0 to exposure F. The flow from t + 1 to t says where in frame t is what frame t + 1 shows at p, hence the sign.
    Positions beyond the border read the nearest pixel.

    Args:
        image: S, (..., H, W, C), any range.
        flow_next_to_cur: (..., H, W, 2) in pixels: on the next frame's grid, pointing into this one; read at the same
            pixel. Clipped to +-LARGEST_FLOW_PX, component by component, with no gradient beyond.
        flow_prev_to_cur: likewise of the previous frame; None: the negative of the other, for two frames.
        exposure: tau, the part of the motion between frames that each segment covers. The paper has 1; a shutter that
            is open all the time covers one half, M averaged frames of every D cover (M - 1) / (2 D).
        form: "path": the segment itself, the mean of `samples` bilinear reads at the middles of equal parts; fastest.
            "taps": the paper's table of kernels for whole flows, between which is interpolated, tap by tap; as small.
            "materialised": likewise, all kernels at once, 4,356 bytes a pixel at exposure 1, and patches three times as
            much: for small crops. "ends": the mean of the frame warped by either whole flow, times the exposure, as the
            paper words its faster model.
        samples: of each segment, in form "path"; 16 are 69 dB from the exact segment at 16 pixels of motion, 4 are 44.
    Returns:
        R, of the image's shape and dtype; sums are float32.
    Raises:
        ValueError: shapes that do not fit, an unknown form, an exposure or a number of samples that is none.
    """
    flows = [flow_next_to_cur, -flow_next_to_cur if flow_prev_to_cur is None else flow_prev_to_cur]
    for flow in flows:
        if flow.shape[:-1] != image.shape[:-1]:
            raise ValueError(f"flow has shape {flow.shape}, image {image.shape}; expected one size, resize the flow")
    check_options(form, exposure, samples)
    lead, size = image.shape[:-3], image.shape[-3:-1]
    frames = jnp.asarray(image, jnp.float32).reshape(-1, *image.shape[-3:])
    clipped = [
        jnp.clip(jnp.asarray(flow, jnp.float32), -LARGEST_FLOW_PX, LARGEST_FLOW_PX).reshape(-1, *size, 2)
        for flow in flows
    ]
    if form == "materialised":
        blurred = _by_whole_kernels(exposure, frames, *clipped)
    elif form == "taps":
        reach = kernel_reach_px(exposure)
        padded = jnp.pad(frames, [(0, 0), (reach, reach), (reach, reach), (0, 0)], mode="edge")
        blurred = _sum_of_terms(functools.partial(_tap, exposure), (2 * reach + 1) ** 2, padded, *clipped)
    else:
        count = 1 if form == "ends" else samples
        blurred = _sum_of_terms(functools.partial(_sample, exposure, form == "ends", count), count, frames, *clipped)
    return blurred.reshape(*lead, *size, -1).astype(image.dtype)


def check_options(form: str, exposure: float, samples: int) -> None:
    """Raises a ValueError unless `reblur` takes them."""
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; expected one of {', '.join(FORMS)}")
    if not 0 < exposure <= 2:
        raise ValueError(f"exposure is {exposure}; expected a part of the motion between frames, above 0, at most 2")
    if samples < 1:
        raise ValueError(f"samples is {samples}; expected 1 or more")


def kernel_reach_px(exposure: float) -> int:
    """How far a kernel of the longest flow reaches."""
    return math.ceil(LARGEST_FLOW_PX * exposure)


@functools.lru_cache(maxsize=4)
def line_kernel_table(exposure: float = 1.0) -> Float[np.ndarray, "_v _u _dy _dx"]:
    """Kernels of all whole flows, table[v + 16, u + 16, dy + reach, dx + reach]; float32, each with the sum 1."""
    last, reach = LARGEST_FLOW_PX, kernel_reach_px(exposure)
    table = np.zeros((2 * last + 1, 2 * last + 1, 2 * reach + 1, 2 * reach + 1), np.float32)
    for v in range(last + 1):
        for u in range(last + 1):
            kernel = line_kernel(float(u), float(v), exposure)
            for mirror_v in (1, -1):
                for mirror_u in (1, -1):
                    table[last + mirror_v * v, last + mirror_u * u] = kernel[::mirror_v, ::mirror_u]
    table.setflags(write=False)
    return table


def line_kernel(u: float, v: float, exposure: float = 1.0) -> Float[np.ndarray, "_dy _dx"]:
    """The anti-aliased segment from 0 to exposure (u, v), exact, in float64.

    k[dy, dx] = integral over s in [0, 1] of tri(dx - s exposure u) tri(dy - s exposure v), tri(a) = max(0, 1 - |a|):
    what the mean of bilinear reads along the segment weighs its pixels by. Between places where a component is whole
    the integrand is quadratic, so that Simpson's rule is exact there.
    """
    reach = kernel_reach_px(exposure)
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    end_x, end_y = exposure * u, exposure * v
    if max(abs(end_x), abs(end_y)) > reach:
        raise ValueError(f"flow ({u}, {v}) is longer than {LARGEST_FLOW_PX} px in a component")
    cuts = {0.0, 1.0}
    for end in (end_x, end_y):
        cuts |= {whole / abs(end) for whole in range(1, math.ceil(abs(end)))} if end else set()
    edges = sorted(cuts)
    for first, last in itertools.pairwise(edges):
        for s, weight in ((first, 1), ((first + last) / 2, 4), (last, 1)):
            _splat(kernel, s * end_x + reach, s * end_y + reach, (last - first) * weight / 6)
    return kernel


def _splat(kernel: np.ndarray, x: float, y: float, mass: float) -> None:
    left, top = math.floor(x), math.floor(y)
    for row, weight_y in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, weight_x in ((left, 1 - (x - left)), (left + 1, x - left)):
            if weight_x * weight_y:
                kernel[row, column] += mass * weight_y * weight_x


def look_up_kernels(flow: Flow, exposure: float = 1.0) -> Float[Array, "... _h _w _dy _dx"]:
    """The table between its whole flows (Eq. 9): bilinear in the flow. (..., H, W, 2) -> (..., H, W, dy, dx).

    Interpolated kernels are not the kernel of the interpolated flow: between whole flows a segment is a fan of four.
    Flows of more than 16 px are clipped, and have no gradient.
    """
    table = jnp.asarray(line_kernel_table(exposure))
    return _between(table, jnp.clip(flow, -LARGEST_FLOW_PX, LARGEST_FLOW_PX))


def _between(table: Float[Array, "_v _u ..."], flow: Flow) -> jax.Array:
    """Entries of a table over whole flows, between which is interpolated."""
    cell = jnp.clip(jnp.floor(flow), -LARGEST_FLOW_PX, LARGEST_FLOW_PX - 1)
    part = flow - jax.lax.stop_gradient(cell)
    column, row = (cell[..., i].astype(jnp.int32) + LARGEST_FLOW_PX for i in (0, 1))
    a, b = (part[..., i].reshape(*part.shape[:-1], *[1] * (table.ndim - 2)) for i in (0, 1))
    upper = (1 - a) * table[row, column] + a * table[row, column + 1]
    lower = (1 - a) * table[row + 1, column] + a * table[row + 1, column + 1]
    return (1 - b) * upper + b * lower


def _by_whole_kernels(exposure: float, frames: Image, flow_next: Flow, flow_prev: Flow) -> jax.Array:
    kernels = (look_up_kernels(flow_next, exposure) + look_up_kernels(flow_prev, exposure)) / 2
    reach = kernel_reach_px(exposure)
    padded = jnp.pad(frames, [(0, 0), (reach, reach), (reach, reach), (0, 0)], mode="edge")
    height, width = frames.shape[1:3]
    around = np.arange(2 * reach + 1)
    rows = (np.arange(height)[:, None] + around)[:, None, :, None]
    columns = (np.arange(width)[:, None] + around)[None, :, None, :]
    patches = padded[:, rows, columns]  # (B, H, W, dy, dx, C)
    return jnp.einsum("bhwyx,bhwyxc->bhwc", kernels, patches, precision=jax.lax.Precision.HIGHEST)


Term: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
"""(number, frames, flow_next, flow_prev) -> what it adds to the blurred frames."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sum_of_terms(term: Term, count: int, frames: Image, flow_next: Flow, flow_prev: Flow) -> jax.Array:
    """The sum of terms 0 .. count - 1, of which no more than one is ever held, forward or backward."""
    shape = jax.eval_shape(term, 0, frames, flow_next, flow_prev).shape

    def add(number: jax.Array, total: jax.Array) -> jax.Array:
        return total + term(number, frames, flow_next, flow_prev)

    return jax.lax.fori_loop(0, count, add, jnp.zeros(shape, jnp.float32))


def _sum_forward(term: Term, count: int, *inputs: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return _sum_of_terms(term, count, *inputs), inputs


def _sum_backward(term: Term, count: int, inputs: tuple[jax.Array, ...], cotangent: jax.Array) -> tuple:
    def add(number: jax.Array, total: tuple) -> tuple:
        _, transpose = jax.vjp(functools.partial(term, number), *inputs)
        return jax.tree.map(jnp.add, total, transpose(cotangent))

    return jax.lax.fori_loop(0, count, add, jax.tree.map(jnp.zeros_like, inputs))


_sum_of_terms.defvjp(_sum_forward, _sum_backward)


def _sample(
    exposure: float, at_end: bool, count: int, number: jax.Array, frames: Image, flow_next: Flow, flow_prev: Flow
) -> jax.Array:
    """One bilinear read along either segment."""
    place = exposure if at_end else exposure * (number + 0.5) / count
    reads = [warp_backward(frames, place * flow, border="edge")[0] for flow in (flow_next, flow_prev)]
    return (reads[0] + reads[1]) / (2 * count)


def _tap(exposure: float, number: jax.Array, padded: Image, flow_next: Flow, flow_prev: Flow) -> jax.Array:
    """One tap of all pixels' kernels: its weights times the shifted frame."""
    table = jnp.asarray(line_kernel_table(exposure))
    side = table.shape[-1]
    row, column = number // side, number % side
    tap = jax.lax.dynamic_slice(table, (0, 0, row, column), (*table.shape[:2], 1, 1))[:, :, 0, 0]
    weights = (_between(tap, flow_next) + _between(tap, flow_prev)) / 2
    batch, height, width, _ = flow_next.shape
    shifted = jax.lax.dynamic_slice(padded, (0, row, column, 0), (batch, height, width, padded.shape[-1]))
    return weights[..., None] * shifted

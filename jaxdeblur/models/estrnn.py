"""ESTRNN: a recurrent cell on every frame, and a frame restored from its own and its neighbours' features.

Inputs: gamma-encoded RGB, [0, 1]; inside, BGR less 0.5. Output: the frame, predicted itself and not as a residual,
unbounded.

Stages, n features:
  1. The cell, once a frame. Convolutions and dense blocks bring the frame down to a quarter of the resolution (4 n
     channels), where the state of the frame before (n) is joined; a chain of dense blocks, all of whose results are
     read at the end, makes the features h (5 n), and of these the next state is made.
  2. The fusion, of h of the frame and its neighbours in time. A gate between 0 and 1 for every channel of the pair
     (frame, neighbour) is made of their means over all pixels; what passes the gates is condensed to 5 n channels,
     and all neighbours and the frame itself are mixed.
  3. The reconstructor: two transposed convolutions and one of 5 x 5.

Conventions: GELU, the exact one, stands behind the dense layers and inside the gate and nowhere else; there is no
normalisation. Strided convolutions pad both sides alike. The first state is zero. Height and width are multiples of 4;
`restore` repeats the edge, the released code pads nothing and takes no other sizes. The gates see the whole frame, so
that padding and tiles have an effect everywhere. Two frames late with the published two neighbours on either side.
Parameters: 2,467,931 with 16 features and 15 blocks (the published C80B15: 80 = 5 n). By options: C80B9 1,763,387
(blocks=9), C90B10 2,379,531 (features=18, blocks=10), C90B15 3,122,481 (features=18).

Between the gates and the reconstructor everything is linear, so that for given gates the fusion is one matrix, from the
features of the window to what the reconstructor reads. This matrix is multiplied out for every frame, which for C80B15
takes 30 million products whatever the frame's size; then a pixel at a quarter of the resolution takes 160,000 and not
620,800, for the whole network 154 GMAC a frame of 1280 x 720 and not 181. Values differ by rounding alone.

Papers: Zhong, Gao, Zheng, Zheng, "Efficient Spatio-Temporal Recurrent Neural Network for Video Deblurring", ECCV 2020;
Zhong, Gao, Zheng, Zheng, Sato, "Real-World Video Deblurring", IJCV 2023. The network is that of zzh-tech/ESTRNN. It
differs from the released code in:
  - the ends of a clip: there the first and last two frames are not restored. Here copies of an end frame go through
    the cell in their place; scores should leave these frames out. `unroll` is the released forward pass;
  - long videos: the released tool restores windows of 20 frames, each from the zero state, see `restore_by_windows`.
    Here the state goes on. Training has clips of 8 frames, and that states stay sound over thousands is not known.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur.compilation import jit
from jaxdeblur.layers.conv import DIMENSIONS, Conv, ConvTranspose, product_precision
from jaxdeblur.models.dbn import stretched_difference
from jaxdeblur.models.windows import check_window, frame_numbers
from jaxdeblur.ops.resample import resize_bilinear
from jaxdeblur.types import Array, BeyondEnds, Border, Clip, Features, Image, Variables

SIZE_MULTIPLE = 4
DENSE_LAYERS = 3
WINDOW_FRAMES = 20
"""Of the released tool, see `restore_by_windows`."""
_CENTRE = 0.5


@dataclasses.dataclass(frozen=True)
class ESTRNNConfig:
    """Sizes and switches.

    Attributes:
        features: n; a frame's features have 5 n channels, which is what published names count ("C80").
        blocks: dense blocks in the cell's chain ("B15").
        past, future: neighbours that a frame is restored from.
        compute_dtype: of the convolutions, the state, the features and the fused ones: "float32", "bfloat16" or
            "float16". Parameters, the gates, the fusion's matrix and the restored frame are float32 in all three.
    """

    features: int = 16
    blocks: int = 15
    past: int = 2
    future: int = 2
    compute_dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def __post_init__(self) -> None:
        for field, least in (("features", 1), ("blocks", 1), ("past", 0), ("future", 0)):
            if getattr(self, field) < least:
                raise ValueError(f"{field} is {getattr(self, field)}; expected {least} or more")
        if self.past + self.future < 1:
            raise ValueError("past and future are both 0; expected at least one neighbour to fuse a frame with")
        if self.compute_dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"compute_dtype is {self.compute_dtype!r}; expected float32, bfloat16 or float16")

    @property
    def frames(self) -> int:
        """K, of a window."""
        return self.past + 1 + self.future

    @property
    def channels(self) -> int:
        """Of a frame's features: 5 n."""
        return 5 * self.features

    @property
    def dtype(self) -> Any:
        return jnp.dtype(self.compute_dtype)


@flax.struct.dataclass
class ESTRNNCarry:
    """What one frame hands to the next. Fields are arrays, or what JAX puts in their place: shapes, shardings."""

    state: Any  # (B, H/4, W/4, n), behind the newest frame that was seen
    features: Any  # (B, H/4, W/4, (K - 1) 5 n), of the newest K - 1 frames, the oldest first


class ESTRNNOutputs(NamedTuple):
    """What a frame yields."""

    restored: Image  # (B, H, W, 3), not clamped
    fused: Features  # (B, H/4, W/4, K 5 n)


class DenseWeights(NamedTuple):
    """Of a dense block. The three layers' kernels are sorted by what they read: those that read the same are one, so
    that it is read once and nothing is joined in between. Measured on a CPU, a fifth of the time less, with gradients
    two fifths."""

    kernels: tuple[Array, ...]  # (3, 3, c, 3 g) of the input, (3, 3, g, 2 g) of the first layer's result, (3, 3, g, g)
    bias: Array  # (3 g,)
    join_kernel: Array  # (1, 1, c + 3 g, c)
    join_bias: Array  # (c,)


class ESTRNN(nn.Module):
    """See the head of this file. `step` restores one frame of a stream, calling it restores clips, `unroll` is the
    released forward pass. A window has K = past + 1 + future frames."""

    config: ESTRNNConfig = ESTRNNConfig()

    # In training a window has at most three frames before it.
    memory_frames: ClassVar[int] = 3
    beyond_ends: ClassVar[BeyondEnds] = "repeat"
    size_multiple: ClassVar[int] = SIZE_MULTIPLE
    padding: ClassVar[Border] = "edge"

    def setup(self) -> None:
        self.cell = Cell(self.config)
        self.fusion = Fusion(self.config)
        self.reconstructor = Reconstructor(self.config)

    @property
    def past_frames(self) -> int:
        return self.config.past

    @property
    def future_frames(self) -> int:
        return self.config.future

    def start(self, window: Clip) -> ESTRNNCarry:
        """The carry before the first frame: the cell has seen all of its window (B, K, H, W, 3) but the newest
        frame."""
        check_window(window, self.config.frames, SIZE_MULTIPLE)
        state, features = self._see(window[:, :-1], remat=False)
        return ESTRNNCarry(state, _side_by_side(features))

    def step(self, carry: ESTRNNCarry, window: Clip) -> tuple[ESTRNNCarry, ESTRNNOutputs]:
        """Restores frame `past` of a window.

        Args:
            carry: of the frame before, or `start`.
            window: (B, K, H, W, 3), of which only the newest frame is read.
        """
        check_window(window, self.config.frames, SIZE_MULTIPLE)
        features, state = self.cell(self._inside(window[:, -1]), carry.state)
        joined, outputs = self._restore(carry.features, features)
        return ESTRNNCarry(state, joined[..., self.config.channels :]), outputs

    def __call__(self, clip: Clip, *, remat: bool = False) -> Clip:
        """Restores whole clips, (B, T, H, W, 3) -> the same; not clamped. End frames are repeated through the cell;
        remat as for `unroll`."""
        if clip.ndim != 5 or clip.shape[-1] != 3:
            raise ValueError(f"clip has shape {clip.shape}; expected (batch, time, height, width, 3)")
        if self.is_initializing():  # one frame makes every parameter; more would only cost time
            features, _ = self.cell(self._inside(clip[:, 0]), self._zero_state(clip))
            self._restore(jnp.concatenate((self.config.frames - 1) * [features], axis=-1), features)
            return clip
        numbers = frame_numbers(clip.shape[1], self.past_frames, self.future_frames, self.beyond_ends)
        return self.unroll(jnp.take(clip, numbers, axis=1), remat=remat)

    def unroll(self, clip: Clip, *, remat: bool = False) -> Clip:
        """Restores those frames of clips that have whole windows, from the zero state.

        The cell runs over all frames in one loop, what makes frames of its features in another. `step` in a loop would
        begin with a loop of the cell, so that the cell would be compiled twice; here all features are there at once,
        which takes less than twice what the clip does.

        Args:
            clip: (B, past + T + future, H, W, 3), T of 1 or more.
            remat: gradients compute the inside of a frame anew instead of keeping it: a third more work, for memory
                that hardly grows with T.
        Returns:
            (B, T, H, W, 3), not clamped.
        """
        frames, channels = self.config.frames, self.config.channels
        if clip.ndim != 5 or clip.shape[1] < frames:
            raise ValueError(f"clip has shape {clip.shape}; expected (batch, {frames} or more, height, width, 3)")
        check_window(clip[:, :frames], frames, SIZE_MULTIPLE)

        def body(model: "ESTRNN", before: Features, features: Features) -> tuple[Features, Image]:
            joined, outputs = model._restore(before, features)
            return joined[..., channels:], outputs.restored

        features = self._see(clip, remat=remat)[1]
        before = _side_by_side(features[: frames - 1])
        restored = _loop(self, body, before, features[frames - 1 :], remat=remat)[1]
        return jnp.moveaxis(restored, 0, 1)

    def explain(self, carry: ESTRNNCarry, window: Clip) -> dict[str, Image]:
        """Pictures of how a frame comes about, (B, H, W, 3) in [0, 1] by name: how much is taken of the features of
        each neighbour, behind its gates (root mean square over channels, all on one scale), and the difference as for
        DBN."""
        cfg = self.config
        after, outputs = self.step(carry, window)
        joined = jnp.concatenate([carry.features, after.features[..., -cfg.channels :]], axis=-1)
        taken = jnp.sqrt(jnp.mean(jnp.square(self.fusion.taken(joined)), axis=-1, keepdims=True))
        taken = taken / jnp.maximum(jnp.max(taken, axis=(1, 2, 3, 4), keepdims=True), 1e-6)
        blurred = window[:, cfg.past]
        height, width = blurred.shape[1:3]
        pictures = {"blurred": blurred}
        for number, offset in enumerate(t for t in range(-cfg.past, cfg.future + 1) if t):
            grey = resize_bilinear(taken[:, number], height, width, align_corners=False)
            pictures[f"taken of frame {offset:+d}"] = jnp.repeat(grey, 3, axis=-1)
        difference = stretched_difference(outputs.restored, blurred)
        return pictures | {"difference": difference, "restored": outputs.restored}

    def _see(self, clip: Clip, *, remat: bool) -> tuple[Features, Features]:
        """(B, T, H, W, 3) -> the state behind the last frame, and the features of all (T, B, H/4, W/4, 5 n)."""

        def body(model: "ESTRNN", state: Features, frame: Image) -> tuple[Features, Features]:
            features, state = model.cell(model._inside(frame), state)
            return state, features

        return _loop(self, body, self._zero_state(clip), jnp.moveaxis(clip, 1, 0), remat=remat)

    def _restore(self, before: Features, features: Features) -> tuple[Features, ESTRNNOutputs]:
        """The features of a window joined, (B, H/4, W/4, K 5 n), and what comes of them."""
        joined = jnp.concatenate([before, features], axis=-1)
        fused = self.fusion(joined)
        return joined, ESTRNNOutputs(self.reconstructor(fused)[..., ::-1] + _CENTRE, fused)

    def _inside(self, frame: Image) -> Features:
        """As the cell sees it: BGR, in [-0.5, 0.5]."""
        return (jnp.asarray(frame, jnp.float32)[..., ::-1] - _CENTRE).astype(self.config.dtype)

    def _zero_state(self, clip: Clip) -> Features:
        batch, _, height, width, _ = clip.shape
        return jnp.zeros((batch, height // 4, width // 4, self.config.features), self.config.dtype)


class Cell(nn.Module):
    """A frame (B, H, W, 3) and the state (B, H/4, W/4, n) -> its features (B, H/4, W/4, 5 n) and the next state.

    What is at half the resolution (2 n channels) and what is joined to the state (4 n) are sown into "intermediates" as
    "down1" and "down2".
    """

    config: ESTRNNConfig

    @nn.compact
    def __call__(self, frame: Features, state: Features) -> tuple[Features, Features]:
        n, dtype = self.config.features, self.config.dtype
        x = _conv("in_conv", frame, n, 5, dtype)
        for name, channels, growth in (("down1", n, n), ("down2", 2 * n, 3 * n // 2)):
            x = dense_block(x, _DenseBlock(channels, growth, dtype, name=f"{name}_block")())
            x = _conv(f"{name}_conv", x, 2 * channels, 5, dtype, strides=2)
            self.sow("intermediates", name, x)
        features = self._chain(jnp.concatenate([x, state], axis=-1))
        features = _conv("features_conv", features, 5 * n, 3, dtype)
        state = _conv("state_conv1", features, n, 3, dtype)
        state = dense_block(state, _DenseBlock(n, n, dtype, name="state_block")())
        return features, _conv("state_conv2", state, n, 3, dtype)

    def _chain(self, x: Features) -> Features:
        """Dense blocks one after the other, and a 1 x 1 convolution of the results of all. A loop, since all blocks are
        the same program: written out, each would be compiled anew."""
        blocks, channels, dtype = self.config.blocks, self.config.channels, self.config.dtype
        weights = [
            _DenseBlock(channels, 2 * self.config.features, dtype, name=f"block_{b}")() for b in range(1, blocks + 1)
        ]
        kernel, bias = _Weights((blocks * channels, channels), name="join")()

        def body(carry: tuple[Features, Features], of_block: Any) -> tuple[tuple[Features, Features], None]:
            x, total = carry
            block, kernel = of_block
            x = dense_block(x, block)
            return (x, total + _product("bhwi,io->bhwo", x, kernel)), None

        stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *weights)
        kernels = kernel.reshape(blocks, channels, channels).astype(dtype)
        total = jnp.zeros(x.shape, jnp.float32)
        (_, total), _ = jax.lax.scan(body, (x, total), (stacked, kernels))
        return (total + _last(bias, total)).astype(dtype)


class Fusion(nn.Module):
    """The features of a window, (B, h, w, K 5 n), the oldest first -> the fused ones, of the same shape."""

    config: ESTRNNConfig

    def setup(self) -> None:
        pair = 2 * self.config.channels
        self.gate1 = _Weights((pair, 2 * pair))
        self.gate2 = _Weights((2 * pair, pair))
        self.project1 = _Weights((pair, 2 * pair))
        self.project2 = _Weights((2 * pair, pair))
        self.condense = _Weights((pair, self.config.channels))
        self.mix = _Weights((self.config.frames * self.config.channels,) * 2)

    def __call__(self, joined: Features) -> Features:
        cfg = self.config
        kernels, biases = self._of_pairs(joined)
        mix_kernel, mix_bias = self.mix()
        mix = mix_kernel.reshape(cfg.frames, cfg.channels, -1)  # the neighbours in order, then the frame
        kernels = _product("bkio,kod->bkid", kernels, mix[:-1])
        bias = _product("bko,kod->bd", biases, mix[:-1]) + _last(mix_bias, biases[:, 0])
        of_frame = jnp.sum(kernels[:, :, : cfg.channels], axis=1, keepdims=True) + mix[None, -1:]
        of_neighbours = kernels[:, :, cfg.channels :]
        kernel = jnp.concatenate([of_neighbours[:, : cfg.past], of_frame, of_neighbours[:, cfg.past :]], axis=1)
        kernel = kernel.reshape(len(kernel), -1, joined.shape[-1]).astype(joined.dtype)
        return (_product("bhwi,bid->bhwd", joined, kernel) + bias[:, None, None]).astype(joined.dtype)

    def taken(self, joined: Features) -> Features:
        """What is taken of each neighbour, (B, K - 1, h, w, 5 n) float32: the gated and condensed features of the
        pair."""
        kernels, biases = self._of_pairs(joined)
        pairs = _pairs(jnp.moveaxis(_by_frame(joined, self.config), -2, 1), self.config)
        return _product("bkhwi,bkio->bkhwo", pairs, kernels.astype(joined.dtype)) + biases[:, :, None, None]

    def _of_pairs(self, joined: Features) -> tuple[Array, Array]:
        """For each neighbour the kernel (B, K - 1, 10 n, 5 n) and bias (B, K - 1, 5 n) that projection, gates and
        condensing come to, on (frame, neighbour)."""
        means = jnp.mean(joined.astype(jnp.float32), axis=(1, 2))
        pairs = _pairs(_by_frame(means, self.config), self.config)
        (kernel_1, bias_1), (kernel_2, bias_2) = self.gate1(), self.gate2()
        hidden = nn.gelu(_product("bki,io->bko", pairs, kernel_1) + _last(bias_1, pairs), approximate=False)
        gates = nn.sigmoid(_product("bki,io->bko", hidden, kernel_2) + _last(bias_2, pairs))

        (kernel_1, bias_1), (kernel_2, bias_2) = self.project1(), self.project2()
        projection = _product("ih,hj->ij", kernel_1, kernel_2)
        bias = _product("h,hj->j", bias_1, kernel_2) + bias_2
        condense_kernel, condense_bias = self.condense()
        condense = gates[..., None] * condense_kernel[None, None]
        biases = _product("j,bkjo->bko", bias, condense)
        return _product("ij,bkjo->bkio", projection, condense), biases + _last(condense_bias, biases)


class Reconstructor(nn.Module):
    """(B, h, w, K 5 n) -> (B, 4 h, 4 w, 3) float32, as the cell sees frames. What is at half the resolution is sown
    into "intermediates" as "half"."""

    config: ESTRNNConfig

    @nn.compact
    def __call__(self, fused: Features) -> Features:
        n, dtype = self.config.features, self.config.dtype
        x = fused
        for name, channels in (("up1", 2 * n), ("up2", n)):
            initial = _uniform(9 * channels)  # PyTorch counts the outputs of transposed convolutions
            x = ConvTranspose(channels, 3, kernel_init=initial, bias_init=initial, dtype=dtype, name=name)(x)
            if name == "up1":
                self.sow("intermediates", "half", x)
        return _conv("out_conv", x, 3, 5, dtype).astype(jnp.float32)


def restore_by_windows(
    model: ESTRNN,
    variables: Variables,
    clip: Clip,
    *,
    window_frames: int = WINDOW_FRAMES,
    overlaps: Literal["earlier", "later"] = "earlier",
) -> Clip:
    """Restores clips as the released tool does: window by window, each from the zero state.

    A window begins past + future frames before the end of the one before it; the last one is moved back to end where
    the clip does.

    Args:
        clip: (B, past + T + future, H, W, 3) in [0, 1]; H and W multiples of 4.
        window_frames: of a window; the released tool has 20. Shorter clips are one window.
        overlaps: of frames that two windows restore: "earlier", what the released scores count, or "later", what the
            released tool leaves in its files.
    Returns:
        (B, T, H, W, 3), not clamped: all frames but the first `past` and the last `future`.
    Raises:
        ValueError: the window or the clip is too short, or `overlaps` is another.
    """
    frames, end = model.config.frames, clip.shape[1]
    if window_frames < frames or end < frames:
        raise ValueError(
            f"the clip has {end} frames and window_frames is {window_frames}; expected {frames} or more of both, "
            f"{model.past_frames} past and {model.future_frames} future frames among them"
        )
    if overlaps not in ("earlier", "later"):
        raise ValueError(f"overlaps is {overlaps!r}; expected 'earlier' or 'later'")
    restored: dict[int, Image] = {}
    for first, last in window_spans(end, window_frames, frames - 1):
        for offset, image in enumerate(jnp.unstack(_unroll(model, variables, clip[:, first:last]), axis=1)):
            if overlaps == "later" or first + offset not in restored:
                restored[first + offset] = image
    return jnp.stack([restored[number] for number in sorted(restored)], axis=1)


def window_spans(count: int, window_frames: int, overlap: int) -> list[tuple[int, int]]:
    """First frame and end of each of the released tool's windows over `count` frames."""
    spans = [(0, min(window_frames, count))]
    while spans[-1][1] < count:
        end = min(spans[-1][1] - overlap + window_frames, count)
        spans.append((end - window_frames, end))
    return spans


@jit(static_argnames=("model",))
def _unroll(model: ESTRNN, variables: Variables, clip: Clip) -> Clip:
    return model.apply(variables, clip, method="unroll")


def dense_block(x: Features, weights: DenseWeights) -> Features:
    """x and a 1 x 1 convolution of it and three layers, each of which reads all before it."""
    growth = weights.kernels[-1].shape[-1]
    read = [x]
    total = _last(weights.bias, x)
    for kernel in weights.kernels:
        total = total + _convolved(read[-1], kernel)
        read.append(nn.gelu(total[..., :growth], approximate=False))
        total = total[..., growth:]
    return x + _convolved(jnp.concatenate(read, axis=-1), weights.join_kernel) + _last(weights.join_bias, x)


class _DenseBlock(nn.Module):
    """The weights of a dense block, of the type it computes in."""

    channels: int
    growth: int
    dtype: Any

    @nn.compact
    def __call__(self) -> DenseWeights:
        c, g = self.channels, self.growth
        kernels, biases = zip(
            *(_Weights((3, 3, c + i * g, g), name=f"dense{i + 1}")() for i in range(DENSE_LAYERS)), strict=True
        )
        join_kernel, join_bias = _Weights((1, 1, c + DENSE_LAYERS * g, c), name="join")()
        ends = [0, *(c + i * g for i in range(DENSE_LAYERS))]
        by_source = tuple(
            jnp.concatenate([kernel[:, :, first:end] for kernel in kernels[i:]], axis=-1)
            for i, (first, end) in enumerate(itertools.pairwise(ends))
        )
        weights = DenseWeights(by_source, jnp.concatenate(biases), join_kernel, join_bias)
        return jax.tree.map(lambda array: array.astype(self.dtype), weights)


class _Weights(nn.Module):
    """A kernel, of which the last axis counts the outputs, and a bias."""

    kernel_shape: tuple[int, ...]

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        initial = _uniform(int(np.prod(self.kernel_shape[:-1])))
        kernel = self.param("kernel", initial, self.kernel_shape, jnp.float32)
        return kernel, self.param("bias", initial, self.kernel_shape[-1:], jnp.float32)


def _uniform(fan_in: int) -> Callable[..., jax.Array]:
    """PyTorch's initial weights and biases: uniform in +-1 / sqrt(fan-in)."""

    def values(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    return values


def _conv(name: str, x: Features, features: int, kernel_size: int, dtype: Any, *, strides: int = 1) -> Features:
    """Call within a compact method."""
    initial = _uniform(kernel_size**2 * x.shape[-1])
    return Conv(features, kernel_size, strides, kernel_init=initial, bias_init=initial, dtype=dtype, name=name)(x)


def _convolved(x: Features, kernel: Array) -> Features:
    padding = [(size // 2, size // 2) for size in kernel.shape[:2]]
    precision = product_precision(x.dtype)
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=DIMENSIONS, precision=precision)


def _product(axes: str, *factors: Array) -> Array:
    """einsum, summed in float32."""
    return jnp.einsum(axes, *factors, precision=product_precision(factors[0].dtype), preferred_element_type=jnp.float32)


def _last(values: Array, x: Array) -> Array:
    """A value a channel, (C,), shaped so that it meets x's last axis."""
    return values.reshape((1,) * (x.ndim - 1) + (-1,))


def _side_by_side(features: Array) -> Array:
    """(T, B, h, w, c) -> (B, h, w, T c)."""
    time, batch, height, width, channels = features.shape
    return jnp.moveaxis(features, 0, -2).reshape(batch, height, width, time * channels)


def _by_frame(joined: Array, config: ESTRNNConfig) -> Array:
    """(..., K 5 n) -> (..., K, 5 n)."""
    return joined.reshape(*joined.shape[:-1], config.frames, config.channels)


def _pairs(each: Array, config: ESTRNNConfig) -> Array:
    """Of each frame of a window (B, K, ..., 5 n) -> of each neighbour (B, K - 1, ..., 10 n): the frame's own and the
    neighbour's."""
    neighbours = jnp.concatenate([each[:, : config.past], each[:, config.past + 1 :]], axis=1)
    own = jnp.broadcast_to(each[:, config.past : config.past + 1], neighbours.shape)
    return jnp.concatenate([own, neighbours], axis=-1)


def _loop(
    model: ESTRNN, body: Callable[..., tuple[Features, Features]], carry: Features, xs: Features, *, remat: bool
) -> tuple[Features, Features]:
    """jax.lax.scan over `body`(model, carry, x) -> (carry, y); Flax's own does not come through conversion to ONNX."""
    alone, variables = model.unbind()

    def turn(carry: Features, x: Features) -> tuple[Features, Features]:
        return nn.apply(lambda model: body(model, carry, x), alone)(variables)  # type: ignore[no-any-return]

    return jax.lax.scan(jax.checkpoint(turn, prevent_cse=False) if remat else turn, carry, xs)

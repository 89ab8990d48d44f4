"""What SVRNN is trained on: a squared error and, for the flow inside, how well it brings the next frame to this one.

Zhang et al. (TCSVT 2021). Sums over pixels and channels, not means: a coarser flow weighs less by its number of pixels.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxdeblur.losses.pixel import summed_squared_error
from jaxdeblur.models.svrnn import FINEST_FLOW, SVRNN
from jaxdeblur.ops.resample import downsample_area, downsample_tent
from jaxdeblur.ops.warp import points_inside, warp_backward
from jaxdeblur.types import Batch, Flow, Image, PyTree, Scalars


@dataclasses.dataclass(frozen=True)
class SVRNNObjective:
    """1/2 |restored - sharp|^2 + 1/2 sum over scales s of |W(next_s, flow_s) - blurred_s|^2, a mean over examples.

    The paper leaves out the halves, which the released code has; they change nothing but the size of the gradients.

    Attributes:
        flow_loss: False leaves the second term out (a row of Table IV).
        downsampling: to the flows' grids. "area": means of 2^s x 2^s pixels, of both frames. "released": tents for the
            next frame and antialiased bicubic for the current one, whose grids lie up to half a coarse pixel apart. At
            the borders MATLAB's bicubic mirrors the frame, ours weighs what is inside.
        frozen_biases: those of transposed convolutions and of the decoder's convolutions behind them stay as they are,
            as in the released recipe.
    """

    model: SVRNN
    flow_loss: bool = True
    downsampling: Literal["area", "released"] = "area"
    frozen_biases: bool = False

    groups = ("total",)
    updates_per_batch = 1

    def __post_init__(self) -> None:
        if self.downsampling not in ("area", "released"):
            raise ValueError(f"objective.downsampling is {self.downsampling!r}; expected 'area' or 'released'")
        config = self.model.config
        if self.flow_loss and (config.recurrence == "none" or config.sees == "current"):
            raise ValueError(
                "there is no flow to the next frame to train where the network does not see one (model.sees='current') "
                "or has no flow network (model.recurrence='none'): set objective.flow_loss=False"
            )

    @property
    def past_frames(self) -> int:
        return self.model.past_frames

    @property
    def future_frames(self) -> int:
        return self.model.future_frames

    def learning_rate_name(self, group: str, path: tuple[str, ...]) -> str | None:
        del group  # there is one
        *layers, kind = path
        if self.frozen_biases and kind == "bias" and any("deconv" in layer or "upsampled" in layer for layer in layers):
            return None
        return "all"

    def prepare(self, batch: Batch, frozen: PyTree) -> dict[str, jax.Array]:
        """Windows (N, past + 1 + future, H, W, 3) and their sharp frames (N, H, W, 3), N = B T."""
        del frozen
        blurred, sharp = jnp.asarray(batch["blurred"]), jnp.asarray(batch["sharp"])
        frames = self.past_frames + 1 + self.future_frames
        windows = jnp.stack([blurred[:, i : i + sharp.shape[1]] for i in range(frames)], axis=2)
        return {"windows": windows.reshape(-1, *windows.shape[2:]), "sharp": sharp.reshape(-1, *sharp.shape[2:])}

    def init_carry(self, prepared: PyTree) -> PyTree:
        return ()

    def losses(
        self,
        params: PyTree,
        statistics: PyTree,
        prepared: dict[str, jax.Array],
        carry: PyTree,
        t: jax.Array,
        key: jax.Array,
    ) -> tuple[dict[str, jax.Array], PyTree, PyTree, dict[str, jax.Array]]:
        del t, key  # one update a batch, nothing random
        terms = {name: jnp.mean(values) for name, values in self.terms(params, prepared).items()}
        return {"total": sum(terms.values(), start=jnp.zeros(()))}, statistics, carry, terms

    def terms(self, params: PyTree, prepared: dict[str, jax.Array]) -> dict[str, Scalars]:
        """The loss's parts, (N,) each: "deblur", and "flow_2" to "flow_6" for the flows at 1/4 to 1/64 (to both
        neighbours, where both are seen)."""
        model: Any = self.model
        windows, sharp = prepared["windows"], prepared["sharp"]
        outputs = model.apply({"params": params}, windows, method="restore_window")
        terms = {"deblur": summed_squared_error(outputs.restored, sharp) / 2}
        if not self.flow_loss:
            return terms
        current = windows[:, self.past_frames]
        for flows, neighbour in (
            (outputs.flows_cur_to_next, windows[:, -1]),
            (outputs.flows_cur_to_prev, windows[:, 0]),
        ):
            for level, flow in enumerate(flows or (), start=FINEST_FLOW):
                name = f"flow_{level}"
                terms[name] = terms.get(name, 0.0) + self._alignment_error(flow, current, neighbour, 2**level) / 2
        return terms

    def _alignment_error(self, flow_cur_to_other: Flow, current: Image, other: Image, factor: int) -> Scalars:
        if self.downsampling == "area":
            current, other = downsample_area(current, factor), downsample_area(other, factor)
        else:
            size = (*current.shape[:-3], *flow_cur_to_other.shape[-3:-1], 3)
            current = jax.image.resize(current, size, "cubic", antialias=True)
            other = downsample_tent(other, factor)
        # The images are what is compared: what a network inside them might gain by changing them is none of its loss.
        current, other = jax.lax.stop_gradient((current, other))
        return summed_squared_error(warp_or_black(other, flow_cur_to_other), current)


def warp_or_black(image_0: Image, flow_1to0: Flow) -> Image:
    """frame_0on1, zero wherever the flow points out of [0, W) x [0, H); from there no gradient comes.

    A position beyond the last pixel's centre, but inside, reads the last pixel.
    """
    frame_0on1, _ = warp_backward(image_0, flow_1to0, border="edge")
    return jnp.where(points_inside(flow_1to0)[..., None], frame_0on1, jnp.zeros((), frame_0on1.dtype))

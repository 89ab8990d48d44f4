"""The windows of frames that models read, models that keep nothing from window to window, and any model on part of a
clip."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdeblur.types import BeyondEnds, Clip, PyTree, Variables


def frame_numbers(count: int, past: int, future: int, beyond_ends: BeyondEnds) -> np.ndarray:
    """Numbers of the frames that stand at -past .. count - 1 + future of a clip of `count`; for what stands beyond its
    ends see data.clips.frame_windows."""
    if beyond_ends == "repeat":
        return np.clip(np.arange(-past, count + future), 0, count - 1)
    before = [0 if number % 2 == 0 else min(1, count - 1) for number in range(past, 0, -1)]
    after = [count - 1 if number % 2 == 0 else max(count - 2, 0) for number in range(1, future + 1)]
    return np.array([*before, *range(count), *after])


def clip_windows(clip: Clip, *, past: int = 2, future: int = 2, beyond_ends: BeyondEnds = "repeat") -> Clip:
    """(B, T, H, W, C) -> (B, T, past + 1 + future, H, W, C): each frame with its neighbours."""
    time = clip.shape[1]
    numbers = frame_numbers(time, past, future, beyond_ends)
    return jnp.take(clip, numbers[np.arange(time)[:, None] + np.arange(past + 1 + future)], axis=1)


def check_window(window: Clip, frames: int, multiple: int) -> None:
    """Raises ValueError unless a window has so many frames, of a size that is a multiple."""
    if window.ndim != 5 or window.shape[1] != frames or window.shape[-1] != 3:
        raise ValueError(f"window has shape {window.shape}; expected (batch, {frames}, height, width, 3)")
    if window.shape[2] % multiple or window.shape[3] % multiple:
        raise ValueError(
            f"height and width are {window.shape[2]} x {window.shape[3]}; expected multiples of {multiple}: use "
            "pad_to_multiple, or restore(), which does it"
        )


def restore_all_windows(model: Any, clip: Clip) -> Clip:
    """What a model without memory (`restore_window`) makes of every frame of a clip (B, T, H, W, 3), in one batch."""
    if clip.ndim != 5 or clip.shape[-1] != 3:
        raise ValueError(f"clip has shape {clip.shape}; expected (batch, time, height, width, 3)")
    windows = clip_windows(clip, past=model.past_frames, future=model.future_frames, beyond_ends=model.beyond_ends)
    if model.is_initializing():  # one frame makes every parameter
        windows = windows[:, :1]
    restored = model.restore_window(windows.reshape(-1, *windows.shape[2:])).restored
    return jnp.broadcast_to(restored.reshape(len(clip), -1, *restored.shape[1:]), clip.shape)


def memory_frames(model: Any) -> int:
    """After how many frames a model goes on much as if it had been run from the beginning; 0 for those without a
    memory."""
    return getattr(model, "memory_frames", 0)


def tile_multiple(model: Any) -> int:
    """What sides of tiles are to be multiples of, lest a network that fills frames up by itself does so with each:
    `size_multiple`, unless the model says otherwise."""
    return getattr(model, "tile_multiple", model.size_multiple)


def restore_consecutive(
    model: Any, variables: Variables, clip: Clip, *, count: int, train: bool = False
) -> tuple[Clip, PyTree]:
    """Restores the last `count` frames that have their whole windows in a clip, with any deblurring model.

    Args:
        clip: (B, past + n + future, H, W, 3), n no less than count. A model with a memory runs through the first
            n - count frames to fill it.
        train: batch normalisation by the batch's own statistics.
    Returns:
        (B, count, H, W, 3), not clamped, and the running statistics, moved where `train`; {} for models without.
    """
    statistics = variables.get("batch_stats", {})
    size = model.past_frames + 1 + model.future_frames
    windows = [clip[:, t : t + size] for t in range(clip.shape[1] - size + 1)]
    if not 1 <= count <= len(windows):
        raise ValueError(
            f"{clip.shape[1]} frames hold {len(windows)} whole windows of {size}; expected {count} or more"
        )
    if hasattr(model, "restore_window"):  # frame by frame, all at once
        batch = jnp.stack(windows[-count:], axis=1)  # so that every device keeps its own clips
        batch = batch.reshape(-1, *batch.shape[2:])
        if train and statistics:
            outputs, moved = model.apply(variables, batch, train=True, method="restore_window", mutable=["batch_stats"])
            statistics = moved["batch_stats"]
        else:
            outputs = model.apply(variables, batch, method="restore_window")
        return outputs.restored.reshape(len(clip), count, *outputs.restored.shape[1:]), statistics
    carry, restored = model.apply(variables, windows[0], method="start"), []
    for window in windows:
        carry, outputs = model.apply(variables, carry, window, method="step")
        restored.append(outputs.restored)
    return jnp.stack(restored[-count:], axis=1), statistics

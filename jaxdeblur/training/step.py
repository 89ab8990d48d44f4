"""The train step: the optimiser updates a batch gives, one compiled function called for each."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxdeblur.compilation import jit
from jaxdeblur.objectives import Objective
from jaxdeblur.training.loss_scale import LossScale, all_finite
from jaxdeblur.training.plateau import Plateau
from jaxdeblur.training.sharding import along_batch
from jaxdeblur.training.state import TrainState
from jaxdeblur.types import Batch, PyTree

Metrics = dict[str, jax.Array]
Scale = float | jax.Array


def make_train_step(
    objective: Objective,
    optimizers: dict[str, optax.GradientTransformation],
    *,
    ema_decay: float | None = None,
    microbatches: int = 1,
    loss_scale: float | LossScale = 1.0,
    plateau: Plateau | None = None,
    mesh: Mesh | None = None,
) -> Callable[[TrainState, Batch, PyTree], tuple[TrainState, Metrics]]:
    """Builds (state, batch, frozen variables) -> (state, metrics); the state is donated.

    Each metric has one value an update: every term the objective reports, `loss_<group>` and `gradient_norm_<group>`
    (over every parameter the loss reaches, before clipping).

    One update is one call of a jitted function, not an iteration of a compiled loop: inside a loop XLA's CPU backend
    computes gradients of convolutions some ten to fifty times slower, and an accelerator hides the calls behind the
    work.

    Args:
        optimizers: one for each of the objective's groups. The state may hold those of further groups: they, like
            parameters no group moves, stay as they are, bit for bit.
        ema_decay: decay a step of the parameters' moving average; None keeps none.
        microbatches: parts a batch is cut into, one after another, for lack of memory: gradients and metrics are their
            mean.
        loss_scale: losses are multiplied by it before the backward pass and gradients divided after: keeps small
            gradients from vanishing in float16 (1024, say), which the half-precision model was trained in. bfloat16
            and float32 need none. A `LossScale` follows what overflows: an update that is not finite then leaves all
            but the step, and the scale, as they were, and metrics say `skipped` (1) and the `loss_scale` after it.
        plateau: whose scale, of the state's plateaus, every update is multiplied by.
        mesh: the devices a batch is split over, so that each holds its own share of the carry; None for one device.
    """

    def split(tree: PyTree) -> PyTree:
        if mesh is None:
            return tree
        batch_axis = 0 if microbatches == 1 else 1
        return jax.tree.map(
            lambda x: jax.lax.with_sharding_constraint(
                x, along_batch(mesh, batch_axis if x.ndim > batch_axis else None)
            ),
            tree,
        )

    def whole(tree: PyTree) -> PyTree:
        return tree if mesh is None else jax.lax.with_sharding_constraint(tree, along_batch(mesh, None))

    def gradients(
        params: PyTree, statistics: PyTree, prepared: PyTree, carry: PyTree, t: jax.Array, key: jax.Array, scale: Scale
    ) -> tuple[dict[str, PyTree], PyTree, PyTree, Metrics]:
        # One linearisation, transposed once a group: the forward pass is shared, and a group's backward pass visits
        # only what its loss depends on. (Two calls of jax.grad repeat the forward pass: XLA does not merge them.)
        def all_losses(params: PyTree) -> tuple[dict[str, jax.Array], tuple[PyTree, PyTree, Metrics]]:
            losses, *rest = objective.losses(params, statistics, prepared, carry, t, key)
            return losses, tuple(rest)

        losses, tangent, (statistics_out, carry_out, terms) = jax.linearize(all_losses, params, has_aux=True)
        grads = {}
        for group in objective.groups:
            transpose = jax.linear_transpose(lambda p, group=group: tangent(p)[group], params)
            (scaled,) = transpose(jnp.full_like(losses[group], scale))
            grads[group] = jax.tree.map(lambda gradient: gradient / scale, scaled)
        metrics = {**terms, **{f"loss_{group}": losses[group] for group in objective.groups}}
        return grads, statistics_out, carry_out, metrics

    def accumulated(
        params: PyTree, statistics: PyTree, prepared: PyTree, carry: PyTree, t: jax.Array, key: jax.Array, scale: Scale
    ) -> tuple[dict[str, PyTree], PyTree, PyTree, Metrics]:
        if microbatches == 1:
            return gradients(params, statistics, prepared, carry, t, key, scale)

        def body(so_far: PyTree, part: tuple[PyTree, PyTree, jax.Array]) -> tuple[PyTree, PyTree]:
            total, statistics = so_far  # each part has statistics of its own and moves the running ones in turn
            grads, statistics, carry_out, metrics = gradients(params, statistics, part[0], part[1], t, part[2], scale)
            return (jax.tree.map(lambda a, b: a + b / microbatches, total, (grads, metrics)), statistics), carry_out

        part = jax.tree.map(lambda x: x[0], (prepared, carry))
        shapes = jax.eval_shape(lambda part: gradients(params, statistics, part[0], part[1], t, key, scale), part)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0], shapes[3]))
        # Unrolled for the reason given above.
        keys = jax.random.split(key, microbatches)  # what is random differs from part to part
        parts = (prepared, carry, keys)
        ((grads, metrics), statistics), carry = jax.lax.scan(body, (zeros, statistics), parts, unroll=True)
        return grads, statistics, carry, metrics

    @jit
    def begin(batch: Batch, frozen: PyTree) -> tuple[PyTree, PyTree]:
        prepared = objective.prepare(batch, frozen)
        carry = objective.init_carry(prepared)
        if microbatches > 1:
            prepared, carry = jax.tree.map(lambda x: _split(x, microbatches), (prepared, carry))
        return split(prepared), split(carry)

    @jit(donate_argnums=(0, 2))
    def update(state: TrainState, prepared: PyTree, carry: PyTree, t: jax.Array) -> tuple[TrainState, PyTree, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key_data), state.step)
        scale = state.loss_scale["scale"] if isinstance(loss_scale, LossScale) else loss_scale
        grads, statistics, carry_out, metrics = accumulated(
            state.params, state.statistics, prepared, carry, t, key, scale
        )
        params, optimizer = state.params, dict(state.optimizer)
        for group in objective.groups:
            metrics[f"gradient_norm_{group}"] = optax.tree.norm(grads[group])
            transformation = optimizers[group]
            updates, optimizer[group] = transformation.update(grads[group], state.optimizer[group], state.params)
            if plateau is not None:
                metrics["learning_rate_scale"] = plateau.scale(state.plateaus)
                updates = optax.tree.scale(metrics["learning_rate_scale"], updates)
            params = optax.apply_updates(params, updates)
        ema = state.ema
        if ema_decay is not None:
            ema = jax.tree.map(lambda mean, new: ema_decay * mean + (1 - ema_decay) * new, ema, params)
        memory = state.loss_scale
        if isinstance(loss_scale, LossScale):
            finite = all_finite((metrics, statistics, carry_out))  # a norm is finite where all gradients are
            memory = loss_scale.after(memory, finite)
            metrics |= {"skipped": (~finite).astype(jnp.float32), "loss_scale": memory["scale"]}
            before = state.params, state.optimizer, state.ema, state.statistics, carry
            after = params, optimizer, ema, statistics, carry_out
            params, optimizer, ema, statistics, carry_out = jax.tree.map(
                lambda new, old: jnp.where(finite, new, old), after, before
            )
        state = TrainState(state.step + 1, params, optimizer, ema, state.key_data, statistics, state.plateaus, memory)
        return whole(state), split(carry_out), whole(metrics)

    @jit
    def gather(metrics: list[Metrics]) -> Metrics:
        return jax.tree.map(lambda *values: jnp.stack(values), *metrics)

    def train_step(state: TrainState, batch: Batch, frozen: PyTree) -> tuple[TrainState, Metrics]:
        prepared, carry = begin(batch, frozen)
        metrics = []
        for t in range(objective.updates_per_batch):
            state, carry, values = update(state, prepared, carry, np.int32(t))
            metrics.append(values)
        return state, gather(metrics)

    return train_step


def _split(x: jax.Array, parts: int) -> jax.Array:
    """(B, ...) -> (parts, B / parts, ...); what has no batch axis is repeated. Example b goes to part b % parts, so
    that each device keeps the examples it holds."""
    if x.ndim == 0:
        return jnp.broadcast_to(x, (parts,))
    return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)

"""Trains a network: python train.py --config=configs/mtu.py [--workdir=runs/mtu] [--config.field=value ...]

A run that was stopped, however it was, goes on when the same command is given again.
"""

import dataclasses
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.experimental import multihost_utils
from ml_collections import config_flags

import jaxdeblur.config as parts
from jaxdeblur import run_command
from jaxdeblur.checkpoint import is_run_with_checkpoint
from jaxdeblur.data.own_files import replacing
from jaxdeblur.evaluation.pictures import stack, write_picture
from jaxdeblur.models import initial_variables
from jaxdeblur.objectives.reblur import ReblurObjective
from jaxdeblur.training import loop
from jaxdeblur.training.loss_scale import LossScale
from jaxdeblur.training.sharding import check_batch_size, make_mesh, replicate
from jaxdeblur.training.state import TrainState, init_state
from jaxdeblur.training.step import make_train_step

_CONFIG = run_command.define_config("the run, such as configs/mtu.py or configs/mtu.py:smoke")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run; by default runs/<config>[_<variant>]")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "join the other processes of a multi-host run first")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, where no cluster manager tells")
_PROCESSES = flags.DEFINE_integer("processes", None, "with --coordinator: how many processes take part")
_PROCESS = flags.DEFINE_integer("process", None, "with --coordinator: the number of this one, from 0")

logger = logging.getLogger("train")


def main(argv: list[str]) -> None:
    del argv  # there are none
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    for chatty in ("absl", "jax"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    if _DISTRIBUTED.value or _COORDINATOR.value:
        if "jax_enable_preemption_service" in jax.config.values:  # older versions have neither
            # It would swallow every SIGTERM before the loop is there to act on it.
            jax.config.update("jax_enable_preemption_service", False)
        # Without a coordinator: the cluster (SLURM, MPI, Kubernetes, TPU) says who is who.
        try:
            jax.distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
        except Exception as error:  # what is wrong with an address shows in many ways
            raise ValueError(
                f"the processes of the run do not find each other ({error}); --coordinator is HOST:PORT of process 0, "
                "--processes their number, and --process each one's own, from 0"
            ) from error
    run_command.check_devices()
    config = parts.resolve(_CONFIG.value)
    workdir = Path(_WORKDIR.value or default_workdir()).absolute()
    check_workdir(workdir, config)

    mesh = make_mesh()
    for part in (config.data, config.data.get("unlabelled", config.data)):
        check_batch_size(part.batch_size, mesh, config.training.microbatches)
    model = parts.build_model(config)
    turns = parts.build_turns(config, model)
    optimizers: dict[str, Any] = {}
    for objective in turns.objectives:
        optimizers |= parts.build_optimizers(config, objective)
    plateau = parts.build_plateau(config)
    loss_scale = parts.build_loss_scale(config)
    frozen = parts.load_frozen(config)
    started = None if is_run_with_checkpoint(workdir) else parts.load_initial(config, model)
    tuned = next((objective for objective in turns.objectives if isinstance(objective, ReblurObjective)), None)
    tuned_variables = parts.tuned_variables(config) if tuned is not None else None
    batches = parts.training_batches(config, turns, mesh)
    held_out_loss = parts.held_out_loss(config, turns, mesh) if plateau is not None else None
    reblur_error = parts.reblur_error(tuned, batches) if tuned is not None else None
    evaluations = [
        parts.build_evaluation(config, model, mesh, held_out="validation", task=task) for task in parts.tasks(model)
    ]
    frozen = replicate(frozen, mesh)

    open_workdir(workdir, config)
    logger.info("%s: %d devices, %s", workdir, mesh.devices.size, mesh.devices.flat[0].device_kind)
    if config.data.note:
        logger.warning("%s", config.data.note)

    init_key, run_key = jax.random.split(jax.random.key(config.seed))
    variables = tuned_variables or initial_variables(init_key, model)
    if started is not None:
        variables = {**variables, "params": parts.with_drawn(started, variables["params"])}
    plateaus = plateau.init(optimizers) if plateau is not None else None
    ema = config.training.ema_decay is not None
    scaling = loss_scale.init() if isinstance(loss_scale, LossScale) else None
    state = init_state(run_key, variables, optimizers, ema=ema, plateaus=plateaus, loss_scale=scaling)
    state = replicate(state, mesh)
    train_steps = {
        objective: make_train_step(
            objective,
            optimizers,
            ema_decay=config.training.ema_decay,
            microbatches=config.training.microbatches,
            loss_scale=loss_scale,
            plateau=plateau,
            mesh=mesh,
        )
        for objective in turns.objectives
    }

    def evaluate(state: TrainState) -> loop.Evaluation:
        variables = jax.tree.map(lambda x: x.addressable_data(0), state.variables)
        each = [evaluation.validate(variables) for evaluation in evaluations]
        metrics = {name: value for scores, _ in each for name, value in scores.items()}
        if held_out_loss is not None:
            (group,) = turns.at(int(state.step) - 1).groups
            metrics[f"held_out_loss_{group}"] = held_out_loss(state)
        if reblur_error is not None:
            metrics |= reblur_error(state)
        return metrics, stack([picture for _, picture in each])

    def after_validation(state: TrainState, metrics: dict[str, float]) -> TrainState:
        if plateau is None:
            return state
        (group,) = turns.at(int(state.step) - 1).groups
        plateaus = plateau.check(jax.device_get(state.plateaus), group, metrics[f"held_out_loss_{group}"])
        return dataclasses.replace(state, plateaus=replicate(plateaus, mesh))

    loop.train(
        state,
        lambda step: train_steps[turns.at(step)],
        batches,
        frozen=frozen,
        workdir=workdir,
        config=parts.to_json(config),
        steps=config.training.steps,
        updates_per_batch=turns.updates_per_batch,
        log_every=config.training.log_every,
        checkpoint_every=config.training.checkpoint_every,
        evaluate_every=config.training.evaluate_every,
        evaluate=evaluate,
        after_validation=after_validation,
        validate_first=tuned is not None,
        show_picture=write_picture,
    )


def default_workdir() -> str:
    """runs/mtu_smoke for configs/mtu.py:smoke."""
    file, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return f"runs/{Path(file).stem}{variant and f'_{variant}'}"


def check_workdir(workdir: Path, config: parts.ConfigDict) -> None:
    """Raises unless the folder holds this run, or is free for it. A run without a checkpoint has not begun."""
    file = workdir / "config.json"
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"{workdir} is a file; --workdir names a folder")
    if is_run_with_checkpoint(workdir) and (saved := parts.read_run_config(workdir)) is not None:
        parts.check_same_run(saved, config)
    elif not file.exists() and workdir.exists() and any(workdir.iterdir()):
        raise ValueError(f"{workdir} is not empty and holds no run; use another --workdir")
    there = next(folder for folder in (workdir, *workdir.parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"{workdir} cannot be written, since {there} cannot; use another --workdir")


def open_workdir(workdir: Path, config: parts.ConfigDict) -> None:
    """Makes the folder and writes down what the run is."""
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        with replacing(workdir / "config.json") as partial:
            partial.write_text(json.dumps(parts.to_json(config), indent=1) + "\n")
    multihost_utils.sync_global_devices("workdir opened")


if __name__ == "__main__":
    run_command.start(main, "train.py", failures=(loop.NonFiniteLossError,))

"""Checkpoints: what training writes and what evaluation, restoration and later training read.

A checkpoint is a folder that Orbax has written, with the parameters as an item of their own:

    params/      parameters as trained
    ema/         their moving average, where one is kept
    batch_stats/ running statistics, of networks with batch normalisation
    flow_net/    variables of the flow network that was tuned beside it   (Reblur2Deblur only)
    training/    step, optimiser moments, key                    (training runs only)
    loss_scale/  of training in float16
    config/      JSON: {"model": {"name": ..., **options}, ...}, "flow_net" likewise

A training run keeps them as <workdir>/checkpoints/<step>/.
"""

import itertools
import json
import logging
import math
import os
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from jaxdeblur.data.image_io import StrPath
from jaxdeblur.models import create_model, is_flow_network
from jaxdeblur.types import PyTree, Variables
from jaxdeblur.variables import (
    check_variables,
    difference_of,
    find_weights,
    is_file_of_weights,
    load_weights,
    read_options,
    shapes_of,
)

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
_TREES = ("params", "ema", "batch_stats", "flow_net", "training", "loss_scale")
RANKED_BY = {"reblur_psnr_db": 1.0, "psnr_db": 1.0, "end_point_error_px": -1.0}
"""The validation metrics that tell which checkpoint is best, the first that there is, and whether more of it is better
or worse."""


class Checkpoints:
    """The checkpoints of a training run: the newest two and the best by validation are kept.

    Saving is asynchronous; a folder bears a step's number only once it is complete.
    """

    def __init__(self, workdir: Path) -> None:
        self.folder = Path(workdir).absolute() / FOLDER
        self._open()

    def _open(self) -> None:
        keep = checkpoint_managers.AnyPreservationPolicy(
            [checkpoint_managers.LatestN(2), checkpoint_managers.BestN(get_metric_fn=_rank, n=1)]
        )
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=keep,
                best_fn=_rank,  # the policy decides what is kept, but without this metrics are not written down
                cleanup_tmp_directories=True,
            ),
        )

    def save(
        self,
        step: int,
        items: dict[str, PyTree],
        config: dict[str, Any],
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Starts to write trees of arrays, "params" among them; `metrics` are those of a validation at this step."""
        arguments = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        arguments["config"] = ocp.args.JsonSave(config)
        # One that has not been validated ranks below all that have.
        metrics = metrics or {next(iter(RANKED_BY)): -math.inf}
        self._manager.save(step, args=ocp.args.Composite(**arguments), metrics=metrics, force=True)

    def restore(self, like: dict[str, PyTree]) -> dict[str, PyTree] | None:
        """The newest checkpoint that can be read, as trees like those given, on the same devices; None if there is
        none.

        A damaged one is set aside under the name damaged-<step> with a warning, and the one before is taken.

        Raises:
            ValueError: the newest holds another model or no average where one is asked for (or the other way round), or
                none at all can be read; nothing is moved then.
        """
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        damaged: list[tuple[Path, Exception]] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            folder = self.folder / str(step)
            if (folder / "ema").is_dir() != ("ema" in like):
                raise ValueError(
                    f"{folder} holds {'an' if 'ema' not in like else 'no'} average: keep ema_decay as it was"
                )
            # Runs in float16 did not always keep it: it then begins anew.
            anew = {name: like[name] for name in ("loss_scale",) if name in like and not (folder / name).is_dir()}
            items = {name: ocp.args.StandardRestore(tree) for name, tree in target.items() if name not in anew}
            try:
                restored = {**anew, **dict(self._manager.restore(step, args=ocp.args.Composite(**items)).items())}
            except (MemoryError, PermissionError):
                raise
            except Exception as error:  # Orbax and tensorstore raise many types for files that are cut short
                if "RESOURCE_EXHAUSTED" in str(error):
                    raise
                _check_same_model(folder, like["params"])
                damaged.append((folder, error))
                continue
            self._set_aside(damaged)
            return restored
        if damaged:
            newest, why = damaged[0]
            raise ValueError(
                f"no checkpoint in {self.folder} can be read; the newest, {newest.name}: {_first_line(why)}. Move the "
                "folder away to start anew"
            )
        return None

    def _set_aside(self, damaged: list[tuple[Path, Exception]]) -> None:
        if not damaged:
            return
        self._manager.close()
        for folder, error in damaged:
            aside = _free_name(self.folder / f"damaged-{folder.name}")
            logger.warning(
                "checkpoint %s cannot be read (%s: %s); it is set aside as %s and the one before is taken",
                folder, type(error).__name__, _first_line(error), aside.name,
            )  # fmt: skip
            if jax.process_index() == 0:
                folder.rename(aside)
        multihost_utils.sync_global_devices("damaged checkpoints set aside")
        self._open()

    def wait(self) -> None:
        """Returns when everything is written."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def _check_same_model(folder: Path, params: PyTree) -> None:
    """A checkpoint of another network is the user's mistake, not damage: it must not be set aside."""
    try:
        with _checkpointer() as checkpointer:
            saved = shapes_of(_metadata(checkpointer, folder, "params"))
    except Exception:
        return
    wanted = shapes_of(params)
    if saved != wanted:
        raise ValueError(
            f"{folder} holds another model than the configuration asks for: {difference_of(wanted, saved)}"
        )


def save_model(path: str | Path, *, name: str, options: dict[str, Any], variables: Variables) -> None:
    """Writes a model that is ready for evaluation and restoration.

    Args:
        path: a folder that does not exist yet.
        name, options: as for create_model.
        variables: {"params": ...}, with "batch_stats" where the model has such.
    """
    path = Path(path).absolute()
    if path.exists():
        raise FileExistsError(f"{path} exists; name a new folder")
    check_variables(create_model(name, **options), variables, str(path))
    items = {item: ocp.args.StandardSave(tree) for item, tree in variables.items()}
    with _checkpointer() as checkpointer:
        config = ocp.args.JsonSave({"model": {"name": name, **options}})
        checkpointer.save(path, args=ocp.args.Composite(config=config, **items))


def load_model(path: StrPath, **options: Any) -> tuple[nn.Module, Variables]:
    """Reads a model: its module and variables, on the default device.

    Args:
        path: a checkpoint, or a training run's workdir, of which the best checkpoint is taken (the newest where none
            has been validated, or branches are trained in turns). The moving average of the parameters is preferred to
            the parameters. Or a file of weights, see `jaxdeblur.variables`; "default" is the one of this package.
        options: fields of the model's configuration to change, such as compute_dtype.
    Raises:
        ValueError: no checkpoint there, or its parameters do not fit the model it names.
    """
    folder = find_checkpoint(path)
    if find_weights(folder) is not None:
        return load_weights(folder, **options)
    model = create_model(**{**load_config(folder)["model"], **options})
    stored = {"params": "ema" if (folder / "ema").is_dir() else "params"}
    if (folder / "batch_stats").is_dir():
        stored["batch_stats"] = "batch_stats"
    variables = _read_items(folder, stored)
    check_variables(model, variables, str(folder))
    return model, variables


def load_flow_network(path: str | Path) -> tuple[nn.Module, Variables, dict[str, Any]]:
    """Reads a flow network: the checkpoint's own, or the one that was tuned beside the network it holds.

    Returns:
        Module, variables, and {"name": ..., **options} for create_model.
    Raises:
        ValueError: no checkpoint there, or one without a flow network.
    """
    folder = find_checkpoint(path)
    options = flow_network_options(folder)
    if "flow_net" not in load_config(folder):
        return *load_model(folder), options
    network = create_model(**options)
    variables = _read_items(folder, {"flow_net": "flow_net"})["flow_net"]
    check_variables(network, variables, str(folder))
    return network, variables, options


def flow_network_options(path: str | Path) -> dict[str, Any]:
    """Which flow network `load_flow_network` would read: {"name": ..., **options} for create_model."""
    folder = find_checkpoint(path)
    config = load_config(folder)
    options = config.get("flow_net", config["model"])
    if not is_flow_network(create_model(**options)):
        raise ValueError(f"{folder} is a {options['name']}; expected a flow network, such as pwcnet")
    return options


def _read_items(folder: Path, stored: dict[str, str]) -> Variables:
    """Collections of variables, by the names of their items, on the default device."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def on_device(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)

    try:
        with _checkpointer() as checkpointer:
            targets = {item: jax.tree.map(on_device, _metadata(checkpointer, folder, item)) for item in stored.values()}
            arguments = {item: ocp.args.StandardRestore(target) for item, target in targets.items()}
            restored = checkpointer.restore(folder, args=ocp.args.Composite(**arguments))
            return {collection: restored[item] for collection, item in stored.items()}
    except Exception as error:
        raise ValueError(f"checkpoint {folder} cannot be read ({_first_line(error)}); use another one") from error


def is_run_with_checkpoint(workdir: str | Path) -> bool:
    """Whether a training run's workdir holds a checkpoint to go on from or to load."""
    return any(entry.name.isdigit() for entry in (Path(workdir) / FOLDER).glob("*"))


def is_checkpoint(path: StrPath) -> bool:
    """Whether a user's path means a run, a checkpoint or a file of weights, and not a released file."""
    return Path(path).is_dir() or is_file_of_weights(path)


def find_checkpoint(path: StrPath) -> Path:
    """The checkpoint folder, or file of weights, that a user's path means; see load_model."""
    if (weights := find_weights(path)) is not None:
        return weights
    path = Path(path).absolute()
    if not path.is_dir():
        raise ValueError(f"there is no checkpoint folder {path}; give a checkpoint or the workdir of a training run")
    if (path / "params").is_dir() and (path / "config").is_dir():
        return path
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    steps = sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit())
    if not steps:
        raise ValueError(
            f"{path} holds no checkpoint (no params/ and config/, no {FOLDER}/<step>/); give a checkpoint or the "
            "workdir of a training run"
        )
    if "turn_updates" in load_config(folder / str(steps[-1])).get("objective", {}):
        # Branches that are trained in turns are best at different times; a network is both as they are in the end.
        return folder / str(steps[-1])
    scored = {step: value for step in steps if (value := _validation_metric(folder / str(step))) is not None}
    return folder / str(max(scored, key=lambda step: scored[step]) if scored else steps[-1])


def load_config(folder: Path) -> dict[str, Any]:
    """The configuration saved with a checkpoint."""
    if find_weights(folder) is not None:
        return {"model": read_options(folder)}
    file = folder / "config" / "metadata"
    try:
        config = json.loads(file.read_text())
        config["model"]["name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no jaxdeblur configuration ({_first_line(error)})") from error
    return config


def _checkpointer() -> ocp.Checkpointer:
    """For a folder on its own. Every item's kind is named, or Orbax warns of those it could not guess."""
    trees = {item: ocp.StandardCheckpointHandler() for item in _TREES}
    trees["metrics"] = ocp.JsonCheckpointHandler()
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler(config=ocp.JsonCheckpointHandler(), **trees))


def _metadata(checkpointer: ocp.Checkpointer, folder: Path, item: str) -> PyTree:
    """Shapes and dtypes of an item's arrays."""
    return checkpointer.metadata(folder).item_metadata[item]


def _validation_metric(folder: Path) -> float | None:
    try:
        value = _rank(json.loads((folder / "metrics" / "metrics").read_text()))
    except (OSError, ValueError, TypeError, StopIteration):
        return None
    return value if math.isfinite(value) else None


def _rank(metrics: dict[str, float]) -> float:
    """Higher is better."""
    name = next(name for name in RANKED_BY if name in metrics)
    return RANKED_BY[name] * float(metrics[name])


def _free_name(path: Path) -> Path:
    """The path, or the first of path-2, path-3, ... that is not there."""
    names = itertools.chain([path], (path.with_name(f"{path.name}-{number}") for number in itertools.count(2)))
    return next(name for name in names if not os.path.lexists(name))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]

"""From a configuration to the parts of a run. Every field is read here or by the part it is handed to.

seed
model       name and the fields of its configuration that differ from the named variant
initial     checkpoint: where the model starts from; flow_checkpoint, flow_workdir: where a flow network inside it
            does; of a tuning (Reblur2Deblur) checkpoint, flow_checkpoint, flow_name: the networks that are tuned
flow_net    of a tuning: likewise of the flow network beside the model
objective   the fields of the paper's objective; teacher_checkpoint (multi-task units), turn_updates (VDFlow)
data        source ("scenes", "video_folder", or "auto": the folder if it is there, else scenes; for flow networks
            "scenes", "sintel", "flying_chairs", "flow_folders"), labelled (VDFlow's true flow: LABELLED_SOURCES),
            batch_size, frames, crop_px; scenes: fields of SceneConfig, photographs, crops_per_photograph, choose_from,
            ends_share, distinct_clips, turned, seeds, and fields of Compression under compression; video_folder: root,
            splits, window, first_frames, augment; flow_pairs: root, render_pass, held_out_scenes, crop_px, augment,
            lowest_scale; unlabelled (of a tuning): source, batch_size, root, split, only, clip_px, scenes
optimizer   learning_rates by loss group, schedule, decay_steps, Adam's constants, clip_norm, weight_decay, undecayed,
            decoupled_decay, muon_scale, muon_without, plateau, boundary_passes (of a tuning)
training    steps, passes (of a tuning), microbatches, loss_scale, ema_decay, log_every, checkpoint_every,
            evaluate_every
evaluation  protocol, clips, validation_videos, flow_clips, frames (of rendered clips), motion
"""

import dataclasses
import functools
import itertools
import json
import logging
import subprocess
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxdeblur.checkpoint import (
    find_checkpoint,
    flow_network_options,
    is_checkpoint,
    is_run_with_checkpoint,
    load_config,
    load_model,
)
from jaxdeblur.compilation import jit
from jaxdeblur.data.clips import WindowSpec
from jaxdeblur.data.compression import Compression, compressed
from jaxdeblur.data.flow_pairs import (
    WINDOW_AROUND,
    FlowPair,
    flow_pair_batches,
    hold_out_scenes,
    index_flow_folders,
    index_flying_chairs,
    index_sintel,
    read_flow_pair,
    read_flow_window,
)
from jaxdeblur.data.pipeline import video_folder_batches
from jaxdeblur.data.preparation import read_record
from jaxdeblur.data.scenes import SceneConfig, batch_renderer, clip_cutter, load_photographs, scene_batches
from jaxdeblur.data.transforms import (
    FLIPS,
    MTU_AUGMENTATION,
    QUARTER_TURNS_AND_FLIPS,
    SVRNN_AUGMENTATION,
    VDFLOW_AUGMENTATION,
    to_float_batch,
)
from jaxdeblur.data.unlabelled import half_labelled, unlabelled_batches, windows_of_clip
from jaxdeblur.data.video_folder import DVD_TEST_VIDEOS, ClipFiles, index_video_folder, iterate_clip
from jaxdeblur.evaluation.deblurring import DeblurringEvaluation
from jaxdeblur.evaluation.flow import FlowEvaluation, FlowScene, FlowTruth
from jaxdeblur.evaluation.protocols import PROTOCOLS, protocols_named
from jaxdeblur.evaluation.scores import EvaluationClip
from jaxdeblur.flow_nets.flownet_s import SMALL_WIDTH
from jaxdeblur.flow_nets.flownet_simple import FlowNetSimple
from jaxdeblur.flow_nets.lite_flow_net import LiteFlowNet
from jaxdeblur.interop.files import read_flow_network, read_weights
from jaxdeblur.models import create_model, example_inputs, is_flow_network
from jaxdeblur.models.cdvd_tsp import CDVDTSP
from jaxdeblur.models.estrnn import ESTRNN
from jaxdeblur.models.maxim import MAXIM
from jaxdeblur.models.multi_task_unit import MultiTaskUnits
from jaxdeblur.models.nafnet import NAFNet
from jaxdeblur.models.svrnn import SVRNN, in_pixels_of_own_grid
from jaxdeblur.models.vdflow import VDFlow, with_zero_slices
from jaxdeblur.models.windows import memory_frames
from jaxdeblur.objectives import Objective, scaled_bytes
from jaxdeblur.objectives.cdvd_tsp import CDVDTSPObjective
from jaxdeblur.objectives.estrnn import ESTRNNObjective
from jaxdeblur.objectives.maxim import MAXIMObjective
from jaxdeblur.objectives.multi_task_unit import MultiTaskUnitObjective
from jaxdeblur.objectives.nafnet import NAFNetObjective
from jaxdeblur.objectives.optical_flow import OpticalFlowObjective
from jaxdeblur.objectives.reblur import FRAMES, REBLUR_METRIC, ReblurObjective, TunedParams, to_psnr_db
from jaxdeblur.objectives.svrnn import SVRNNObjective
from jaxdeblur.objectives.turns import Turns
from jaxdeblur.objectives.vdflow import VDFlowObjective, branches
from jaxdeblur.training.loss_scale import FIRST, LossScale
from jaxdeblur.training.optimizers import make_optimizer, make_schedule
from jaxdeblur.training.plateau import Plateau
from jaxdeblur.training.sharding import make_mesh, replicate, shard_batch
from jaxdeblur.training.state import TrainState
from jaxdeblur.types import Array, Batch, PyTree, Variables
from jaxdeblur.variables import check_same_params, shapes_of

logger = logging.getLogger(__name__)

_FREE_TRAINING_FIELDS = ("steps", "log_every", "checkpoint_every", "evaluate_every")
"""What may change when a run goes on: how long it is and how often it reports, not what it is."""

_BEFORE_FIELDS = {"objective.outside": "masked"}
"""What runs were whose configuration was saved before there was such a field."""

CLIP_SOURCES = ("auto", "scenes", "video_folder")
PAIR_SOURCES = ("scenes", "sintel", "flying_chairs", "flow_folders")
LABELLED_SOURCES = ("auto", "none", "scenes", "sintel", "flow_folders")
"""Where VDFlow finds true flow; "auto": Sintel if it is there, else scenes. Folders of pairs serve evaluation only,
since their pairs come from no videos."""
AUGMENTATIONS = {
    "none": None,
    "mtu": MTU_AUGMENTATION,
    "flips": FLIPS,
    "quarter_turns_and_flips": QUARTER_TURNS_AND_FLIPS,
    "svrnn": SVRNN_AUGMENTATION,
    "vdflow": VDFLOW_AUGMENTATION,
}
FLOW_NETWORKS = {"pwcnet": "pwcnet_cdvd", "flownet2": "flownet2"}
"""Names, for create_model, of the flow networks inside CDVD-TSP."""
TRAINABLE_FLOW_NETWORKS = ("pwcnet_cdvd", "flownet2s_small", "flownets")
"""Those that configs/pwcnet.py can train for a deblurring network to start from."""
_HELD_OUT_BATCHES = 4
"""Whose loss says whether the learning rate is to fall."""


def resolve(config: ConfigDict) -> ConfigDict:
    """A copy in which `data.source` names what is truly used, with the reason in `data.note`.

    Raises:
        ValueError: a value that is out of its range.
    """
    config = config.copy_and_resolve_references()
    data = config.data
    sources = CLIP_SOURCES if "video_folder" in data else PAIR_SOURCES
    if data.source not in sources:
        raise ValueError(f"data.source is {data.source!r}; expected one of {', '.join(sources)}")
    choices: dict[str, tuple[Any, Collection[str]]] = {
        "evaluation.protocol": (config.evaluation.get("protocol"), PROTOCOLS)
    }
    if "labelled" in data:
        choices["data.labelled"] = (data.labelled, LABELLED_SOURCES)
    for section in ("video_folder", "flow_pairs"):
        if section in data:
            choices[f"data.{section}.augment"] = (data[section].augment, AUGMENTATIONS)
    for field, (value, known) in choices.items():
        if value is not None and value not in known:
            raise ValueError(f"{field} is {value!r}; expected one of {', '.join(known)}")
    counts = {f"training.{field}": config.training[field] for field in (*_FREE_TRAINING_FIELDS, "microbatches")}
    if low := [f"{name} is {value}" for name, value in {**counts, "data.frames": data.frames}.items() if value < 1]:
        raise ValueError(f"{', '.join(low)}; expected at least 1")
    if data.source == "auto":
        root = Path(data.video_folder.root)
        found = (root / data.video_folder.train_split).is_dir()
        data.source = "video_folder" if found else "scenes"
        if not found:
            config.evaluation.clips = config.evaluation.clips or 8
            data.note = (
                f"TRAINING ON RENDERED SCENES, NOT ON THE PAPER'S DATA: {root / data.video_folder.train_split} does "
                "not exist. Scores are not comparable with the paper's. Prepare the data set there, or give "
                "--config.data.video_folder.root"
            )
    if data.source == "video_folder" and (record := read_record(data.video_folder.root)):
        wanted = data.video_folder.get("variant")
        if wanted and record["variant"] != wanted:
            data.note = (
                f"THE BLURRED FRAMES IN {data.video_folder.root} ARE {record['name']}'s {record['variant']}, "
                f"THE RECIPE IS OF {wanted}. To have these: jaxdeblur data prepare {record['name']} ARCHIVE "
                f"--variant={wanted} --out=FOLDER, and give --config.data.video_folder.root=FOLDER"
            )
        else:  # papers use either of GoPro's, and not all say which
            logger.info("%s: %s, variant %s", data.video_folder.root, record["name"], record["variant"])
    if data.get("labelled") == "auto":
        found = (Path(data.flow_pairs.root) / "training").is_dir()
        data.labelled = "sintel" if found else "scenes"
        if not found:
            data.note += (
                f"{data.note and ' '}TRUE FLOW OF RENDERED SCENES, NOT OF SINTEL: {data.flow_pairs.root}/training does "
                "not exist. Put MPI-Sintel there, or give --config.data.flow_pairs.root"
            )
    if data.get("labelled", data.source) == "sintel" and not data.flow_pairs.held_out_scenes:
        data.note += (
            f"{data.note and ' '}NO SCENE OF SINTEL IS HELD OUT: validations are of scenes that are trained on, as the "
            "papers' are. To hold some out, name them in --config.data.flow_pairs.held_out_scenes"
        )
    if data.get("labelled") in ("scenes", "none"):  # without true flow to train on, rendered scenes are scored on
        config.evaluation.flow_clips = config.evaluation.flow_clips or 8
    if "unlabelled" in data:
        _resolve_tuning(config)
    return config


def _resolve_tuning(config: ConfigDict) -> None:
    """What is tuned, on what, and for how long: `model`, `flow_net`, `data.unlabelled.source`, `training.steps`."""
    unlabelled, initial = config.data.unlabelled, config.initial
    if unlabelled.source not in CLIP_SOURCES:
        raise ValueError(f"data.unlabelled.source is {unlabelled.source!r}; expected one of {', '.join(CLIP_SOURCES)}")
    if unlabelled.source == "auto":
        found = (Path(unlabelled.root) / unlabelled.split).is_dir()
        unlabelled.source = "video_folder" if found else "scenes"
    if unlabelled.source == "scenes":
        config.evaluation.clips = config.evaluation.clips or 8
    if initial.checkpoint:
        config.model = ConfigDict(load_config(find_checkpoint(initial.checkpoint))["model"])
    if initial.flow_checkpoint:
        path = Path(initial.flow_checkpoint)
        config.flow_net = ConfigDict(flow_network_options(path) if is_checkpoint(path) else {"name": initial.flow_name})
    if config.training.ema_decay is not None:
        raise ValueError("training.ema_decay is set, but a tuning keeps no average: the flow network has none")
    if config.model.name:  # a network with a memory is to have one where it is supervised, too
        config.data.frames = max(config.data.frames, 1 + memory_frames(create_model(**config.model.to_dict())))
    if config.training.passes:
        updates = -(-_count_unlabelled(config) // unlabelled.batch_size)
        config.training.steps = updates * config.training.passes
        config.optimizer.boundaries = tuple(updates * passes for passes in config.optimizer.boundary_passes)


def build_model(config: ConfigDict) -> Any:
    if not config.model.name:
        raise ValueError("initial.checkpoint is empty; name the run or checkpoint of the network to tune")
    return create_model(**config.model.to_dict())


def build_turns(config: ConfigDict, model: Any) -> Turns:
    """What is trained on, in turns of `objective.turn_updates` where a configuration has such."""
    if "turn_updates" in config.objective:
        options = config.objective.to_dict()
        updates = options.pop("turn_updates")
        if config.optimizer.schedule != "constant" or config.optimizer.warmup_steps:
            raise ValueError(
                f"optimizer.schedule is {config.optimizer.schedule!r}, warmup_steps {config.optimizer.warmup_steps}: "
                "each branch would count its own turns' updates alone. Set them to 'constant' and 0; "
                "optimizer.plateau lowers the learning rate"
            )
        return Turns(tuple(VDFlowObjective(model, branch, **options) for branch in branches(model)), updates)
    objective = build_objective(config, model)
    return Turns((objective,), objective.updates_per_batch)


def build_objective(config: ConfigDict, model: Any) -> Objective:
    options = config.objective.to_dict()
    if "unlabelled" in config.data:
        if not config.flow_net.name:
            raise ValueError(
                "initial.flow_checkpoint is empty; name a flow network's run or checkpoint, or an official file of "
                f"{config.initial.flow_name} (initial.flow_name). To train one: python train.py "
                "--config=configs/pwcnet.py"
            )
        return ReblurObjective(model, create_model(**config.flow_net.to_dict()), **options)
    if isinstance(model, MultiTaskUnits):
        options.pop("teacher_checkpoint")
        return MultiTaskUnitObjective(model, updates_per_batch=config.data.frames, **options)
    if isinstance(model, CDVDTSP):
        return CDVDTSPObjective(model, **options)
    if isinstance(model, SVRNN):
        return SVRNNObjective(model, **options)
    if isinstance(model, MAXIM):
        return MAXIMObjective(model, **options)
    if isinstance(model, NAFNet):
        return NAFNetObjective(model, **options)
    if isinstance(model, ESTRNN):
        return ESTRNNObjective(model, **options)
    return OpticalFlowObjective(model, **options)


def build_optimizers(config: ConfigDict, objective: Objective) -> dict[str, optax.GradientTransformation]:
    """One for each loss group, with the schedules of `optimizer.learning_rates`."""
    options = config.optimizer
    schedules = {
        name: make_schedule(
            learning_rate,
            kind=options.schedule,
            steps=config.training.steps,
            boundaries=options.boundaries,
            factor=options.factor,
            final_fraction=options.final_fraction,
            warmup_steps=options.warmup_steps,
            decay_steps=options.get("decay_steps"),
        )
        for name, learning_rate in options.learning_rates.items()
    }

    def schedule_of(group: str, path: tuple[str, ...]) -> str | None:
        name = objective.learning_rate_name(group, path)
        if name is not None and name not in schedules:
            raise ValueError(
                f"optimizer.learning_rates has no {name!r}, which {'/'.join(path)} needs; it has {', '.join(schedules)}"
            )
        return name

    return {
        group: make_optimizer(
            schedules,
            functools.partial(schedule_of, group),
            adam={"b1": options.b1, "b2": options.b2, "eps": options.eps},
            clip_norm=options.clip_norm,
            weight_decay=options.get("weight_decay", 0.0),
            undecayed=options.get("undecayed", ()),
            decoupled_decay=options.get("decoupled_decay", 0.0),
            muon_scale=options.get("muon_scale", 0.0),
            muon_without=options.get("muon_without", ()),
        )
        for group in objective.groups
    }


def build_plateau(config: ConfigDict) -> Plateau | None:
    """Of `optimizer.plateau`, where a configuration has it."""
    return Plateau(**config.optimizer.plateau.to_dict()) if "plateau" in config.optimizer else None


def build_loss_scale(config: ConfigDict) -> float | LossScale:
    """`training.loss_scale`; in float16 where it begins, which is 1024 unless more than 1 is asked for."""
    scale = config.training.loss_scale
    parts = (config.model, config.get("flow_net", {}))
    if not any(part.get("compute_dtype") == "float16" for part in parts):
        return scale
    return LossScale(FIRST if scale == 1.0 else scale)


def load_frozen(config: ConfigDict) -> dict[str, PyTree]:
    """Variables of the networks a run reads but does not train: LiteFlowNet where the motion loss needs it.

    `objective.teacher_checkpoint` is an official file (.pth, .pytorch) or a checkpoint of ours.
    """
    if "teacher_checkpoint" not in config.objective:
        return {}
    path = config.objective.teacher_checkpoint
    if not path:
        if config.objective.motion_loss and config.data.source != "scenes":
            raise ValueError(
                "the motion loss needs optical flow, which a video folder does not hold: give LiteFlowNet's weights "
                "with --config.objective.teacher_checkpoint=FILE, or train without it: "
                "--config.objective.motion_loss=False"
            )
        return {}
    if is_checkpoint(path):
        teacher, variables = load_model(path)
        if not isinstance(teacher, LiteFlowNet):
            raise ValueError(
                f"objective.teacher_checkpoint {path} is a {type(teacher).__name__}; expected a LiteFlowNet"
            )
        return {"liteflownet": variables}
    return {"liteflownet": read_weights("liteflownet", path)}


def load_initial(config: ConfigDict, model: Any) -> PyTree | None:
    """`initial_params` before there are any: shapes stand where `with_drawn` is to put drawn ones. None where all are.

    Cheap, so that what does not fit is found before anything is compiled.
    """
    if "initial" not in config or "unlabelled" in config.data:  # a tuning draws nothing
        return None
    shapes = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model))["params"]
    found = initial_params(config, model, shapes)
    return None if found is shapes else found


def with_drawn(found: PyTree, drawn: PyTree) -> PyTree:
    """What `load_initial` found, and drawn parameters in the places of shapes."""
    return jax.tree.map(lambda x, own: own if isinstance(x, jax.ShapeDtypeStruct) else x, found, drawn)


def initial_params(config: ConfigDict, model: Any, params: PyTree) -> PyTree:
    """The parameters a run starts from: the initialised ones, the flow network inside taken from `initial`; or all of
    them those of `initial.checkpoint`.

    initial.flow_checkpoint is an official file or a checkpoint of ours; without one, the run of configs/pwcnet.py in
    initial.flow_workdir is taken if there is one of the network that is asked for; otherwise a warning says that the
    flow network starts from nothing.
    """
    if config.get("initial", {}).get("checkpoint"):
        _, variables = load_model(config.initial.checkpoint)
        check_same_params(params, variables["params"], config.initial.checkpoint)
        return variables["params"]
    if not (
        {"flow_net", "flow_net_prev"} & params.keys() or (isinstance(model, FlowNetSimple) and "initial" in config)
    ):
        return params
    if isinstance(model, VDFlow | FlowNetSimple):
        name, width, released_width = "flownets", model.config.width, 1.0
    elif isinstance(model, CDVDTSP):
        name, width, released_width = FLOW_NETWORKS[model.config.flow], model.config.flow_width, 1.0
    else:
        name, width, released_width = "flownet2s_small", SMALL_WIDTH * model.config.width, SMALL_WIDTH
    options, trainable = config.initial, name in TRAINABLE_FLOW_NETWORKS
    if options.flow_checkpoint:
        path = options.flow_checkpoint
    elif trainable and is_run_with_checkpoint(options.flow_workdir):
        path = options.flow_workdir
    else:
        way_out = "Give official weights: --config.initial.flow_checkpoint=FILE"
        if trainable:
            variant = "" if width == released_width else ":smoke"
            way_out += (
                f"; or train it first: python train.py --config=configs/pwcnet.py{variant} --config.model.name={name} "
                f"--config.model.width={width} --workdir={options.flow_workdir}"
            )
        logger.warning("THE FLOW NETWORK STARTS FROM RANDOM WEIGHTS and may hardly learn to align frames. %s", way_out)
        return params
    if is_checkpoint(path):
        network, variables = load_model(path)
        if type(network) is not type(create_model(name)):
            raise ValueError(f"{path} is a {type(network).__name__}; expected a {name} for the flow network")
        if getattr(network.config, "channel_order", "rgb") == "bgr":
            logger.warning("%s was trained on BGR; here it is given RGB, as the released code does", path)
    else:
        variables = read_weights(name, path)
    found = variables["params"]
    logger.info("the flow network starts from %s", path)
    if isinstance(model, FlowNetSimple):
        check_same_params(params, found, path)
        return found
    if isinstance(model, VDFlow):
        parts = {name: with_zero_slices(found, part) for name, part in params.items() if name.startswith("flow_net")}
        for part, widened in parts.items():
            check_same_params(params[part], widened, path)
        return {**params, **parts}
    if isinstance(model, SVRNN):
        return {**params, "flow_net": _of_pairs(model, params["flow_net"], found, path)}
    check_same_params(params["flow_net"], found, path)
    return {**params, "flow_net": found}


def _of_pairs(model: SVRNN, flow_net: PyTree, found: PyTree, path: str) -> PyTree:
    """The flow network inside SVRNN, which has two layers more, from one that was trained on pairs of frames.

    Where it sees other frames than the current and the next, the layers that take or give as many values as there are
    frames start anew; a warning names them.
    """
    pairs = SVRNN(dataclasses.replace(model.config, sees="next"))
    expected = jax.eval_shape(pairs.init, jax.random.key(0), *example_inputs(pairs))["params"]["flow_net"]
    found = in_pixels_of_own_grid(found)
    check_same_params(expected, {**expected, **found}, path)
    anew = [layer for layer in found if shapes_of(found[layer]) != shapes_of(flow_net[layer])]
    if anew:
        logger.warning(
            "%s was trained on pairs of frames; of the flow network with model.sees=%r these layers do not fit and "
            "start anew: %s",
            path, model.config.sees, ", ".join(anew),
        )  # fmt: skip
    return {layer: found[layer] if layer in found and layer not in anew else own for layer, own in flow_net.items()}


def tuned_variables(config: ConfigDict) -> Variables:
    """What a tuning starts from: the networks of `initial`."""
    _, variables = load_model(config.initial.checkpoint)
    _, flow_net, _ = read_flow_network(config.initial.flow_checkpoint, config.initial.flow_name)
    return {**variables, "params": TunedParams(variables["params"], flow_net)}


def flow_pairs(config: ConfigDict, *, held_out: bool) -> list[FlowPair]:
    """Pairs with true flow to train on, or those set aside. Of folders of pairs no part is set aside, nor of Sintel
    where held_out_scenes names none: then both are all pairs."""
    options, source = config.data.flow_pairs, config.data.get("labelled", config.data.source)
    if source == "flow_folders":
        return index_flow_folders(options.root)
    if source == "flying_chairs":
        return index_flying_chairs(options.root, split="validation" if held_out else "train")
    index = index_sintel(options.root, render_pass=options.render_pass)
    if not options.held_out_scenes:
        return index
    trained_on, set_aside = hold_out_scenes(index, options.held_out_scenes)
    if not trained_on:
        raise ValueError(
            "data.flow_pairs.held_out_scenes names every scene there is, so none is left to train on; name fewer, or "
            "none, '()', to train and validate on all"
        )
    return set_aside if held_out else trained_on


def training_batches(
    config: ConfigDict, turns: Turns, mesh: Mesh, *, held_out: bool = False
) -> Callable[[int], Iterator[Batch]]:
    """Number of the first batch -> that batch and all after it, on the mesh, the first axis split over its devices.

    held_out: of the validation data instead, as they are.
    """
    _check_crop(config)
    objective = turns.objectives[0]
    if isinstance(objective, ReblurObjective):
        return _half_labelled_batches(config, objective, mesh)
    if "labelled" in config.data:
        return _batches_in_turns(config, turns, mesh, held_out=held_out)
    if config.data.source == "scenes":
        return _scene_batches(config, objective, mesh, held_out=held_out)
    if config.data.source in PAIR_SOURCES:
        return _pair_batches(config, mesh, held_out=held_out)
    return _video_folder_batches(config, objective, mesh, held_out=held_out)


def _check_crop(config: ConfigDict) -> None:
    """Frames to restore are filled up, crops to train on are not; networks of flow resize what they take."""
    model = build_model(config)
    if not is_flow_network(model) and config.data.crop_px % model.size_multiple:
        raise ValueError(
            f"data.crop_px is {config.data.crop_px}; expected a multiple of {model.size_multiple}, as "
            f"{config.model.name} takes it"
        )


def _batches_in_turns(
    config: ConfigDict, turns: Turns, mesh: Mesh, *, held_out: bool
) -> Callable[[int], Iterator[Batch]]:
    """Clips, and in the flow branch's turns every other batch with true flow in their place."""
    objective = turns.objectives[0]
    of_clips = _scene_batches if config.data.source == "scenes" else _video_folder_batches
    clips = of_clips(config, objective, mesh, held_out=held_out)
    labelled: Callable[[int], Iterator[Batch]] | None = None
    flow_turns = [objective for objective in turns.objectives if "flow" in objective.groups]
    if not flow_turns or config.data.labelled == "none":
        pass
    elif config.data.labelled == "scenes":
        same = config.data.source == "scenes"
        labelled = clips if same else _scene_batches(config, objective, mesh, held_out=held_out)
    elif config.data.labelled == "sintel":
        labelled = _window_batches(config, objective, mesh, held_out=held_out)
    else:
        raise ValueError(f"data.labelled={config.data.labelled} serves evaluation only; train on scenes or sintel")

    def with_true_flow(number: int) -> int:
        """How many of the first so many batches."""
        if labelled is None:
            return 0
        return -(-turns.made(number, flow_turns[0]) // 2)

    def batches(first: int) -> Iterator[Batch]:
        iterators: dict[str, Iterator[Batch]] = {}  # opened where they are first needed; from there they go on in order
        for number in itertools.count(first):
            before = with_true_flow(number)
            if labelled is not None and with_true_flow(number + 1) > before:
                if "labelled" not in iterators:
                    iterators["labelled"] = labelled(before)
                yield next(iterators["labelled"])
                continue
            if "clips" not in iterators:
                iterators["clips"] = clips(number - before)
            yield _without_motion(next(iterators["clips"]))

    return batches


def _without_motion(batch: Batch) -> Batch:
    """A batch without the true motion, which rendered scenes have in any case."""
    return {name: values for name, values in batch.items() if not name.startswith(("flow", "valid"))}  # type: ignore[return-value]


def _half_labelled_batches(
    config: ConfigDict, objective: ReblurObjective, mesh: Mesh
) -> Callable[[int], Iterator[Batch]]:
    of_clips = _scene_batches if config.data.source == "scenes" else _video_folder_batches
    labelled, unlabelled = of_clips(config, objective, mesh, held_out=False), _unlabelled_batches(config, objective)
    return lambda first: half_labelled(labelled(first), (shard_batch(clips, mesh) for clips in unlabelled(first)))


def _unlabelled_batches(config: ConfigDict, objective: ReblurObjective) -> Callable[[int], Iterator[np.ndarray]]:
    """Number of the first batch -> this process's share of unlabelled clips, that batch and all after it."""
    options = config.data.unlabelled
    before, after = objective.frames_before, objective.frames_after
    process, processes = jax.process_index(), jax.process_count()
    if options.source == "video_folder":
        index = _unlabelled_videos(config)

        def read(first: int) -> Iterator[np.ndarray]:
            batches = video_folder_batches(
                index,
                window=WindowSpec(FRAMES, before - FRAMES // 2, after - FRAMES // 2, "sliding"),
                batch_size=options.batch_size,
                crop_px=(config.data.crop_px, config.data.crop_px),
                seed=config.seed,
                augmentation=None,
                first_batch=first,
                process_index=process,
                process_count=processes,
            )
            return (batch["blurred"] for batch in batches)

        return read
    mesh = make_mesh(jax.local_devices()[:1])  # every process has all of the few clips there are
    windows = [
        window
        for clip in evaluation_clips(config, mesh, held_out="test")
        for window in windows_of_clip(
            clip.name,
            (blurred for blurred, _ in clip.frames()),
            before=before,
            after=after,
            beyond_ends=objective.model.beyond_ends,
        )
    ]
    return lambda first: unlabelled_batches(
        windows,
        batch_size=options.batch_size,
        crop_px=config.data.crop_px,
        seed=config.seed,
        first_batch=first,
        process_index=process,
        process_count=processes,
    )


def _unlabelled_videos(config: ConfigDict) -> list[ClipFiles]:
    options = config.data.unlabelled
    return _only(index_video_folder(options.root, options.split), options.only, lambda clip: clip.name)


def _only(clips: Sequence[Any], names: Collection[str], name_of: Callable[[Any], str]) -> list[Any]:
    """Those of the names given, or all if none is."""
    found = [clip for clip in clips if not names or name_of(clip) in names]
    if missing := set(names) - {name_of(clip) for clip in found}:
        raise ValueError(
            f"data.unlabelled.only names {', '.join(sorted(missing))}, of which there is no clip; there are "
            f"{', '.join(map(name_of, clips))}"
        )
    return found


def _count_unlabelled(config: ConfigDict) -> int:
    """How many frames have a neighbour on either side."""
    options = config.data.unlabelled
    if options.source == "video_folder":
        return sum(max(clip.n_frames - 2, 0) for clip in _unlabelled_videos(config))
    return (len(options.only) or config.evaluation.clips) * (config.evaluation.frames - 2)


def reblur_error(
    objective: ReblurObjective, batches: Callable[[int], Iterator[Batch]]
) -> Callable[[TrainState], dict[str, float]]:
    """State -> how well the unlabelled clips of a run's first batches are reblurred, by running statistics."""
    kept: list[jax.Array] = []

    @jit
    def errors(state: TrainState, clips: jax.Array) -> jax.Array:
        found, _ = objective.estimate(state.params, state.statistics, scaled_bytes(clips), train=False)
        return objective.reblur_error(found)

    def metrics(state: TrainState) -> dict[str, float]:
        if not kept:
            kept.extend(batch["unlabelled"] for batch in itertools.islice(batches(0), _HELD_OUT_BATCHES))
        each = [multihost_utils.process_allgather(errors(state, clips), tiled=True) for clips in kept]
        return {REBLUR_METRIC: to_psnr_db(each)}

    return metrics


def _scene_batches(
    config: ConfigDict, objective: Objective, mesh: Mesh, *, held_out: bool
) -> Callable[[int], Iterator[Batch]]:
    past, future = objective.past_frames, objective.future_frames
    scenes = config.data.scenes
    if (ends_share := scenes.get("ends_share", 0.0)) and build_model(config).beyond_ends != "repeat":
        raise ValueError(
            f"data.scenes.ends_share is {ends_share}; expected 0, since for frames beyond its first and last "
            f"{config.model.name} takes others than these"
        )
    render = _scene_renderer(config, mesh, frames=config.data.frames, past=past, future=future, ends_share=ends_share)
    # What nobody reads would be more than half of what the clips that are kept take.
    unread = isinstance(objective, MultiTaskUnitObjective) and not objective.motion_loss
    return scene_batches(
        (lambda *numbers: _without_motion(render(*numbers))) if unread else render,
        seed=_held_out_seed(config, "validation") if held_out else config.seed,
        batch_size=config.data.batch_size,
        distinct_clips=scenes.distinct_clips,
        turned_anew=scenes.turned and not held_out,
    )


def _pair_batches(config: ConfigDict, mesh: Mesh, *, held_out: bool) -> Callable[[int], Iterator[Batch]]:
    pairs, options = flow_pairs(config, held_out=held_out), config.data.flow_pairs
    augment = None if held_out else AUGMENTATIONS[options.augment]

    def pair_batches(first: int) -> Iterator[Batch]:
        batches = flow_pair_batches(
            pairs,
            batch_size=config.data.batch_size,
            crop_px=tuple(options.crop_px),
            seed=config.seed,
            augment=augment,
            first_batch=first,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        return (shard_batch(batch, mesh) for batch in batches)

    return pair_batches


def _window_batches(
    config: ConfigDict, objective: Objective, mesh: Mesh, *, held_out: bool
) -> Callable[[int], Iterator[Batch]]:
    """Windows of videos with the true flow from the middle frame to the next, as clips of one frame."""
    seen = slice(WINDOW_AROUND - objective.past_frames, WINDOW_AROUND + 1 + objective.future_frames)
    pairs, options = flow_pairs(config, held_out=held_out), config.data.flow_pairs
    pairs = [pair for pair in pairs if pair.has_whole_window]

    def window_batches(first: int) -> Iterator[Batch]:
        batches = flow_pair_batches(
            pairs,
            batch_size=config.data.batch_size,
            crop_px=(config.data.crop_px, config.data.crop_px),
            seed=config.seed,
            augment=None if held_out else AUGMENTATIONS[options.augment],
            scale_range=None if held_out or options.lowest_scale == 1 else (options.lowest_scale, 1.0),
            windows=True,
            first_batch=first,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        for batch in batches:
            clip = {
                "blurred": batch["window"][:, seen],
                "flow_cur_to_next": batch["flow_1to0"][:, None],
                "valid_cur_to_next": batch["valid_1to0"][:, None],
            }
            yield shard_batch(clip, mesh)

    return window_batches


def _video_folder_batches(
    config: ConfigDict, objective: Objective, mesh: Mesh, *, held_out: bool
) -> Callable[[int], Iterator[Batch]]:
    data, folder = config.data, config.data.video_folder
    past, future = objective.past_frames, objective.future_frames
    index = index_video_folder(folder.root, folder.validation_split if held_out else folder.train_split)
    augmentation = None if held_out else AUGMENTATIONS[folder.augment]
    window = WindowSpec(data.frames, past, future, folder.window, folder.get("first_frames"))

    def to_float(batch_u8: dict[str, Array], number: int | jax.Array) -> Batch:
        return to_float_batch(
            batch_u8,
            seed=config.seed,
            first_sample=number * data.batch_size,
            augmentation=augmentation,
            past=past,
        )

    to_float = jit(to_float)

    def video_folder(first: int) -> Iterator[Batch]:
        batches = video_folder_batches(
            index,
            window=window,
            batch_size=data.batch_size,
            crop_px=(data.crop_px, data.crop_px),
            seed=config.seed,
            augmentation=augmentation,
            first_batch=first,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        for number, batch_u8 in enumerate(batches, start=first):
            yield to_float(shard_batch(batch_u8, mesh), number)

    return video_folder


def held_out_loss(config: ConfigDict, turns: Turns, mesh: Mesh) -> Callable[[TrainState], float]:
    """State -> the loss, on a few fixed batches of the validation data, of the branch whose turn it just was."""
    batches = training_batches(config, turns, mesh, held_out=True)
    kept: dict[Any, list[Batch]] = {}
    loss_of = {objective: jit(objective.held_out_loss) for objective in turns.objectives}  # type: ignore[attr-defined]

    def loss(state: TrainState) -> float:
        objective = turns.at(int(state.step) - 1)
        if objective not in kept:
            # Its first turn's, so that there are both kinds of batches the flow branch sees.
            first = turns.objectives.index(objective) * turns.updates
            kept[objective] = list(itertools.islice(batches(first), min(_HELD_OUT_BATCHES, turns.updates)))
        losses = [loss_of[objective](state.params, state.statistics, batch) for batch in kept[objective]]
        return float(np.mean([float(value) for value in losses]))

    return loss


def tasks(model: Any) -> tuple[str, ...]:
    """What a network can be scored on."""
    if is_flow_network(model):
        return ("flow",)
    return ("deblur", "flow") if hasattr(model, "flows") else ("deblur",)


def scored_on(config: ConfigDict, task: str) -> str:
    """The data of a task, in words."""
    if "unlabelled" in config.data:
        return f"{config.data.unlabelled.source}, the very clips that were tuned on without their truth"
    source = config.data.source
    if task == "flow":
        source = config.data.get("labelled", source)
        source = "scenes" if source == "none" else source
    if source == "video_folder" and (record := read_record(config.data.video_folder.root)):
        return f"{record['name']}, {record['variant']}"
    if source == "sintel":
        trained_on = "" if config.data.flow_pairs.held_out_scenes else ", no scene held out"
        return f"sintel, {config.data.flow_pairs.render_pass}{trained_on}"
    return source


def build_evaluation(
    config: ConfigDict, model: Any, mesh: Mesh, *, held_out: str, task: str, protocols: Sequence[str] = ()
) -> DeblurringEvaluation | FlowEvaluation:
    """Scores on data that training has not seen; held_out is "validation" or "test", task one of `tasks`.

    protocols: names, or "all", instead of evaluation.protocol.
    """
    options = config.evaluation
    if task not in tasks(model):
        raise ValueError(f"{config.model.name} cannot be scored on {task!r}; only on {' and '.join(tasks(model))}")
    if task == "flow":
        return FlowEvaluation(model, flow_scenes(config, mesh, held_out=held_out, windows=hasattr(model, "flows")))
    protocol, *others = protocols_named(protocols or [options.protocol])
    return DeblurringEvaluation(
        model,
        evaluation_clips(config, mesh, held_out=held_out),
        protocol,
        tuple(others),
        motion=options.get("motion", False),
        picture_frame=1 if "unlabelled" in config.data else config.data.frames // 2,
        # Of clips that are tuned on no choice may follow from the truth.
        prefix="truth_" if "unlabelled" in config.data else "",
    )


def evaluation_clips(config: ConfigDict, mesh: Mesh, *, held_out: str) -> list[EvaluationClip]:
    """Clips with truth.

    evaluation.clips limits how many (evaluation.validation_videos of a video folder while training); 0 takes all of a
    video folder's split. evaluation.frames is the length of rendered ones. DVD's test videos come in the order of the
    papers' tables, others as they are indexed. Of a tuning they are of the clips that it is tuned on.
    """
    if "unlabelled" in config.data:
        options = config.data.unlabelled
        view = ConfigDict(config.to_dict())
        view.data.unlock()
        del view.data["unlabelled"]
        view.data.source = options.source
        view.data.crop_px = options.clip_px
        view.data.batch_size = mesh.devices.size
        view.data.scenes.update(options.scenes)
        view.data.scenes.validation_seed = view.data.scenes.test_seed
        view.data.video_folder.root = options.root
        view.data.video_folder.validation_split = view.data.video_folder.test_split = options.split
        if options.only and options.source == "video_folder":  # wherever they stand
            view.evaluation.clips = view.evaluation.validation_videos = 0
        of_view = evaluation_clips(view, mesh, held_out=held_out)
        return _only(of_view, options.only, lambda clip: clip.name)
    if config.data.source == "video_folder":
        folder = config.data.video_folder
        index = index_video_folder(folder.root, folder[f"{held_out}_split"])
        count = _clips(config, held_out) or None
        order = DVD_TEST_VIDEOS
        clips = sorted(index, key=lambda clip: order.index(clip.name) if clip.name in order else len(order))
        return [EvaluationClip(clip.name, functools.partial(iterate_clip, clip)) for clip in clips[:count]]
    rendered: list[EvaluationClip] = []
    for name, clip in _held_out_scenes(config, mesh, held_out=held_out, count=_clips(config, held_out)):
        pair = [np.rint(255 * clip[side]).astype(np.uint8) for side in ("blurred", "sharp")]
        rendered.append(EvaluationClip(name, functools.partial(zip, *pair, strict=True)))
    return rendered


def flow_scenes(config: ConfigDict, mesh: Mesh, *, held_out: str, windows: bool) -> list[FlowScene]:
    """Pairs with true flow, by scene. evaluation.flow_clips, or clips, limits the number of scenes
    (evaluation.validation_videos that of Sintel's while training); 0 takes all. windows: with the frames around each
    pair, too."""
    count = _clips(config, held_out, flow=True)
    if config.data.get("labelled", config.data.source) not in ("scenes", "none"):
        by_scene: dict[str, list[FlowPair]] = {}
        for pair in flow_pairs(config, held_out=True):
            by_scene.setdefault(pair.scene, []).append(pair)

        def read(pairs: list[FlowPair]) -> Iterator[FlowTruth]:
            # The frames around a pair are read only for networks that see them.
            return (
                FlowTruth(**read_flow_pair(pair), window=read_flow_window(pair) if windows else None) for pair in pairs
            )

        names = list(by_scene)[: count or None]
        return [FlowScene(name, functools.partial(read, by_scene[name])) for name in names]
    scenes: list[FlowScene] = []
    for name, clip in _held_out_scenes(config, mesh, held_out=held_out, count=count):
        images = np.rint(255 * clip[config.objective.get("images", "blurred")]).astype(np.uint8)
        last, around = len(images) - 1, np.arange(-WINDOW_AROUND, WINDOW_AROUND + 1)
        pairs = [
            FlowTruth(
                images[t],
                images[t + 1],
                clip["flow_cur_to_next"][t],
                clip["valid_cur_to_next"][t],
                images[np.clip(t + around, 0, last)],
            )
            for t in range(last)
        ]
        scenes.append(FlowScene(name, functools.partial(iter, pairs)))
    return scenes


def _clips(config: ConfigDict, held_out: str, *, flow: bool = False) -> int:
    """How many clips, or scenes of pairs, to score on: evaluation.clips, or flow_clips; of videos while training
    evaluation.validation_videos, where there is such a number. 0: all."""
    options = config.evaluation
    rendered = (
        config.data.get("labelled", config.data.source) in ("scenes", "none")
        if flow
        else config.data.source == "scenes"
    )
    if held_out == "validation" and not rendered and options.get("validation_videos"):
        return options.validation_videos
    return options.get("flow_clips", options.clips) if flow else options.clips


def _held_out_scenes(
    config: ConfigDict, mesh: Mesh, *, held_out: str, count: int
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Name and arrays of every rendered clip."""
    if count < 1:
        raise ValueError(f"evaluation.clips is {count}; rendered scenes have no end, so say how many: 1 or more")
    render = _scene_renderer(config, mesh, frames=config.evaluation.frames, past=0, future=0)
    seed = _held_out_seed(config, held_out)
    for first in range(0, count, config.data.batch_size):
        batch = multihost_utils.process_allgather(render(seed, first), tiled=True)
        for offset in range(min(config.data.batch_size, count - first)):
            yield f"{held_out}_{first + offset:03d}", {name: values[offset] for name, values in batch.items()}


def _held_out_seed(config: ConfigDict, held_out: str) -> int:
    seed = config.data.scenes[f"{held_out}_seed"]
    if seed == config.seed:
        raise ValueError(f"data.scenes.{held_out}_seed is {seed}, as is the training's seed; choose another")
    return seed


def _scene_renderer(
    config: ConfigDict, mesh: Mesh, *, frames: int, past: int, future: int, ends_share: float = 0.0
) -> Callable[[int, int], Batch]:
    """(seed, number of the first clip) -> a batch, each device rendering its own share."""
    options = config.data.scenes.to_dict()
    for field in ("validation_seed", "test_seed", "distinct_clips", "turned", "ends_share"):
        options.pop(field, None)
    compression = Compression(**options.pop("compression", {}))
    folder, crops = options.pop("photographs"), options.pop("crops_per_photograph", 4)
    choose_from = options.pop("choose_from", 1)
    size = config.data.crop_px
    scene = SceneConfig(frames=frames, height=size, width=size, **options)
    photographs = _photographs(folder, scene.texture_size, crops, mesh) if folder else None
    render = batch_renderer(
        scene,
        batch_size=config.data.batch_size,
        mesh=mesh,
        photographs=photographs,
        past=past,
        future=future,
        choose_from=choose_from,
    )
    # Cut off last of all: what stands for frames beyond the ends of a video are copies of what was decoded.
    cut = clip_cutter(mesh, share=ends_share, past=past) if ends_share else None

    def recorded(seed: int, first_index: int) -> Batch:
        batch = render(seed, first_index)
        if compression != Compression():
            batch = compressed(batch, compression, seed=seed, first_index=first_index)
        return cut(batch, seed, first_index) if cut else batch

    return recorded


@functools.lru_cache(maxsize=1)
def _photographs(folder: str, texture_size: int, crops_per_photograph: int, mesh: Mesh) -> jax.Array:
    """Read and copied to the devices once, for training and validation alike; what changes meanwhile is not seen."""
    return replicate(load_photographs(folder, texture_size, crops_per_photograph=crops_per_photograph), mesh)


def to_json(config: ConfigDict) -> dict[str, Any]:
    """The configuration as plain JSON values, with the commit of the code it ran with."""
    return {**json.loads(json.dumps(config.to_dict())), "commit": _commit()}


def read_run_config(workdir: Path) -> dict[str, Any] | None:
    """What a workdir's run is by its config.json, as it was last begun or gone on with; None without one."""
    file = workdir / "config.json"
    try:
        return dict(json.loads(file.read_text())) if file.is_file() else None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}); use another --workdir") from error


def check_same_run(saved: dict[str, Any], config: ConfigDict) -> None:
    """Raises unless a workdir's saved configuration is the one now given, but for how long and how often."""
    # Where the learning rate falls on a plateau, validations are when that is checked.
    free = [field for field in _FREE_TRAINING_FIELDS if field != "evaluate_every" or "plateau" not in config.optimizer]
    ignored = ("commit", "evaluation.", "initial.flow_", *(f"training.{field}" for field in free))
    old, new = (
        {name: value for name, value in _flat(tree).items() if not name.startswith(ignored)}
        for tree in (saved, to_json(config))
    )
    old = {**{name: value for name, value in _BEFORE_FIELDS.items() if name in new}, **old}
    changed = [
        f"{k}: {old.get(k)!r} -> {new.get(k)!r}" for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)
    ]
    if changed:
        raise ValueError(
            "the workdir holds a run of another configuration; use a new --workdir, or restore the fields that differ: "
            + "; ".join(changed)
        )


def check_scored_run(saved: dict[str, Any], config: ConfigDict, given: Collection[str], task: str) -> None:
    """Raises unless scoring by a configuration can give what it asks for.

    A network is scored as it was trained, but for its precision; so what the configuration says of the network must be
    what the checkpoint's says, as must every field set by hand that scoring does not read.

    Args:
        saved: the checkpoint's configuration.
        given: the fields that were set by hand, such as "data.batch_size".
        task: one of `tasks`.
    """
    old, new = _flat(saved), _flat(to_json(config))
    sizes = getattr(create_model(**saved["model"]), "config", None)
    by_hand = {path for path in new if any(_is_below(path, field.partition("[")[0]) for field in given)}
    differ, way_out = [], []
    for path in sorted(new):
        section, _, field = path.partition(".")
        if section == "model":
            free = {"name", "compute_dtype"} if path in by_hand else {"name", "compute_dtype", "weight_init"}
            if not config.model.name or field in free or not (path in by_hand or hasattr(sizes, field)):
                continue
            was = getattr(sizes, field, None)
        elif path in by_hand and not any(_is_below(path, read) for read in _fields_scoring_reads(config, task)):
            was = old.get(path)
        else:
            continue
        was = list(was) if isinstance(was, tuple) else was
        if was != new[path]:
            differ.append(f"{path}: {was!r} -> {new[path]!r}")
            # What scoring does not read need not be given at all, and not every checkpoint has a value for it.
            way_out.append(f"give --config.{path}={was}" if section == "model" else f"leave out --config.{path}")
    if differ:
        raise ValueError(
            f"{'; '.join(differ)}: these fields are not the checkpoint's, and scoring takes them from it or does not "
            f"read them: {', '.join(way_out)}, or train a run of this configuration"
        )


def _is_below(path: str, field: str) -> bool:
    return path == field or path.startswith(f"{field}.")


def _fields_scoring_reads(config: ConfigDict, task: str) -> list[str]:
    """Of `build_evaluation` on test data, but for the model's: fields and sections."""
    data, flow = config.data, task == "flow"
    source = data.get("labelled", data.source) if flow else data.get("unlabelled", data).source
    fields = ["data.labelled" if flow and "labelled" in data else "data.source"]
    fields += [f"evaluation.{'flow_clips' if flow and 'flow_clips' in config.evaluation else 'clips'}"]
    if not flow:
        fields += ["evaluation.protocol", "evaluation.motion"]
    if "unlabelled" in data:
        fields = [field for field in fields if field != "data.source"]
        fields += [f"data.unlabelled.{name}" for name in ("source", "only")]
    if source in ("scenes", "none"):
        unread = ("validation_seed", "distinct_clips", "turned", "ends_share")
        fields += [f"data.scenes.{name}" for name in data.scenes if name not in unread]
        fields += ["evaluation.frames", "objective.images"]
        if "unlabelled" in data:
            fields += ["data.unlabelled.scenes", "data.unlabelled.clip_px"]
        else:
            fields += ["data.crop_px", "data.batch_size"]  # as many are rendered at once
    elif source == "video_folder":
        tuned = "unlabelled" in data
        fields += ["data.unlabelled.root" if tuned else "data.video_folder.root"]
        fields += ["data.unlabelled.split" if tuned else "data.video_folder.test_split"]
    else:
        fields += ["data.flow_pairs.root"]
        if source == "sintel":
            fields += ["data.flow_pairs.render_pass", "data.flow_pairs.held_out_scenes"]
    return fields


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _commit() -> str | None:
    root = Path(__file__).parent.parent
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None

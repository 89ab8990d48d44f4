"""Scores a network on held-out clips, a flow network on held-out pairs:

    python evaluate.py --config=configs/mtu.py:scenes --workdir=runs/mtu_scenes
    python evaluate.py --config=configs/mtu.py:gopro --checkpoint=mtu2_gopro
    python evaluate.py --config=configs/pwcnet.py:smoke --workdir=runs/pwcnet_smoke
    python evaluate.py --config=configs/vdflow.py:smoke --workdir=runs/vdflow_smoke --task=flow

Writes scores.json, scores.csv and picture strips of the best, the median and the worst frame (blurred, restored, sharp)
or pair (image, estimated flow, true flow); with --html=report.html all of it as a page that opens anywhere.

Frames are scored by the configuration's protocol or by those of --protocol=NAME,..., and always by `common`, too;
docs/protocols.md says what they are.
"""

import logging
import os
import sys
from pathlib import Path

import jax
from absl import app, flags
from ml_collections import config_flags
from rich.console import Console

import jaxdeblur.config as parts
from jaxdeblur.checkpoint import find_checkpoint, load_config, load_model
from jaxdeblur.evaluation.consistency import Consistency
from jaxdeblur.evaluation.flow import FlowEvaluation
from jaxdeblur.interop.files import read_flow_network
from jaxdeblur.training.sharding import make_mesh

_CONFIG = config_flags.DEFINE_config_file("config", None, "whose data, protocol and clips: the run's own configuration")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "a training run: its best checkpoint is scored, of a run in turns the newest"
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "a checkpoint to score instead")
_TASK = flags.DEFINE_enum("task", None, ["deblur", "flow"], "what to score, of a network that does both: VDFlow")
_OUT = flags.DEFINE_string(
    "out", None, "folder for the results; by default <workdir or checkpoint> with evaluation[_flow]"
)
_PROTOCOL = flags.DEFINE_list(
    "protocol", [], "how frames are scored, instead of the configuration's evaluation.protocol; or `all`"
)
_HTML = flags.DEFINE_string("html", None, "also write the scores, pictures and training curves as one page")
_FLOW_CHECKPOINT = flags.DEFINE_string(
    "flow_checkpoint", None, "a flow network (a run, a checkpoint or an official file) to score temporal consistency by"
)
_FLOW_NAME = flags.DEFINE_string("flow_name", "flownets", "the flow network of an official file")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    source = _CHECKPOINT.value or _WORKDIR.value
    if source is None or (_CHECKPOINT.value and _WORKDIR.value):
        raise ValueError("give either --workdir or --checkpoint")
    for chatty in ("absl", "jax"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    config = parts.resolve(_CONFIG.value)
    checkpoint = find_checkpoint(source)
    saved = load_config(checkpoint)
    trained = saved["model"]["name"]
    if config.model.name and trained != config.model.name:
        raise ValueError(f"{checkpoint} is a {trained}, the configuration asks for {config.model.name}")
    # Weights can be scored in another precision than they were trained in; all else is as they were trained.
    precision = config.model.get("compute_dtype", "float32")
    model, variables = load_model(checkpoint, compute_dtype=precision)
    tasks = parts.tasks(model)
    task = _TASK.value or tasks[0]
    folder = "evaluation" if task == tasks[0] else f"evaluation_{task}"
    # Beside a checkpoint, not in it: what lies inside a run's checkpoints is theirs to delete.
    out = Path(_OUT.value or (f"{checkpoint}_{folder}" if _CHECKPOINT.value else Path(source) / folder))

    console = Console(highlight=False)
    trained_on = saved.get("data", {}).get("source", "unknown data")
    scored_on = parts.scored_on(config, task)
    console.print(f"{checkpoint}: trained on {trained_on}, {task} scored on {scored_on}")
    about = {
        "checkpoint": str(checkpoint),
        "model": {**saved["model"], "compute_dtype": precision},
        "task": task,
        "data": scored_on,
    }
    mesh = make_mesh(jax.local_devices()[:1])
    evaluation = parts.build_evaluation(config, model, mesh, held_out="test", task=task, protocols=_PROTOCOL.value)
    if isinstance(evaluation, FlowEvaluation):
        given = {"html": _HTML.value, "flow_checkpoint": _FLOW_CHECKPOINT.value, "protocol": _PROTOCOL.value}
        if unfit := [f"--{name}" for name, value in given.items() if value]:
            raise ValueError(f"{', '.join(unfit)}: of restored frames only; here flow is scored")
        evaluation.report(variables, out, about, console)
        return
    consistency = None
    if _FLOW_CHECKPOINT.value:
        consistency = Consistency(*read_flow_network(_FLOW_CHECKPOINT.value, _FLOW_NAME.value)[:2])
    evaluation.report(
        variables,
        out,
        about,
        console,
        consistency=consistency,
        html=Path(_HTML.value) if _HTML.value else None,
        workdir=Path(_WORKDIR.value) if _WORKDIR.value else None,
    )


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    flags.mark_flag_as_required("config")
    try:
        app.run(main)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"evaluate.py: error: {error}")

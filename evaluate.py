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
from pathlib import Path

import jax
from absl import flags
from rich.console import Console

import jaxdeblur.config as parts
from jaxdeblur import run_command
from jaxdeblur.checkpoint import find_checkpoint, load_config, load_model
from jaxdeblur.evaluation.consistency import Consistency
from jaxdeblur.evaluation.flow import FlowEvaluation
from jaxdeblur.interop.files import read_flow_network
from jaxdeblur.models import create_model, option_types
from jaxdeblur.training.sharding import make_mesh

_CONFIG = run_command.define_config("whose data, protocol and clips: the run's own configuration")
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
    del argv  # there are none
    source = _CHECKPOINT.value or _WORKDIR.value
    if source is None or (_CHECKPOINT.value and _WORKDIR.value):
        raise ValueError("give either --workdir or --checkpoint")
    for chatty in ("absl", "jax"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    run_command.check_devices()
    config = parts.resolve(_CONFIG.value)
    checkpoint = find_checkpoint(source)
    saved = load_config(checkpoint)
    trained = saved["model"]["name"]
    if config.model.name and trained != config.model.name:
        raise ValueError(f"{checkpoint} is a {trained}, the configuration asks for {config.model.name}")
    tasks = parts.tasks(create_model(**saved["model"]))
    task = _TASK.value or tasks[0]
    if _WORKDIR.value and (of_run := parts.read_run_config(Path(_WORKDIR.value))) is not None:
        saved = {**saved, "training": of_run["training"]}  # since the best checkpoint the run may have been prolonged
    parts.check_scored_run(saved, config, run_command.given_fields(), task)
    of_frames = {"html": _HTML.value, "flow_checkpoint": _FLOW_CHECKPOINT.value, "protocol": _PROTOCOL.value}
    if task == "flow" and (unfit := [f"--{name}" for name, value in of_frames.items() if value]):
        raise ValueError(f"{', '.join(unfit)}: of restored frames only; here flow is scored")
    # Weights can be scored in another precision than they were trained in; all else is as they were trained.
    precision = {"compute_dtype": config.model.get("compute_dtype", "float32")}
    precision = precision if precision.keys() <= option_types(trained).keys() else {}
    model, variables = load_model(checkpoint, **precision)
    folder = "evaluation" if task == tasks[0] else f"evaluation_{task}"
    # Beside a checkpoint, not in it: what lies inside a run's checkpoints is theirs to delete.
    # Beside nothing are the weights of the package, by their name: results go here, not into the package.
    beside = checkpoint if Path(source).exists() else source
    out = Path(_OUT.value or (f"{beside}_{folder}" if _CHECKPOINT.value else Path(source) / folder))

    console = Console(highlight=False)
    trained_on = saved.get("data", {}).get("source", "unknown data")
    scored_on = parts.scored_on(config, task)
    console.print(f"{checkpoint}: trained on {trained_on}, {task} scored on {scored_on}")
    about = {
        "checkpoint": str(checkpoint),
        "model": {**saved["model"], **precision},
        "task": task,
        "data": scored_on,
    }
    consistency = None
    if _FLOW_CHECKPOINT.value:
        consistency = Consistency(*read_flow_network(_FLOW_CHECKPOINT.value, _FLOW_NAME.value)[:2])
    mesh = make_mesh(jax.local_devices()[:1])
    evaluation = parts.build_evaluation(config, model, mesh, held_out="test", task=task, protocols=_PROTOCOL.value)
    if isinstance(evaluation, FlowEvaluation):
        evaluation.report(variables, out, about, console)
        return
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
    run_command.start(main, "evaluate.py")

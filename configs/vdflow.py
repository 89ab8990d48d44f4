"""VDFlow (Yan, Wu, Xu, Zhang, Ren, "VDFlow: Joint Learning for Optical Flow and Video Deblurring", CVPRW 2020).

    python train.py --config=configs/vdflow.py --workdir=runs/vdflow                     the paper's recipe
    python train.py --config=configs/vdflow.py:smoke --workdir=runs/vdflow_smoke         some ten minutes on two cores
    python evaluate.py --config=configs/vdflow.py --workdir=runs/vdflow --task=deblur    PSNR and SSIM of every video
    python evaluate.py --config=configs/vdflow.py --workdir=runs/vdflow --task=flow      end-point error of every scene

Three turns of 12,000 updates: deblurring branch, flow branch, deblurring branch; the other one stands still.
The flow branch starts from --config.initial.flow_checkpoint=FILE, FlowNetS of FlowNetPytorch or a checkpoint of ours;
else from a run of configs/pwcnet.py with --config.model.name=flownets in --config.initial.flow_workdir; else from
nothing, with a warning.

Variants (after the colon), data:
    (none)    DVD data if data/dvd/ is prepared as a video folder, and MPI-Sintel if data/sintel/ is there; rendered
              scenes in the place of either, loudly
    dvd       DVD data in data/dvd/{train,test}/<clip>/{blur,sharp}/, MPI-Sintel in data/sintel/training/
    scenes    rendered scenes, which have true flow both ways
    smoke     a small network on small scenes
and behind a comma, as in configs/vdflow.py:smoke,single or configs/vdflow.py:,noalign, a branch alone:
    noalign   DBN on five frames, 36,000 updates all its own
    single    DBN on the middle frame five times
    flownets  FlowNetS

Every fusion is a switch: --config.model.deblur_reads_flow_at_8=False, deblur_reads_flow_at_4, flow_reads_deblur_at_8,
flow_reads_deblur_at_4; --config.model.flow_networks=separate gives each direction a flow network of its own.

The paper reports on DVD's ten test videos 28.17 dB (its rows give 28.06), DBN+NOALIGN 27.47 and DBN+SINGLE 27.30, and
on Sintel Clean an end-point error of 4.38 px on scenes it was trained on, FlowNetS 4.50. Its frames are 30 of each
video and its SSIM may allow for small shifts; protocol common, all frames and no shift, is not quite that. Of a run in
turns the newest checkpoint is scored. This recipe has not been run to its end by us; no score of ours is claimed.

Micro-batches (--config.training.microbatches) take batch statistics of their own, which a whole batch's are not.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

DATA = ("", "dvd", "scenes", "smoke")
NETWORKS = ("", "noalign", "single", "flownets")
VARIANTS = tuple(f"{data},{network}".rstrip(",") for network in NETWORKS for data in DATA)


def get_config(variant: str = "") -> ConfigDict:
    data, _, network = variant.partition(",")
    if data not in DATA or network not in NETWORKS:
        raise ValueError(
            f"configs/vdflow.py has no variant {variant!r}; expected one of {', '.join(DATA[1:])}, or nothing, and "
            f"behind a comma one of {', '.join(NETWORKS[1:])}"
        )
    config = ConfigDict()
    config.seed = 0

    config.model = ConfigDict()
    config.model.name = {"": "vdflow", "flownets": "flownets"}.get(network, "dbn")
    if network == "":
        config.model.deblur_reads_flow_at_8 = True
        config.model.deblur_reads_flow_at_4 = True
        config.model.flow_reads_deblur_at_8 = True
        config.model.flow_reads_deblur_at_4 = True
        config.model.flow_networks = "shared"  # or "separate"
    if network in ("noalign", "single"):
        config.model.sees = "single" if network == "single" else "window"
    if network != "flownets":
        config.model.adds_to = "image"  # released; "logit", for short runs
    config.model.width = 1.0
    config.model.compute_dtype = "float32"  # bfloat16 on accelerators

    config.initial = ConfigDict()
    config.initial.flow_checkpoint = ""  # official weights or a checkpoint of ours
    config.initial.flow_workdir = "runs/flownets"

    config.objective = ConfigDict()
    config.objective.turn_updates = 12_000
    config.objective.flow_weight = 1.0
    config.objective.outside = "clamped"  # "masked": the usual form, which is least where flows lead out of the frame

    config.data = ConfigDict()
    config.data.source = {"": "auto", "dvd": "video_folder"}.get(data, "scenes")
    config.data.labelled = {"": "auto", "dvd": "sintel"}.get(data, "scenes")  # "none": warping error alone
    if network in ("noalign", "single"):
        config.data.labelled = "none"  # there is no flow to train
    config.data.note = ""
    config.data.batch_size = 10
    config.data.frames = 1
    config.data.crop_px = 256  # a multiple of 64
    config.data.scenes = ConfigDict()
    config.data.scenes.sub_frames = 24
    config.data.scenes.max_speed_px = 24.0
    config.data.scenes.photographs = ""  # a folder of photographs to cut textures from; none: drawn textures
    config.data.scenes.min_duty = 0.2
    config.data.scenes.still_share = 0.15
    config.data.scenes.min_speed_share = 0.1
    config.data.scenes.distinct_clips = 0  # render so many once and go round; 0: never the same twice
    config.data.scenes.turned = False  # turn or mirror each batch of those anew
    config.data.scenes.validation_seed = 1_000_001
    config.data.scenes.test_seed = 1_000_002
    config.data.video_folder = ConfigDict()
    config.data.video_folder.root = "data/dvd"
    config.data.video_folder.train_split = "train"
    config.data.video_folder.validation_split = "test"  # DVD has no third part: the plateau's video is one of the ten
    config.data.video_folder.test_split = "test"
    config.data.video_folder.window = "sliding"
    config.data.video_folder.first_frames = placeholder(int)
    config.data.video_folder.augment = "vdflow"
    config.data.flow_pairs = ConfigDict()
    config.data.flow_pairs.root = "data/sintel"
    config.data.flow_pairs.render_pass = "final"  # trained on, and what is scored; "clean": Table 2's
    config.data.flow_pairs.held_out_scenes = ("alley_2", "ambush_6", "bamboo_2", "cave_4", "market_5")
    config.data.flow_pairs.augment = "quarter_turns_and_flips"
    config.data.flow_pairs.lowest_scale = 0.5

    config.optimizer = ConfigDict()
    config.optimizer.learning_rates = ConfigDict({"deblur": 1e-4, "flow": 1e-4})
    config.optimizer.schedule = "constant"  # but for the plateau
    config.optimizer.boundaries = ()
    config.optimizer.factor = 1.0
    config.optimizer.final_fraction = 0.0
    config.optimizer.warmup_steps = 0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    config.optimizer.clip_norm = placeholder(float)
    config.optimizer.weight_decay = 4e-4
    config.optimizer.plateau = ConfigDict()  # checked at every validation, on the held-out loss of the branch at work
    config.optimizer.plateau.factor = 0.5
    config.optimizer.plateau.patience = 3
    config.optimizer.plateau.tolerance = 1e-3
    config.optimizer.plateau.least_scale = 0.01

    config.training = ConfigDict()
    config.training.steps = 36_000
    config.training.microbatches = 1
    config.training.loss_scale = 1.0  # with model.compute_dtype float16 it moves, from 1024.0 or another number above 1
    config.training.ema_decay = placeholder(float)
    config.training.log_every = 100
    config.training.checkpoint_every = 1_000
    config.training.evaluate_every = 1_000

    config.evaluation = ConfigDict()
    config.evaluation.protocol = "common"
    config.evaluation.frames = 8  # of a rendered clip
    config.evaluation.clips = 8 if config.data.source == "scenes" else 0  # 0: all of a video folder, 8 scenes
    config.evaluation.validation_videos = 1  # of a folder or of Sintel, while training; 0: as many as clips
    config.evaluation.flow_clips = 0  # of Sintel: all held-out scenes; of rendered ones 8

    if data == "smoke":
        config.model.width = 0.125
        if network != "flownets":
            config.model.adds_to = "logit"  # or thousands of updates go by before there is a picture at all
        config.initial.flow_workdir = "runs/flownets_smoke"
        config.objective.turn_updates = 1_000
        config.data.batch_size = 8
        config.data.crop_px = 64
        config.data.scenes.sub_frames = 12
        config.data.scenes.max_speed_px = 12.0
        config.data.scenes.min_duty = 0.7
        config.data.scenes.still_share = 0.0  # a network of minutes cannot learn to leave sharp frames alone
        config.data.scenes.min_speed_share = 0.5
        config.data.scenes.distinct_clips = 800
        config.data.scenes.turned = True
        config.optimizer.learning_rates.deblur = 1e-3
        config.optimizer.learning_rates.flow = 3e-4
        config.training.steps = 3_000
        config.training.log_every = 100
        config.training.checkpoint_every = 500
        config.training.evaluate_every = 250
        config.evaluation.frames = 5
        config.evaluation.clips = 4
    return config.lock()

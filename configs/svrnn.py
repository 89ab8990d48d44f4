"""Flow-guided spatially variant RNN (Zhang et al., "Deep Dynamic Scene Deblurring from Optical Flow", TCSVT 2021).

    python train.py --config=configs/svrnn.py --workdir=runs/svrnn                 as the authors trained, nearly
    python train.py --config=configs/svrnn.py:smoke --workdir=runs/svrnn_smoke     some ten minutes on two CPU cores

The flow network inside, a small FlowNetS, starts from --config.initial.flow_checkpoint=FILE, FlowNet2-s as a .npz file
or a checkpoint of ours; else from a run of configs/pwcnet.py with --config.model.name=flownet2s_small in
--config.initial.flow_workdir; else from nothing, with a warning. Without truth it learns by bringing the next frame to
the current one.

Variants (after the colon):
    (none)   the released optimiser and batches: 10 crops, 1e-4 falling with (1 - i / 5,000,000)^2, gradients clipped;
             frames averaged down to the flows' grids; DVD data if data/dvd/ is prepared as a video folder, otherwise
             rendered scenes, loudly
    release  the whole released recipe: its down-sampling, and the decoder's biases frozen at zero
    paper    the paper's: batches of 20, a constant 1e-3 (which on summed losses is bold), 800,000 updates
    dvd      as (none), on DVD data in data/dvd/{train,test}/<clip>/{blur,sharp}/
    scenes   as (none), on rendered scenes
    smoke    a small network for a few thousand updates on 1,600 small scenes, which come round turned and mirrored

The rows of the paper's Table IV: --config.model.recurrence=none|concatenated|decoder, --config.model.sees=current|both,
--config.objective.flow_loss=False (which recurrence=none and sees=current need, too). Where the flow network sees other
frames than the pairs it was trained on, the layers that do not fit start anew.

The paper reports 30.58 dB / 0.928 on DVD's test videos, over frames that have a successor
(--config.evaluation.protocol=svrnn). This recipe has not been run to its end by us; no score of ours is claimed.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

VARIANTS = ("", "release", "paper", "dvd", "scenes", "smoke")


def get_config(variant: str = "") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/svrnn.py has no variant {variant!r}; variants: {', '.join(VARIANTS[1:])}")
    config = ConfigDict()
    config.seed = 0

    config.model = ConfigDict()
    config.model.name = "svrnn"
    config.model.recurrence = "encoder"  # decoder, concatenated, none
    config.model.sees = "next"  # current, both
    config.model.width = 1.0
    config.model.weight_init = "release"  # paper; "pass", for short runs
    config.model.compute_dtype = "float32"  # bfloat16 on accelerators

    config.initial = ConfigDict()
    config.initial.flow_checkpoint = ""  # FlowNet2-s or a checkpoint of ours
    config.initial.flow_workdir = "runs/flownet2s_small"

    config.objective = ConfigDict()
    config.objective.flow_loss = True
    config.objective.downsampling = "area"  # released
    config.objective.frozen_biases = False  # True: those of the released recipe

    config.data = ConfigDict()
    config.data.source = {"dvd": "video_folder", "scenes": "scenes", "smoke": "scenes"}.get(variant, "auto")
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
    config.data.video_folder.validation_split = "test"
    config.data.video_folder.test_split = "test"
    config.data.video_folder.window = "interior"
    config.data.video_folder.first_frames = placeholder(int)
    config.data.video_folder.augment = "svrnn"

    config.optimizer = ConfigDict()
    config.optimizer.learning_rates = ConfigDict({"all": 1e-4})
    config.optimizer.schedule = "quadratic"
    config.optimizer.decay_steps = placeholder(int)
    config.optimizer.decay_steps = 5_000_000
    config.optimizer.boundaries = ()
    config.optimizer.factor = 1.0
    config.optimizer.final_fraction = 0.0
    config.optimizer.warmup_steps = 0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    config.optimizer.clip_norm = placeholder(float)
    config.optimizer.clip_norm = 5000.0
    config.optimizer.weight_decay = 1e-6
    config.optimizer.undecayed = ("deconv", "upsampled_flow")

    config.training = ConfigDict()
    config.training.steps = 1_060_000
    config.training.microbatches = 1
    config.training.loss_scale = 1.0  # with model.compute_dtype float16 it moves, from 1024.0 or another number above 1
    config.training.ema_decay = placeholder(float)
    config.training.log_every = 100
    config.training.checkpoint_every = 1000
    config.training.evaluate_every = 10_000

    config.evaluation = ConfigDict()
    config.evaluation.protocol = "common"
    config.evaluation.frames = 8  # of a rendered clip
    config.evaluation.clips = 8 if config.data.source == "scenes" else 0  # 0: all of a video folder, 8 scenes

    if variant == "release":
        config.objective.downsampling = "released"
        config.objective.frozen_biases = True

    if variant == "paper":
        config.model.weight_init = "paper"
        config.data.batch_size = 20
        config.optimizer.learning_rates.all = 1e-3
        config.optimizer.schedule = "constant"
        config.optimizer.decay_steps = None
        config.optimizer.clip_norm = None
        config.optimizer.undecayed = ()
        config.training.steps = 800_000

    if variant == "smoke":
        config.model.width = 0.25
        config.model.weight_init = "pass"  # the others need thousands of updates to give a picture at all
        config.initial.flow_workdir = "runs/flownet2s_small_smoke"
        config.data.batch_size = 8
        config.data.crop_px = 64
        config.data.scenes.sub_frames = 12
        config.data.scenes.max_speed_px = 12.0
        config.data.scenes.min_duty = 0.7
        config.data.scenes.still_share = 0.0  # a network of minutes cannot learn to leave sharp frames alone
        config.data.scenes.min_speed_share = 0.5
        config.data.scenes.distinct_clips = 1600
        config.data.scenes.turned = True  # or they are learned by heart after a thousand updates
        config.optimizer.learning_rates.all = 1e-3
        config.optimizer.schedule = "cosine"
        config.optimizer.decay_steps = None
        config.optimizer.warmup_steps = 20
        config.training.steps = 3000
        config.training.ema_decay = 0.99
        config.training.log_every = 100
        config.training.checkpoint_every = 500
        config.training.evaluate_every = 1000
        config.evaluation.frames = 5
        config.evaluation.clips = 4
    return config.lock()

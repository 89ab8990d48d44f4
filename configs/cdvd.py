"""CDVD-TSP (Pan, Bai, Tang, "Cascaded Deep Video Deblurring Using Temporal Sharpness Prior", CVPR 2020).

    python train.py --config=configs/cdvd.py --workdir=runs/cdvd                 the released recipe
    python train.py --config=configs/cdvd.py:smoke --workdir=runs/cdvd_smoke     a few minutes on two CPU cores

The flow network starts from --config.initial.flow_checkpoint=FILE, official weights of PWC-Net; else from a run of
configs/pwcnet.py in --config.initial.flow_workdir; else from nothing, with a warning.

Variants (after the colon):
    (none)   DVD data if data/dvd/ is prepared as a video folder, otherwise rendered scenes, loudly
    dvd      DVD data in data/dvd/{train,test}/<clip>/{blur,sharp}/
    gopro    GoPro data in data/gopro/
    scenes   rendered scenes
    smoke    a small network for a few hundred updates

The ablations of the paper: --config.model.stages=1 --config.data.frames=1 (Table 3, without cascade), stages=3 with
frames=5, --config.model.prior=False (Tables 4 and 7), --config.model.flow=zero|none|flownet2 (Table 5).

The paper reports, under --config.evaluation.protocol=cdvd, 32.13 dB / 0.9268 on DVD and 31.67 dB / 0.9279 on GoPro; the
authors trained 300 of the 500 epochs here, 45 minutes an epoch, on one 24 GB TITAN RTX. This recipe has not been run to
its end by us; no score of ours is claimed.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

VARIANTS = ("", "dvd", "gopro", "scenes", "smoke")
_BATCH_SIZE = 8
_WINDOWS_PER_EPOCH = {"dvd": 5_262, "gopro": 4 * 1_955}
"""Five frames each, of the first 100 of every training video: 61 of DVD's, 22 of GoPro's. The released code repeats a
list of fewer than 1,000 batches as often as fits into 1,000, GoPro's four times; that is what it calls an epoch."""


def get_config(variant: str = "") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/cdvd.py has no variant {variant!r}; variants: {', '.join(VARIANTS[1:])}")
    windows = _WINDOWS_PER_EPOCH["gopro" if variant == "gopro" else "dvd"]

    def updates(epochs: int) -> int:
        return round(epochs * windows / _BATCH_SIZE)  # batches run on from one epoch to the next

    config = ConfigDict()
    config.seed = 0

    config.model = ConfigDict()
    config.model.name = "cdvd_tsp"
    config.model.stages = 2
    config.model.prior = True
    config.model.prior_box_px = 5
    config.model.flow = "pwcnet"
    config.model.channels = 32
    config.model.residual_blocks = 3
    config.model.flow_width = 1.0
    config.model.weight_init = "released"  # or "he", the paper's; "pass", for short runs
    config.model.compute_dtype = "float32"  # bfloat16 on accelerators

    config.initial = ConfigDict()
    config.initial.flow_checkpoint = ""  # official weights or a checkpoint of ours
    config.initial.flow_workdir = "runs/pwcnet"

    config.objective = ConfigDict()
    config.objective.hard_weight = 2.0
    config.objective.hard_share = 0.5
    config.objective.random_share = 0.1

    config.data = ConfigDict()
    config.data.source = {"": "auto", "dvd": "video_folder", "gopro": "video_folder"}.get(variant, "scenes")
    config.data.note = ""
    config.data.batch_size = _BATCH_SIZE
    config.data.frames = 3  # sharp ones: 2 stages - 1, with one more blurred frame at either end
    config.data.crop_px = 256
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
    config.data.video_folder.root = "data/gopro" if variant == "gopro" else "data/dvd"
    config.data.video_folder.train_split = "train"
    config.data.video_folder.validation_split = "test"  # as the released code does
    config.data.video_folder.test_split = "test"
    config.data.video_folder.window = "interior"
    config.data.video_folder.first_frames = 100
    config.data.video_folder.augment = "quarter_turns_and_flips"

    config.optimizer = ConfigDict()
    config.optimizer.learning_rates = ConfigDict({"restoration": 1e-4, "flow": 1e-6})
    config.optimizer.schedule = "step"
    config.optimizer.boundaries = (updates(200), updates(400))
    config.optimizer.factor = 0.5
    config.optimizer.final_fraction = 0.0
    config.optimizer.warmup_steps = 0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    config.optimizer.clip_norm = placeholder(float)

    config.training = ConfigDict()
    config.training.steps = updates(500)
    config.training.microbatches = 1
    config.training.loss_scale = 1.0  # with model.compute_dtype float16 it moves, from 1024.0 or another number above 1
    config.training.ema_decay = placeholder(float)
    config.training.log_every = 100
    config.training.checkpoint_every = updates(1)
    config.training.evaluate_every = updates(10)

    config.evaluation = ConfigDict()
    config.evaluation.protocol = "common"  # "cdvd": the paper's, interior frames only
    config.evaluation.frames = 8  # of a rendered clip
    config.evaluation.clips = 8 if config.data.source == "scenes" else 0  # 0: all of a video folder, 8 scenes

    if variant == "smoke":
        config.model.channels = 8
        config.model.residual_blocks = 1
        config.model.flow_width = 0.125
        config.model.weight_init = "pass"  # the paper's need thousands of updates to give a picture at all
        config.data.batch_size = 4
        config.data.crop_px = 64
        config.data.scenes.sub_frames = 12
        config.data.scenes.max_speed_px = 12.0
        config.data.scenes.min_duty = 0.7
        config.data.scenes.still_share = 0.0  # a network of minutes cannot learn to leave sharp frames alone
        config.data.scenes.min_speed_share = 0.5
        config.data.scenes.distinct_clips = 1600
        config.initial.flow_workdir = "runs/pwcnet_smoke"
        config.optimizer.learning_rates.restoration = 1e-3
        config.optimizer.learning_rates.flow = 1e-5
        config.optimizer.schedule = "cosine"
        config.optimizer.warmup_steps = 20
        config.training.steps = 400
        config.training.ema_decay = 0.98
        config.training.log_every = 20
        config.training.checkpoint_every = 100
        config.training.evaluate_every = 200
        config.evaluation.frames = 5
        config.evaluation.clips = 4
    return config.lock()

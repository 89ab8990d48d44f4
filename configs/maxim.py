"""MAXIM (Tu et al., "MAXIM: Multi-Axis MLP for Image Processing", CVPR 2022): single images.

    python train.py --config=configs/maxim.py --workdir=runs/maxim             the paper's recipe, as far as it is known
    python train.py --config=configs/maxim.py:smoke --workdir=runs/smoke       some minutes on two CPU cores

Variants (after the colon):
    (none)   GoPro data if data/gopro/ is prepared as a video folder, otherwise rendered scenes, loudly
    gopro    GoPro data in data/gopro/: jaxdeblur data prepare gopro ARCHIVE
    scenes   rendered scenes
    smoke    a tiny network for a few steps: shows that everything runs

Released weights have 32.86 dB / 0.961 on GoPro. No training code is released; crops, optimiser and losses are the
paper's, its batch and number of updates are not known to us, and objectives/maxim.py says what else is ours. This
recipe has not been run to its end by us; no score of ours is claimed.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

VARIANTS = ("", "gopro", "scenes", "smoke")


def get_config(variant: str = "") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/maxim.py has no variant {variant!r}; variants: {', '.join(VARIANTS[1:])}")
    config = ConfigDict()
    config.seed = 0

    config.model = ConfigDict()
    config.model.name = "maxim"
    config.model.compute_dtype = "float32"  # bfloat16 on accelerators

    config.objective = ConfigDict()
    config.objective.frequency_weight = 0.1
    config.objective.mixed_share = 0.5

    config.data = ConfigDict()
    config.data.source = {"": "auto", "gopro": "video_folder"}.get(variant, "scenes")
    config.data.note = ""
    config.data.batch_size = 16
    config.data.frames = 1
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
    config.data.video_folder.root = "data/gopro"
    config.data.video_folder.variant = ""
    config.data.video_folder.train_split = "train"
    config.data.video_folder.validation_split = "test"
    config.data.video_folder.test_split = "test"
    config.data.video_folder.window = "sliding"
    config.data.video_folder.augment = "quarter_turns_and_flips"

    config.optimizer = ConfigDict()
    config.optimizer.learning_rates = ConfigDict({"all": 2e-4})
    config.optimizer.schedule = "cosine"
    config.optimizer.boundaries = ()
    config.optimizer.factor = 1.0
    config.optimizer.final_fraction = 5e-4
    config.optimizer.warmup_steps = 0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    config.optimizer.clip_norm = placeholder(float)

    config.training = ConfigDict()
    config.training.steps = 300_000
    config.training.microbatches = 1
    config.training.loss_scale = 1.0  # with model.compute_dtype float16 it moves, from 1024.0 or another number above 1
    config.training.ema_decay = placeholder(float)
    config.training.log_every = 100
    config.training.checkpoint_every = 1_000
    config.training.evaluate_every = 10_000

    config.evaluation = ConfigDict()
    config.evaluation.protocol = "common"
    config.evaluation.frames = 8  # of a rendered clip
    config.evaluation.clips = 8 if config.data.source == "scenes" else 0  # 0: all of a video folder, 8 scenes

    if variant == "smoke":
        config.model.stages = 2
        config.model.features = 8
        config.model.groups = 1
        config.model.bottleneck_blocks = 1
        config.data.batch_size = 2
        config.data.crop_px = 64
        config.data.scenes.sub_frames = 4
        config.data.scenes.max_speed_px = 4.0
        config.training.steps = 24
        config.training.log_every = 4
        config.training.checkpoint_every = 8
        config.training.evaluate_every = 12
        config.evaluation.frames = 2
        config.evaluation.clips = 2
    return config.lock()

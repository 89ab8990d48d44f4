"""ESTRNN (Zhong et al., "Efficient Spatio-Temporal Recurrent Neural Network for Video Deblurring", ECCV 2020).

    python train.py --config=configs/estrnn.py --workdir=runs/estrnn            the released recipe
    python train.py --config=configs/estrnn.py:smoke --workdir=runs/smoke       a minute on two CPU cores

Variants (after the colon):
    (none)   BSD data if data/bsd/ is there as a video folder, otherwise rendered scenes, loudly
    bsd      BSD data in data/bsd/{train,validation,test}/<clip>/{blur,sharp}/
    gopro    GoPro data in data/gopro/: jaxdeblur data prepare gopro ARCHIVE --variant=blur_gamma; the paper reduces its
             frames to 960 x 540 beforehand, which is for you to do
    scenes   rendered scenes
    smoke    a tiny network for a few steps: shows that everything runs

500 epochs of 60 videos' 93 clips, the rate falling along a cosine, once an epoch there and once an update here. The
authors report 31.95 dB / 0.925 on BSD's middle setting (2ms16ms), recalled, and 30.79 / 0.902 on GoPro for a smaller
network. This recipe has not been run to its end by us; no score of ours is claimed.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

VARIANTS = ("", "bsd", "gopro", "scenes", "smoke")


def get_config(variant: str = "") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/estrnn.py has no variant {variant!r}; variants: {', '.join(VARIANTS[1:])}")
    config = ConfigDict()
    config.seed = 39

    config.model = ConfigDict()
    config.model.name = "estrnn"
    config.model.compute_dtype = "float32"  # bfloat16 on accelerators

    config.objective = ConfigDict()
    config.objective.remat = False

    config.data = ConfigDict()
    config.data.source = {"": "auto", "bsd": "video_folder", "gopro": "video_folder"}.get(variant, "scenes")
    config.data.note = ""
    config.data.batch_size = 8
    config.data.frames = 4  # of clips of 8, whose first and last two are neighbours only
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
    config.data.video_folder.root = "data/gopro" if variant == "gopro" else "data/bsd"
    config.data.video_folder.variant = "blur_gamma" if variant == "gopro" else ""
    config.data.video_folder.train_split = "train"
    config.data.video_folder.validation_split = "test" if variant == "gopro" else "validation"
    config.data.video_folder.test_split = "test"
    config.data.video_folder.window = "interior"
    config.data.video_folder.augment = "flips"

    config.optimizer = ConfigDict()
    config.optimizer.learning_rates = ConfigDict({"all": 5e-4})
    config.optimizer.schedule = "cosine"
    config.optimizer.boundaries = ()
    config.optimizer.factor = 1.0
    config.optimizer.final_fraction = 2e-5
    config.optimizer.warmup_steps = 0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    config.optimizer.clip_norm = 20.0

    config.training = ConfigDict()
    config.training.steps = 348_750
    config.training.microbatches = 1
    config.training.loss_scale = 1.0  # with model.compute_dtype float16 it moves, from 1024.0 or another number above 1
    config.training.ema_decay = placeholder(float)
    config.training.log_every = 100
    config.training.checkpoint_every = 1_000
    config.training.evaluate_every = 10_000

    config.evaluation = ConfigDict()
    config.evaluation.protocol = "estrnn"
    config.evaluation.frames = 8  # of a rendered clip
    config.evaluation.clips = 8 if config.data.source == "scenes" else 0  # 0: all of a video folder, 8 scenes

    if variant == "smoke":
        config.model.features = 4
        config.model.blocks = 2
        config.data.frames = 2
        config.data.batch_size = 2
        config.data.crop_px = 64
        config.data.scenes.sub_frames = 4
        config.data.scenes.max_speed_px = 4.0
        config.training.steps = 24
        config.training.log_every = 4
        config.training.checkpoint_every = 8
        config.training.evaluate_every = 12
        config.evaluation.frames = 5
        config.evaluation.clips = 2
    return config.lock()

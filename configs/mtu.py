"""Multi-task units (Son et al., "Real-Time Video Deblurring via Lightweight Motion Compensation", 2022).

    python train.py --config=configs/mtu.py --workdir=runs/mtu2                the paper's recipe
    python train.py --config=configs/mtu.py:smoke --workdir=runs/smoke         a minute on two CPU cores

Variants (after the colon):
    (none)   DVD data if data/dvd/ is prepared as a video folder, otherwise rendered scenes, loudly
    dvd      DVD data in data/dvd/: jaxdeblur data prepare dvd ARCHIVE
    gopro    GoPro data in data/gopro/: jaxdeblur data prepare gopro ARCHIVE --variant=blur_gamma
    scenes   rendered scenes, true flow as motion target
    demo     MTU1 on small rendered scenes for a few minutes on two CPU cores: what `make train-demo` runs
    smoke    a tiny network for a few steps: shows that everything runs

The paper trains 1,300,000 frame steps (100,000 batches of eight 13-frame clips of 256 x 256) on eight GPUs and reports,
on DVD, 31.00 dB / 0.933 for MTU2 (30.21 MTU1, 31.41 MTU4, 31.90 MTU10, 32.27 MTU10L) and on GoPro 29.91 dB / 0.928.
This recipe has not been run to its end by us; no score of ours is claimed.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

VARIANTS = ("", "dvd", "gopro", "scenes", "demo", "smoke")


def get_config(variant: str = "") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/mtu.py has no variant {variant!r}; variants: {', '.join(VARIANTS[1:])}")
    config = ConfigDict()
    config.seed = 0

    config.model = ConfigDict()
    config.model.name = "mtu2"  # mtu1, mtu2, mtu4, mtu10, mtu10l
    config.model.compute_dtype = "float32"  # bfloat16 on accelerators; float16 is the half-precision model
    config.model.residual = True
    config.model.structure_injection = True
    config.model.motion_module = True
    config.model.first_frame = "self"
    config.model.weight_init = "released"

    config.objective = ConfigDict()
    config.objective.image_loss = "mse+l1"
    config.objective.intermediate_weight = 0.1
    config.objective.motion_loss = True
    config.objective.optimizers = "two"
    config.objective.teacher = "released"
    config.objective.teacher_checkpoint = ""  # LiteFlowNet weights; needed where the data has no true flow

    config.data = ConfigDict()
    config.data.source = {"": "auto", "dvd": "video_folder", "gopro": "video_folder"}.get(variant, "scenes")
    config.data.note = ""
    config.data.batch_size = 8
    config.data.frames = 13
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
    config.data.video_folder.variant = "blur_gamma" if variant == "gopro" else ""  # a warning if it is another
    config.data.video_folder.train_split = "train"
    config.data.video_folder.validation_split = "test"  # as the released code does
    config.data.video_folder.test_split = "test"
    config.data.video_folder.window = "grid"
    config.data.video_folder.augment = "mtu"

    config.optimizer = ConfigDict()
    config.optimizer.learning_rates = ConfigDict({"deblur": 1e-4, "motion": 1e-6, "total": 1e-4})
    config.optimizer.schedule = "step"  # MTU10 on DVD and MTU10L on GoPro: cosine, final_fraction 0.01
    config.optimizer.boundaries = (1_000_000, 1_250_000)
    config.optimizer.factor = 0.25
    config.optimizer.final_fraction = 0.01
    config.optimizer.warmup_steps = 0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    config.optimizer.clip_norm = 1.0

    config.training = ConfigDict()
    config.training.steps = 1_300_000  # optimiser updates, one a frame
    config.training.microbatches = 1
    config.training.loss_scale = 1.0  # with model.compute_dtype float16 it moves, from 1024.0 or another number above 1
    config.training.ema_decay = placeholder(float)
    config.training.log_every = 1_300
    config.training.checkpoint_every = 13_000
    config.training.evaluate_every = 26_000

    config.evaluation = ConfigDict()
    config.evaluation.protocol = "common"
    config.evaluation.motion = False  # evaluate.py also scores the motion the units estimate
    config.evaluation.frames = 13  # of a rendered clip
    config.evaluation.clips = 8 if config.data.source == "scenes" else 0  # 0: all of a video folder, 8 scenes

    if variant == "demo":
        # Small enough to learn something in minutes. On a CPU rendering would take most of the time, hence a pool of
        # clips. The released initial weights stay silent for thousands of updates, and many updates in a row on few
        # small clips let the last activations die, hence other weights, a warm-up, and many short clips a batch.
        config.model.name = "mtu1"
        config.model.channels = 16
        config.model.residual_blocks = 4
        config.model.weight_init = "he"
        config.data.batch_size = 16
        config.data.frames = 3
        config.data.crop_px = 64
        config.data.scenes.sub_frames = 12
        config.data.scenes.max_speed_px = 12.0
        config.data.scenes.min_duty = 0.5
        config.data.scenes.still_share = 0.05
        config.data.scenes.distinct_clips = 192
        config.optimizer.learning_rates.deblur = 3e-4
        config.optimizer.schedule = "cosine"
        config.optimizer.warmup_steps = 150
        config.training.steps = 1_800
        config.training.log_every = 60
        config.training.checkpoint_every = 300
        config.training.evaluate_every = 600
        config.evaluation.frames = 3
    if variant == "smoke":
        config.model.channels = 6
        config.model.residual_blocks = 1
        config.model.match_radius = 3
        config.data.batch_size = 2
        config.data.frames = 3
        config.data.crop_px = 32
        config.data.scenes.sub_frames = 4
        config.data.scenes.max_speed_px = 4.0
        config.training.steps = 60
        config.training.log_every = 6
        config.training.checkpoint_every = 12
        config.training.evaluate_every = 30
        config.evaluation.frames = 3
        config.evaluation.clips = 2
    return config.lock()

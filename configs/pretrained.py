"""The network inside the package: multi-task units for real footage, small enough to train on two CPU cores.

    python train.py --config=configs/pretrained.py --config.data.scenes.photographs=PHOTOGRAPHS
    python train.py --config=configs/pretrained.py --config.data.scenes.photographs=PHOTOGRAPHS \\
        --config.initial.checkpoint=default --workdir=runs/further         goes on from the weights of the package

PHOTOGRAPHS is a folder of sharp photographs, at least 392 pixels high and wide; docs/model_card.md lists those that
were used. Without one all textures are drawn. The card also says what has been run, for how long, and what it scores.
Variant (after the colon):
    smoke    some updates of a tiny network: shows that everything runs

Scenes are what real pairs are: layers of photographs, some drawn, seen sharp or from nearer and softer, under camera
shake with moving objects in front, some still; exposures from half of a frame's time to all of it, sums of light
(a sensor's) or means of encoded values (as in data sets that average a video's frames); noise; then H.264 or JPEG; some
cut off where a clip would begin or end.

Differs from the paper's recipe (configs/mtu.py) in all of that, and in: a single unit of 24 channels and 12
residual blocks, which learns more in the same time on a CPU (and no motion, which a single unit would not use), at a
quarter of the size, then at half, then at full; initial weights that see edges; the loss is each frame's PSNR; Muon,
since Adam hardly finds what sharpens in a network whose features are all positive; a rate that falls; a moving average
of the weights.
"""

from ml_collections import ConfigDict

VARIANTS = ("", "smoke")


def get_config(variant: str = "") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/pretrained.py has no variant {variant!r}; variants: {', '.join(VARIANTS[1:])}")
    config = ConfigDict()
    config.seed = 0

    config.model = ConfigDict()
    config.model.name = "mtu1"
    config.model.channels = 24
    config.model.residual_blocks = 12
    config.model.compute_dtype = "float32"
    config.model.weight_init = "edges"
    config.model.scales = 3  # a quarter of the size first, then half: what blurs 720p is long

    config.initial = ConfigDict()
    config.initial.checkpoint = ""  # weights to go on from: a run, a checkpoint, or "default", those of the package

    config.objective = ConfigDict()
    config.objective.image_loss = "psnr"
    config.objective.intermediate_weight = 0.1
    config.objective.motion_loss = False  # a single unit hands nothing on that motion would move
    config.objective.optimizers = "two"
    config.objective.teacher = "released"
    config.objective.teacher_checkpoint = ""

    config.data = ConfigDict()
    config.data.source = "scenes"
    config.data.note = ""
    config.data.batch_size = 4
    config.data.frames = 3
    config.data.crop_px = 160
    config.data.scenes = ConfigDict()
    config.data.scenes.sub_frames = 40
    config.data.scenes.max_speed_px = 40.0
    config.data.scenes.min_speed_share = 0.6
    config.data.scenes.still_share = 0.02
    config.data.scenes.min_duty = 0.5
    config.data.scenes.max_shot_noise = 1.5e-4
    config.data.scenes.max_read_noise = 6e-4
    config.data.scenes.encoded_share = 0.4
    config.data.scenes.softest_texels_per_px = 0.5  # frames of video are seldom as sharp as a reduced photograph
    config.data.scenes.photographs = ""
    config.data.scenes.crops_per_photograph = 6  # the most detailed
    config.data.scenes.drawn_share = 0.08
    config.data.scenes.compression = ConfigDict()
    config.data.scenes.compression.h264_share = 0.25
    config.data.scenes.compression.jpeg_share = 0.1
    config.data.scenes.compression.least_crf = 14
    config.data.scenes.compression.most_crf = 24
    config.data.scenes.compression.least_jpeg_quality = 70
    config.data.scenes.compression.most_jpeg_quality = 95
    config.data.scenes.choose_from = 2  # the more blurred half, and the still ones
    config.data.scenes.ends_share = 0.2
    config.data.scenes.distinct_clips = 2_400  # on a CPU rendering anew each time would take most of it all
    config.data.scenes.turned = True
    config.data.scenes.validation_seed = 1_000_001
    config.data.scenes.test_seed = 1_000_002

    config.optimizer = ConfigDict()
    config.optimizer.learning_rates = ConfigDict({"deblur": 2e-4})
    config.optimizer.schedule = "cosine"
    config.optimizer.boundaries = ()
    config.optimizer.factor = 1.0
    config.optimizer.final_fraction = 0.01
    config.optimizer.warmup_steps = 100
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    config.optimizer.clip_norm = 3.0
    config.optimizer.muon_scale = 25.0  # Adam hardly finds what sharpens in a network whose features are all positive
    config.optimizer.muon_without = ("output_conv", "deblur_")

    config.training = ConfigDict()
    config.training.steps = 12_000
    config.training.microbatches = 1
    config.training.loss_scale = 1.0  # with model.compute_dtype float16 it moves, from 1024.0 or another number above 1
    config.training.ema_decay = 0.998
    config.training.log_every = 60
    config.training.checkpoint_every = 300
    config.training.evaluate_every = 600

    config.evaluation = ConfigDict()
    config.evaluation.protocol = "common"
    config.evaluation.motion = False
    config.evaluation.frames = 3
    config.evaluation.clips = 32

    if variant == "smoke":
        config.model.channels = 6
        config.model.residual_blocks = 1
        config.data.batch_size = 2
        config.data.crop_px = 32
        config.data.scenes.sub_frames = 8
        config.data.scenes.max_speed_px = 8.0
        config.data.scenes.distinct_clips = 8
        config.training.steps = 24
        config.training.log_every = 6
        config.training.checkpoint_every = 12
        config.training.evaluate_every = 12
        config.evaluation.clips = 2
    return config.lock()

"""PWC-Net (Sun, Yang, Liu, Kautz, CVPR 2018), the flow network inside CDVD-TSP; and, by name, others.

    python train.py --config=configs/pwcnet.py --workdir=runs/pwcnet                 rendered scenes, true flow
    python train.py --config=configs/pwcnet.py:smoke --workdir=runs/pwcnet_smoke     a few minutes on two CPU cores
    python train.py --config=configs/pwcnet.py --config.model.name=flownet2s_small --workdir=runs/flownet2s_small
                                                                                     the one inside SVRNN; VDFlow's
                                                                                     is flownets
    python evaluate.py --config=configs/pwcnet.py --workdir=runs/pwcnet              end-point error of every scene

Variants (after the colon):
    (none)   rendered scenes: blurred frames, as the network inside a deblurring model sees them
    chairs   FlyingChairs in data/flying_chairs/data/
    sintel   MPI-Sintel in data/sintel/training/, a few scenes held out
    folders  pairs in data/flow/<pair>/{<first image>,<second image>,flow.flo or flow.png}; to evaluate on, above all,
             since none are held out
    small    FlowNetS of an eighth of the channels, for motion of up to 12 px between nearly sharp frames: five to ten
             minutes on two CPU cores; what `jaxdeblur adapt` can start from
    smoke    a small network for a few hundred updates: shows that everything runs, its flow is next to nothing

The loss, its weights and the schedule are those of the authors' training on FlyingChairs: 1,200,000 updates of eight
pairs of 448 x 320. This recipe has not been run to its end by us; no score of ours is claimed.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

VARIANTS = ("", "chairs", "sintel", "folders", "small", "smoke")


def get_config(variant: str = "") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/pwcnet.py has no variant {variant!r}; variants: {', '.join(VARIANTS[1:])}")
    config = ConfigDict()
    config.seed = 0

    config.model = ConfigDict()
    config.model.name = "pwcnet_cdvd"  # also pwcnet, flownets, flownets_bn, flownet2c, flownet2s, ...
    config.model.width = 1.0
    config.model.compute_dtype = "float32"  # bfloat16 on accelerators

    config.objective = ConfigDict()
    config.objective.weights = (0.005, 0.01, 0.02, 0.08, 0.32)
    config.objective.images = "blurred"  # of rendered scenes; or "sharp"

    config.data = ConfigDict()
    sources = {"chairs": "flying_chairs", "sintel": "sintel", "folders": "flow_folders"}
    config.data.source = sources.get(variant, "scenes")
    config.data.note = ""
    config.data.batch_size = 4 if config.data.source == "scenes" else 8  # a clip of two frames is two pairs
    config.data.frames = 2
    config.data.crop_px = 384  # of rendered scenes; a multiple of 64
    config.data.scenes = ConfigDict()
    config.data.scenes.sub_frames = 24
    config.data.scenes.max_speed_px = 24.0
    config.data.scenes.photographs = ""
    config.data.scenes.min_duty = 0.2
    config.data.scenes.still_share = 0.05
    config.data.scenes.min_speed_share = 0.1
    config.data.scenes.distinct_clips = 0
    config.data.scenes.turned = False
    config.data.scenes.validation_seed = 1_000_001
    config.data.scenes.test_seed = 1_000_002
    config.data.flow_pairs = ConfigDict()
    roots = {"sintel": "data/sintel", "folders": "data/flow"}
    config.data.flow_pairs.root = roots.get(variant, "data/flying_chairs")
    config.data.flow_pairs.render_pass = "final"  # of Sintel
    config.data.flow_pairs.held_out_scenes = ("alley_2", "ambush_6", "bamboo_2", "cave_4", "market_5")  # of Sintel
    config.data.flow_pairs.crop_px = (320, 448)
    config.data.flow_pairs.augment = "none"

    config.optimizer = ConfigDict()
    config.optimizer.learning_rates = ConfigDict({"flow": 1e-4})
    config.optimizer.schedule = "step"
    config.optimizer.boundaries = (400_000, 600_000, 800_000, 1_000_000)
    config.optimizer.factor = 0.5
    config.optimizer.final_fraction = 0.0
    config.optimizer.warmup_steps = 0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 4e-4
    config.optimizer.clip_norm = placeholder(float)

    config.training = ConfigDict()
    config.training.steps = 1_200_000
    config.training.microbatches = 1
    config.training.loss_scale = 1.0  # with model.compute_dtype float16 it moves, from 1024.0 or another number above 1
    config.training.ema_decay = placeholder(float)
    config.training.log_every = 100
    config.training.checkpoint_every = 1_000
    config.training.evaluate_every = 10_000

    config.evaluation = ConfigDict()
    config.evaluation.frames = 2
    config.evaluation.clips = 16 if config.data.source == "scenes" else 0  # scenes; 0: all there are

    if variant in ("small", "smoke"):
        config.model.width = 0.125
        config.data.crop_px = 64
        config.data.scenes.sub_frames = 8
        config.data.scenes.max_speed_px = 8.0
        config.data.scenes.min_duty = 0.5
        config.data.scenes.distinct_clips = 256
        config.optimizer.learning_rates.flow = 1e-3
        config.optimizer.schedule = "cosine"
        config.optimizer.warmup_steps = 50
        config.optimizer.clip_norm = 10.0
        config.training.steps = 600
        config.training.log_every = 30
        config.training.checkpoint_every = 150
        config.training.evaluate_every = 300
        config.evaluation.clips = 8
    if variant == "small":
        config.model.name = "flownets"
        config.objective.images = "sharp"
        config.data.crop_px = 128  # trained on 64 it fails on larger frames
        config.data.scenes.max_speed_px = 12.0
        config.data.scenes.min_speed_share = 0.3
        config.data.scenes.still_share = 0.0
        config.data.scenes.sub_frames = 12
        config.data.scenes.distinct_clips = 400
        config.data.scenes.turned = True
        config.optimizer.learning_rates.flow = 5e-4
        config.training.steps = 2500
        config.training.log_every = 100
        config.training.checkpoint_every = 250
        config.training.evaluate_every = 500
    return config.lock()

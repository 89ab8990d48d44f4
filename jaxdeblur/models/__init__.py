"""The networks, each under the name `create_model` and configurations use.

A deblurring model restores clips (B, T, H, W, 3) in [0, 1] when called, and frame by frame through

    past_frames, future_frames, beyond_ends    what a step looks at, and what stands for frames there are none of
    size_multiple, padding                     what height and width must be multiples of, and what fills them up
    start(window) -> carry                     before the first frame; window (B, past + 1 + future, H, W, 3)
    step(carry, window) -> carry, outputs      outputs.restored (B, H, W, 3)
    memory_frames                              of those with a memory: see models.windows
    tile_multiple                              of those that fill frames up by themselves: see models.windows
    explain(carry, window) -> pictures         by name, (B, H, W, 3) in [0, 1]; what `deblur --explain` writes

A flow network maps two images (B, H, W, 3) in [0, 1] to the flow from the first to the second on the first's grid, in
pixels.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdeblur.compilation import jit
from jaxdeblur.flow_nets.flownet2 import FlowNet2, FlowNetC, FlowNetSD
from jaxdeblur.flow_nets.flownet_s import SMALL_WIDTH, FlowNetBase, FlowNetConfig, FlowNetS
from jaxdeblur.flow_nets.flownet_simple import FlowNetSimple
from jaxdeblur.flow_nets.lite_flow_net import LiteFlowNet
from jaxdeblur.flow_nets.pwc_net import CDVD_TSP, NVLABS, PWCNet, PWCNetConfig
from jaxdeblur.models.cdvd_tsp import CDVDTSP, CDVDTSPConfig
from jaxdeblur.models.dbn import DBN, DBNConfig
from jaxdeblur.models.deblurgan import DeblurGAN, DeblurGANConfig
from jaxdeblur.models.estrnn import ESTRNN, ESTRNNConfig
from jaxdeblur.models.maxim import MAXIM, MAXIMConfig
from jaxdeblur.models.multi_task_unit import MultiTaskUnitConfig, MultiTaskUnits
from jaxdeblur.models.nafnet import NAFNet, NAFNetConfig
from jaxdeblur.models.svrnn import SVRNN, SVRNNConfig
from jaxdeblur.models.vdflow import VDFlow, VDFlowConfig
from jaxdeblur.types import Variables


def _multi_task_units(**defaults: Any) -> Callable[..., nn.Module]:
    return lambda **options: MultiTaskUnits(_configure(MultiTaskUnitConfig, defaults, options))


def _pwc_net(variant: PWCNetConfig) -> Callable[..., nn.Module]:
    return lambda **options: PWCNet(_configure(PWCNetConfig, dataclasses.asdict(variant), options))


def _nafnet(**defaults: Any) -> Callable[..., nn.Module]:
    return lambda **options: NAFNet(_configure(NAFNetConfig, defaults, options))


def _flownet(network: type[FlowNetBase | FlowNetSimple]) -> Callable[..., nn.Module]:
    return lambda **options: network(_configure(FlowNetConfig, {}, options))


MODELS: dict[str, Callable[..., nn.Module]] = {
    "mtu1": _multi_task_units(units=1),
    "mtu2": _multi_task_units(units=2),
    "mtu4": _multi_task_units(units=4),
    "mtu10": _multi_task_units(units=10),
    # The paper names only the channels; the published parameter count fits six residual blocks.
    "mtu10l": _multi_task_units(units=10, channels=48, residual_blocks=6),
    "cdvd_tsp": lambda **options: CDVDTSP(_configure(CDVDTSPConfig, {}, options)),
    "svrnn": lambda **options: SVRNN(_configure(SVRNNConfig, {}, options)),
    "vdflow": lambda **options: VDFlow(_configure(VDFlowConfig, {}, options)),
    "dbn": lambda **options: DBN(_configure(DBNConfig, {}, options)),
    "deblurgan": lambda **options: DeblurGAN(_configure(DeblurGANConfig, {}, options)),
    "maxim": lambda **options: MAXIM(_configure(MAXIMConfig, {}, options)),
    "nafnet32": _nafnet(width=32),
    "nafnet64": _nafnet(width=64),
    "estrnn": lambda **options: ESTRNN(_configure(ESTRNNConfig, {}, options)),
    "flownets": _flownet(FlowNetSimple),
    "flownets_bn": lambda **options: FlowNetSimple(_configure(FlowNetConfig, {}, options), batch_norm=True),
    "pwcnet": _pwc_net(NVLABS),
    "pwcnet_cdvd": _pwc_net(CDVD_TSP),
    "flownet2": _flownet(FlowNet2),
    "flownet2c": _flownet(FlowNetC),
    "flownet2s": _flownet(FlowNetS),
    "flownet2sd": _flownet(FlowNetSD),
    "flownet2s_small": lambda **options: FlowNetS(
        _configure(FlowNetConfig, {"width": SMALL_WIDTH}, options), upsampling_bias=True
    ),
    "liteflownet": lambda **options: LiteFlowNet(**_checked("liteflownet", options, ())),
}
"""Name -> function of the options that makes the module."""


def create_model(name: str, **options: Any) -> Any:
    """Builds a network, a Flax module, by name.

    Args:
        name: one of MODELS.
        options: fields of the model's configuration that differ from the named variant, such as
            `compute_dtype="bfloat16"`.
    Raises:
        ValueError: unknown name or option (the message lists those there are), or a value the model refuses.
    """
    return MODELS[check_model_name(name)](**options)


def option_types(name: str) -> dict[str, type]:
    """The options of a network by name, and of what type each is: int, float, bool, str or tuple."""
    config = getattr(create_model(name), "config", None)
    hints = typing.get_type_hints(type(config)) if config is not None else {}
    return {field: _plain_type(hint) for field, hint in hints.items()}


def example_inputs(model: Any) -> tuple[jax.Array, ...]:
    """The smallest inputs a model is initialised with: a one-frame clip, or a flow network's two images."""
    size = model.size_multiple
    if is_flow_network(model):
        image = jnp.zeros((1, size, size, 3))
        return image, image
    return (jnp.zeros((1, 1, size, size, 3)),)


def initial_variables(key: jax.Array, model: Any) -> Variables:
    """A model's initial variables, `model.init` on its example inputs.

    Compiled in one go and without optimising: op by op, or optimised, the random numbers of a network of two hundred
    layers take a minute to compile and a second to draw.
    """
    return jit(model.init, optimized=False)(key, *example_inputs(model))


def is_flow_network(model: Any) -> bool:
    """Whether a network estimates flow; otherwise it restores frames."""
    return not hasattr(model, "step")


def check_model_name(name: str) -> str:
    """Returns the name, or raises a ValueError that lists the names there are."""
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"no model is called {name!r}{hint} Models: {', '.join(MODELS)}")
    return name


def _configure(config: type, defaults: dict[str, Any], options: dict[str, Any]) -> Any:
    names = [field.name for field in dataclasses.fields(config)]
    # A checkpoint's JSON has lists for tuples.
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    return config(**{**defaults, **_checked(config.__name__, options, names)})


def _checked(owner: str, options: dict[str, Any], names: Any) -> dict[str, Any]:
    unknown = [option for option in options if option not in names]
    if unknown:
        raise ValueError(f"{owner} has no option {', '.join(unknown)}; options: {', '.join(names) or 'none'}")
    return options


def _plain_type(hint: Any) -> type:
    """Literal["a", "b"] is str, int | None is int, tuple[int, ...] is tuple."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return type(arguments[0])
    if origin in (types.UnionType, typing.Union):
        return _plain_type(next(argument for argument in arguments if argument is not type(None)))
    return origin or hint

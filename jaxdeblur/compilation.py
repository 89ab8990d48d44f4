"""How programs are compiled: every jitted function of the package is made here.

XLA's CPU compiler hands convolutions to YNNPACK where its flag `xla_cpu_experimental_ynn_fusion_type` names them, as it
does by default in jaxlib 0.10. There a large program can come out wrong on some processors, as the cascade of
`cdvd_tsp` on frames of 68x108 does in its last stage. Without these convolutions values are right. jaxlib that does not
know the flag does not have the fault.

oneDNN's convolutions, which come with jaxlib from 0.12 on but must be asked for, are right, and faster than XLA's own:
docs/performance.md says by how much. A program that holds them cannot be written to a file, so they are left out where
JAX is told to keep its programs in a folder (`JAX_COMPILATION_CACHE_DIR`).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

_WITHOUT_YNNPACK: dict[str, str | bool] = {"xla_cpu_experimental_ynn_fusion_type": ""}
_WITH_ONEDNN: dict[str, str | bool] = {"xla_cpu_experimental_onednn_custom_call": True}


def compiler_options(*, optimized: bool = True) -> dict[str, str | bool]:
    """What the compiler of the default backend is told beside its own defaults, for `jax.jit(compiler_options=...)`.

    Args:
        optimized: False for programs that run once, whose compilation takes longer than what it saves.
    """
    options: dict[str, str | bool] = {} if optimized else {"xla_backend_optimization_level": "0"}
    if jax.default_backend() == "cpu":
        if _is_known(*_WITHOUT_YNNPACK.items()):
            options |= _WITHOUT_YNNPACK
        if optimized and not _keeps_programs() and has_onednn():
            options |= _WITH_ONEDNN
    return options


@functools.cache
def has_onednn() -> bool:
    """Whether programs of the default backend can have oneDNN's convolutions: a CPU's, by a jaxlib built with them."""
    if jax.default_backend() != "cpu" or not _is_known(*_WITH_ONEDNN.items()):
        return False
    image, kernel = jax.ShapeDtypeStruct((1, 8, 8, 8), "float32"), jax.ShapeDtypeStruct((3, 3, 8, 8), "float32")

    def convolved(image: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    program = jax.jit(convolved, compiler_options=_WITH_ONEDNN).lower(image, kernel).compile()
    return "__onednn$convolution" in (program.as_text() or "")


def _keeps_programs() -> bool:
    """Whether JAX writes what it compiles to a folder, to read it in the next process."""
    config: Any = jax.config  # of whose options type checkers know nothing
    return bool(config.jax_compilation_cache_dir) and bool(config.jax_enable_compilation_cache)


def jit(function: Callable[..., Any] | None = None, /, *, optimized: bool = True, **options: Any) -> Any:
    """`jax.jit` with the options above; usable as a decorator, with or without arguments.

    Called while another function is being traced, the function becomes a part of that one's program, which JAX lets
    have only one set of options.

    Args:
        function: what is compiled.
        optimized: as for `compiler_options`.
        options: of `jax.jit`, such as `static_argnames`.
    Returns:
        A function that is called as `function` is, and has `lower` as `jax.jit` gives it.
    """
    if function is None:
        return functools.partial(jit, optimized=optimized, **options)
    return _Jitted(function, optimized, options)


class _Jitted:
    """A function and its two compiled forms, of which the first is made when it is first called: only then may the
    backend be started."""

    def __init__(self, function: Callable[..., Any], optimized: bool, options: dict[str, Any]) -> None:
        functools.update_wrapper(self, function)
        self._optimized = optimized
        self._options = options
        self._inner = jax.jit(function, **options)

    @functools.cached_property
    def _outermost(self) -> Any:
        options = compiler_options(optimized=self._optimized)
        return jax.jit(self.__wrapped__, compiler_options=options, **self._options)  # type: ignore[attr-defined]

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        is_traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((arguments, named)))
        return (self._inner if is_traced else self._outermost)(*arguments, **named)

    def lower(self, *arguments: Any, **named: Any) -> Any:
        """As `jax.jit(...).lower`; what it compiles is what a call with such arguments runs."""
        return self._outermost.lower(*arguments, **named)

    def _cache_size(self) -> int:
        """As of `jax.jit`: how many programs there are."""
        return self._outermost._cache_size()  # type: ignore[no-any-return]


@functools.cache
def _is_known(*options: tuple[str, str | bool]) -> bool:
    """Whether the installed jaxlib has these options."""
    try:
        jax.jit(lambda: 0, compiler_options=dict(options)).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return False
    return True

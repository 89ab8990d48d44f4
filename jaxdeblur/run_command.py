"""What the commands of a run, train.py and evaluate.py, share: the --config flag, and faults said in one line."""

import difflib
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import jax
from absl import app, flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_dict import placeholder

from jaxdeblur.models import create_model, option_types

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)")


def define_config(help_text: str) -> flags.FlagHolder:
    """The flag --config=FILE.py[:VARIANT], with --config.FIELD=VALUE for every field of the file, and every field of
    the named model's configuration whether the file mentions it or not."""
    holder = config_flags.DEFINE_config_file("config", None, help_text)
    flags.FLAGS["config"].parser = _ConfigParser()
    flags.mark_flag_as_required("config")
    return holder


def given_fields() -> dict[str, Any]:
    """The fields that the command line sets, as "data.batch_size", with their values."""
    return dict(config_flags.get_override_values(flags.FLAGS["config"]))


def start(main: Callable[[list[str]], None], script: str, *, failures: tuple[type[Exception], ...] = ()) -> NoReturn:
    """Runs `main` on the command line's arguments; never returns.

    A command that cannot be carried out ends in one line on stderr and exit code 2; one that was begun and met one of
    `failures`, likewise with exit code 1.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        app.run(main, flags_parser=_parse)
    except failures as error:
        _leave(script, error, 1)
    except (ValueError, OSError, ImportError, flags.Error, app.UsageError) as error:
        _leave(script, error, 2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def check_devices() -> None:
    """Raises a ValueError if JAX does not find what it is to compute on."""
    try:
        jax.devices()
    except Exception as error:  # JAX fails in as many ways as there are platforms
        said = (str(error).splitlines() or [f"there is no {os.environ.get('JAX_PLATFORMS', 'device')}"])[0]
        raise ValueError(f"JAX cannot be started: {said}. JAX_PLATFORMS=cpu does without an accelerator") from error


def _leave(script: str, error: Exception, code: int) -> NoReturn:
    print(f"{script}: error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(code)


def _parse(argv: list[str]) -> list[str]:
    """The arguments that are no flags, of which there may be none."""
    try:
        rest = flags.FLAGS(argv)
    except (AttributeError, KeyError, IndexError, TypeError) as error:  # a value put where it cannot be
        raise ValueError(f"the --config flags cannot be read: {error}") from error
    if len(rest) > 1:
        raise app.UsageError(f"unexpected arguments {' '.join(rest[1:])}; every option is a flag, as --workdir=FOLDER")
    return rest


class _ConfigParser(flags.ArgumentParser):
    """Loads the file; its messages are the file's own, without a traceback."""

    def parse(self, path: str) -> Any:
        if isinstance(path, ConfigDict):
            return path
        file, _, variant = path.partition(":")
        if not os.path.isfile(file):
            near = difflib.get_close_matches(file, _configurations(os.path.dirname(file)), n=1)
            raise ValueError(f"there is no file {file}{f'; did you mean {near[0]}?' if near else ''}")
        config = _load(file).get_config(*([variant] if variant else []))
        argv = flags.FLAGS.read_flags_from_files(sys.argv[1:], force_gnu=False)
        with config.unlocked():
            prepare_overrides(config, argv)
        return config.lock()


def _load(file: str) -> Any:
    """The module of a file that need not lie in a package."""
    spec = importlib.util.spec_from_file_location("run_config", file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file} is no Python file; expected a configuration such as configs/mtu.py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever is wrong with a file of Python
        raise ValueError(f"{file} cannot be loaded: {type(error).__name__}: {error}") from error
    if not hasattr(module, "get_config"):
        raise ValueError(f"{file} has no get_config; expected a configuration such as configs/mtu.py")
    return module


def prepare_overrides(config: ConfigDict, argv: list[str]) -> None:
    """Gives `config.model` those fields of the model's configuration that the command line sets.

    Raises:
        ValueError: the command line sets a field that there is not; the message names those nearby.
    """
    given = [match[1] for argument in argv if (match := _OVERRIDE.match(argument))]
    if "model" in config and (name := _model_name(config, argv)):
        types = option_types(name)
        defaults = getattr(create_model(name), "config", None)
        for field in {path.removeprefix("model.") for path in given if path.startswith("model.")} & types.keys():
            if field not in config.model:
                default = getattr(defaults, field)
                config.model[field] = placeholder(types[field]) if default is None else default
        known = {*config.model, *types}
    else:
        known = set(config.get("model", ()))
    for path in given:
        _check_field(config, path, known)


def _model_name(config: ConfigDict, argv: list[str]) -> str:
    """The name that the command line gives, or the configuration."""
    name = config.model.name
    for place, argument in enumerate(argv):
        if match := re.match(r"--?config\.model\.name(?:=(.*))?$", argument):
            name = match[1] if match[1] is not None else "".join(argv[place + 1 : place + 2])
    return name


def _check_field(config: ConfigDict, path: str, of_model: set[str]) -> None:
    at: Any = config
    parts = path.split(".")
    for depth, part in enumerate(parts):
        if "[" in part:
            return  # an element of a tuple, which the flag checks
        names = of_model if parts[:depth] == ["model"] else set(at) if isinstance(at, ConfigDict) else set()
        if part not in names:
            raise ValueError(f"there is no field config.{path}. {_nearby(config, parts, depth, names)}")
        at = at.get(part)


def _nearby(config: ConfigDict, parts: list[str], depth: int, names: set[str]) -> str:
    """What may have been meant, and else all there is."""
    section = ".".join(["config", *parts[:depth]])
    if near := difflib.get_close_matches(parts[depth], sorted(names), n=3, cutoff=0.7):
        return f"Did you mean {_quoted(near)} in {section}?"
    elsewhere = [path for path in _paths(config) if path.split(".")[-1] == parts[-1]]
    if elsewhere:
        return f"Did you mean {_quoted([f'config.{path}' for path in elsewhere])}?"
    return f"{section} has {', '.join(sorted(names)) or 'no fields'}"


def _quoted(names: list[str]) -> str:
    return " or ".join(f'"{name}"' for name in names)


def _paths(config: ConfigDict, prefix: str = "") -> list[str]:
    paths = []
    for name, value in config.items():
        paths += _paths(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else [f"{prefix}{name}"]
    return paths


def _configurations(folder: str) -> list[str]:
    try:
        return [os.path.join(folder, name) for name in os.listdir(folder or ".") if name.endswith(".py")]
    except OSError:
        return []

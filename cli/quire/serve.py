"""`quire serve MODEL`: its flags are the fields of EngineConfig and ServerConfig, so that each setting has one home."""

import contextlib
import difflib
import inspect
import json
import logging
import os
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
import typer
import typer.core
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from quire_api.errors import UserError
from quire_runtime.agent.source import check_source
from quire_runtime.config import SECRET, EngineConfig
from quire_runtime.engine.child import EngineChild, early_child
from quire_runtime.engine.errors import EngineDied, EngineStartFailed
from quire_runtime.server.config import ServerConfig
from quire_runtime.server.start import start

ENVIRONMENT = {
    "internal_key": "QUIRE_INTERNAL_KEY",
    "api_key": "QUIRE_API_KEY",
    "kernel_cache": "QUIRE_KERNEL_CACHE",
}
TERMINATION_LOG = "QUIRE_TERMINATION_LOG"
"""File for a JSON object with reason and message when `quire serve` ends by an error."""
FAILED = 1
_UsageError: Any = typer.BadParameter.__base__
"""Typer brings its own click or takes another's; this is a public name's way to either."""
_NO_FLAG = frozenset({"model", "internal_key"})


class BadSetting(UserError):
    """A configuration file is unreadable or names a setting that does not exist."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One resolved value and where it came from."""

    name: str
    value: Any
    source: str

    def __str__(self) -> str:
        shown = "***" if self.name in SECRET and self.value else json.dumps(self.value, default=str)
        return f"{self.name:<32} {shown:<28} {self.source}"


def main(arguments: list[str], child: EngineChild | None = None) -> None:
    """Parse the command line behind `quire serve` and serve, with the engine of `child` where there is one already.

    Raises:
        UserError
    """
    _application(child)(arguments, prog_name="quire serve")


def check_arguments(arguments: list[str]) -> None:
    """Look at what would follow `quire serve`, and serve nothing.

    Raises:
        BadSetting: a flag that does not exist, or lacks its value.
        UserError: a value that does not fit.
    """
    try:
        given = dict(typer.main.get_command(_application()).make_context("quire serve", list(arguments)).params)
    except _UsageError as error:
        said = error.format_message().rstrip(".")
        raise BadSetting(f"{said[:1].lower()}{said[1:]}. See `quire serve --help`.") from None
    except typer.Exit:
        raise BadSetting("--help serves nothing. Leave it out.") from None
    given.pop("explain")
    _configs(resolve(given.pop("model"), given, given.pop("config"), {}))


def complete_flag(context: Any, incomplete: str) -> list[Any]:
    """Completion items of the flags that begin with `incomplete`."""
    return typer.main.get_command(_application()).shell_complete(context, incomplete)


def _application(child: EngineChild | None = None) -> typer.Typer:
    def serve(**given: Any) -> None:
        model, explain, config = given.pop("model"), given.pop("explain"), given.pop("config")
        run_serve(model, explain=explain, config_file=config, flags=given, child=child)

    parameters = list(_parameters())
    serve.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    serve.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    serve.__doc__ = "Serve one model over the OpenAI API. Flags mean what they mean to `vllm serve`."
    app = typer.Typer(
        add_completion=False,  # `quire` has it
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command(cls=_Command, epilog="Example:  quire serve models/quire-tiny --port 8000 --max-model-len 2k")(serve)
    return app


class _Command(typer.core.TyperCommand):
    """Lets one flag take several values, as `vllm serve` does: --served-model-name a b."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        many = {f"--{name.replace('_', '-')}" for name, field in settings_fields() if _is_list(field)}
        spread: list[str] = []
        flag: str | None = None
        taken = 0
        for argument in args:
            if argument.startswith("-"):
                flag, taken = (argument if argument in many else None), 0
            elif flag is not None:
                spread += [flag] if taken else []
                taken += 1
            spread.append(argument)
        return super().parse_args(ctx, spread)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """In groups: what the engine does, what the server does, and the rest."""
        groups = {
            "Arguments": ["model"],
            "Engine": list(EngineConfig.model_fields),
            "Server": list(ServerConfig.model_fields),
        }
        left = {parameter.name: parameter.get_help_record(ctx) for parameter in self.get_params(ctx)}
        for title, names in groups.items():
            _write_records(formatter, title, [left.pop(name, None) for name in names])
        _write_records(formatter, "Options", list(left.values()))


def _write_records(formatter: click.HelpFormatter, title: str, records: list[tuple[str, str] | None]) -> None:
    with formatter.section(title):
        formatter.write_dl([record for record in records if record is not None])


def run_serve(
    model: str | None,
    *,
    explain: bool,
    config_file: Path | None,
    flags: Mapping[str, Any],
    child: EngineChild | None = None,
) -> None:
    """Resolve every setting, then serve, or with `explain` print them and return.

    Raises:
        UserError
    """
    settings = resolve(model, flags, config_file, os.environ)
    engine, server = _configs(settings)
    if explain:
        resolved = {**engine.model_dump(), **server.model_dump()}
        for setting in settings:
            print(Setting(setting.name, resolved[setting.name], setting.source))
        return
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        check_source(engine.model, engine.revision)
        with contextlib.ExitStack() as held:
            start(engine, server, child or held.enter_context(early_child()))
    except UserError as error:
        _leave_word(error.reason if isinstance(error, EngineStartFailed) else type(error).__name__, error)
        raise
    except EngineDied as error:
        _leave_word(error.reason, error)
        print(f"quire: {error}", file=sys.stderr)
        sys.exit(FAILED)


def resolve(
    model: str | None, flags: Mapping[str, Any], config_file: Path | None, environment: Mapping[str, str]
) -> list[Setting]:
    """Every setting's value: flags go before the environment, that before the file, that before defaults.

    Raises:
        BadSetting
    """
    stored = {} if config_file is None else _read(config_file)
    unknown = stored.keys() - {name for name, _ in settings_fields()}
    if unknown:
        name = sorted(unknown)[0]
        near = difflib.get_close_matches(name, [known for known, _ in settings_fields()], n=1)
        hint = f"Did you mean {near[0]}?" if near else "See `quire serve --help`."
        raise BadSetting(f"{config_file} names {name!r}, which is no setting. {hint}")
    settings = []
    for name, field in settings_fields():
        variable = ENVIRONMENT.get(name, "")
        given = model if name == "model" else flags.get(name)
        if given not in (None, []):
            settings.append(Setting(name, _parsed(field, given), f"flag --{name.replace('_', '-')}"))
        elif environment.get(variable):
            value: Any = environment[variable]
            settings.append(Setting(name, [value] if _is_list(field) else value, f"environment {variable}"))
        elif name in stored:
            value = stored[name]
            several = [value] if _is_list(field) and isinstance(value, str) else value
            settings.append(Setting(name, several, f"file {config_file}"))
        elif field.is_required():
            raise BadSetting(f"quire serve needs {name.upper()}: a directory, file:// or hf:// source.")
        else:
            settings.append(Setting(name, field.get_default(call_default_factory=True), "default"))
    return settings


def _configs(settings: list[Setting]) -> tuple[EngineConfig, ServerConfig]:
    """
    Raises:
        InvalidConfig
    """
    values = {setting.name: setting.value for setting in settings}
    return (
        EngineConfig.of(**{name: values[name] for name in EngineConfig.model_fields}),
        ServerConfig.of(**{name: values[name] for name in ServerConfig.model_fields}),
    )


def _leave_word(reason: str, error: Exception) -> None:
    """Say why this process ends, for whoever started it."""
    if path := os.environ.get(TERMINATION_LOG):
        Path(path).write_text(json.dumps({"reason": reason, "message": str(error)}))


def settings_fields() -> Iterator[tuple[str, FieldInfo]]:
    configs: tuple[type[BaseModel], ...] = (EngineConfig, ServerConfig)
    for config in configs:
        yield from config.model_fields.items()


def _parameters() -> Iterator[inspect.Parameter]:
    yield _parameter("model", Annotated[str | None, typer.Argument(help="Directory, file:// or hf:// source.")])
    for name, field in settings_fields():
        if name in _NO_FLAG:
            continue
        flag = f"--{name.replace('_', '-')}"
        kind = _flag_type(field)
        spelled = f"{flag}/--no-{flag[2:]}" if kind is bool else flag
        yield _parameter(name, Annotated[kind | None, typer.Option(spelled, help=setting_help(name, field))])
    explain = typer.Option("--explain", help="Print every resolved value and where it came from, and end.")
    yield _parameter("explain", Annotated[bool, explain], default=False)
    file = typer.Option("--config", help="YAML file with settings, named as the flags.")
    yield _parameter("config", Annotated[Path | None, file])


def _parameter(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _flag_type(field: FieldInfo) -> Any:
    """What the command line parses; pydantic checks the rest."""
    if _is_list(field):
        return list[str]
    annotations = (field.annotation, *field.metadata)
    kinds = {kind for kind in _members(field.annotation) if kind is not type(None)}
    reads_text = "BeforeValidator" in repr(annotations)
    return kinds.pop() if len(kinds) == 1 and kinds <= {bool, int, float} and not reads_text else str


def _is_list(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is list


def _members(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(member for part in get_args(annotation) for member in _members(part))
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    return (annotation,)


def setting_help(name: str, field: FieldInfo) -> str:
    kinds = [kind for kind in _members(field.annotation) if kind is not type(None)]
    choices = [str(value) for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]
    parts = [field.description or name.replace("_", " ").capitalize() + "."]
    if all(get_origin(kind) is Literal for kind in kinds):
        parts.append(f"One of: {', '.join(choices)}.")
    default = field.get_default(call_default_factory=True)
    if default not in (None, "", [], {}):
        parts.append(f"Default: {default}.")
    if name in ENVIRONMENT:
        parts.append(f"Environment: {ENVIRONMENT[name]}.")
    return " ".join(parts)


def _parsed(field: FieldInfo, given: Any) -> Any:
    """Flags of structured settings hold JSON."""
    if get_origin(field.annotation) is not dict or not isinstance(given, str):
        return given
    try:
        return json.loads(given)
    except ValueError as error:
        raise BadSetting(f"{given!r} is not JSON: {error}.") from None


def _read(file: Path) -> dict[str, Any]:
    try:
        stored = yaml.safe_load(file.read_text()) or {}
    except OSError as error:
        raise BadSetting(f"{file} cannot be read: {error.strerror}.") from None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise BadSetting(f"{file}{line}: is not valid YAML: {error.problem}.") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadSetting(f"{file} is not valid YAML: {str(error).splitlines()[0]}.") from None
    if not isinstance(stored, dict):
        raise BadSetting(f"{file} must hold settings as `name: value` lines.")
    return {str(name).replace("-", "_"): value for name, value in stored.items()}

"""The command line: a verb, then Hydra overrides.

This is the only file that imports Hydra. Heavy modules are imported when a verb needs them."""

from __future__ import annotations

import re
import signal
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from orchestrator import __version__
from orchestrator.config import Config, parse
from orchestrator.engine import stop_signals
from orchestrator.errors import ClusterError, Stopped, UserError, causes, is_ray_wrapper, one_line

# the module of each verb's function, imported when the verb runs
VERBS = dict.fromkeys(("run", "plan", "select", "evaluate", "report", "export"), "orchestrator.pipeline")
VERBS["sweep"] = "orchestrator.sweep.execute"
# the experiment of a verb without arguments
DEMOS = {"run": "demo", "plan": "demo", "select": "demo", "sweep": "demo_sweep"}
NEED_NO_SOURCE = ("evaluate", "report", "export")
# verbs that build stages under leases, and stop when a lease is lost
BUILD = ("run", "select", "evaluate", "sweep")
PATH_KEYS = (
    "uri",
    "root",
    "cache",
    "out",
    "store",
    "run",
    "to",
    "checkpoint",
    "pretrained",
    "mlflow_uri",
    "metadata",
    "language_model",
)
USAGE_ERROR, FAILURE = 2, 1
# Ray raises these in the driver when it has lost a node or process for good, such as the driver's own node. An error in
# our own code inside an actor has one of these classes too, and OWN_FAULT in its message
LOST = ("ActorDiedError", "LocalRayletDiedError", "NodeDiedError", "OwnerDiedError", "WorkerCrashedError")
OWN_FAULT = "creation task"
# a shell expands {00000..00999} to words that differ in their digits only
DIGITS = re.compile(r"\d+")
# values that cannot be the name of a file in a group
NO_NAME = re.compile(r"null|true|false|[-+.\d]+|\{.*\}", re.IGNORECASE | re.DOTALL)
# a list, or a quoted value: the user wrote Hydra's grammar
HYDRA_SYNTAX = re.compile(r"\[.*\]|'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)


def conf_dir() -> str:
    """Return the folder of configuration groups: beside the package in a checkout, inside it in a wheel."""
    here = Path(__file__).resolve().parent
    beside = here.parent / "conf"
    return str(beside if beside.is_dir() else here / "conf")


def for_hydra(overrides: Sequence[str]) -> list[str]:
    """Return the overrides in Hydra's grammar: values of keys that take a path are quoted.

    A shell removes the user's quotes. The grammar then rejects `{`, `=` and blanks, and reads `2024` as a number.
    `null`, lists and quoted values stay as they are."""
    return [_quote(one) for override in overrides for one in _with_plus(override)]


def _with_plus(override: str) -> list[str]:
    # users name the dimensions of a sweep's space, and Hydra wants a + for new keys; a whole space replaces the default
    if override.startswith("sweep.space="):
        return ["~sweep.space", f"+{override}"]
    if override.startswith("sweep.space."):
        return [f"++{override}"]
    if override in ("finetune=null", "finetune=false"):
        return ["finetune.enabled=false"]
    # users write +evaluation=imagenet like +exp=...; for Hydra it replaces the default group and takes no +
    return [override.removeprefix("+") if override.startswith("+evaluation=") else override]


def _quote(override: str) -> str:
    key, equals, value = override.partition("=")
    if not equals or key.lstrip("+~").rsplit(".", 1)[-1] not in PATH_KEYS:
        return override
    if value == "null" or HYDRA_SYNTAX.fullmatch(value):
        return override
    # the grammar halves backslashes before a quote, and nowhere else
    escaped = re.sub(r"(\\+)$", r"\1\1", re.sub(r"(\\*)'", r"\1\1\\'", value))
    return f"{key}='{escaped}'"


def main(argv: Sequence[str] | None = None) -> None:
    """Run a verb and exit with code 0, 2 for a user's mistake (one line on stderr), 1 for an internal error (with its
    traceback), 130 after SIGINT or 143 after SIGTERM."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        print(f"clip-orchestrator {__version__}")
        return
    verb = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if verb is not None and verb not in VERBS:
        _fail(f"unknown verb {verb!r}, expected one of: {', '.join(VERBS)}")
    overrides = for_hydra(arguments[1:] if verb else arguments)
    folder, overrides = _take_config_dir(overrides)
    if verb in DEMOS and not any(_names_data(override) for override in overrides):
        overrides = [f"+exp={DEMOS[verb]}", *overrides]
    if any(override.startswith("-") for override in overrides) or verb is None:
        _hydra_cli(verb, overrides or ["--help"], folder)
        return
    with stop_signals.handled(before_stop=_stop_trials if verb == "sweep" else None, until_exit=argv is None):
        _run_verb(verb, overrides, folder, owns_process=argv is None)


def _run_verb(verb: str, overrides: Sequence[str], folder: str | None, *, owns_process: bool) -> None:
    try:
        with stop_signals.ending_at_once() if owns_process else nullcontext():
            config = compose_config(overrides, folder, needs_source=verb not in NEED_NO_SOURCE)
            function = _function(verb)
        function(config)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            stop_signals.note(signal.SIGINT)
        stopped = _stop_in(error)
        if stopped is not None or stop_signals.received() is not None:
            _exit_stopped(stopped, verb)
        if isinstance(error, SystemExit):
            raise
        _explain(error, verb)


def _stop_in(error: BaseException) -> Stopped | None:
    """Return the stop request that led to the error."""
    # an exception that a signal handler raises inside one of Ray's calls becomes the cause of a SystemError
    chain = [error, error.__cause__]
    if stop_signals.received() is not None:
        chain += causes(error, contexts=True)
    return next((one for one in chain if isinstance(one, Stopped)), None)


def _function(verb: str) -> Callable[[Config], None]:
    function: Any = getattr(import_module(VERBS[verb]), verb)
    # a lost lease stops the command as SIGTERM does: training ends with a checkpoint
    return partial(function, on_lost=stop_signals.stop_ourselves) if verb in BUILD else function


def _how_to_resume(verb: str) -> str:
    return f"run the same command again{' with resume=true' if verb == 'sweep' else ''} to resume"


def _stop_trials() -> None:
    from orchestrator.training.phase_signals import stop_phases

    # the phases stop before Tune learns of the signal, because Tune then ends its trials; in a thread, because this one
    # may be inside one of Ray's calls
    asking = threading.Thread(target=stop_phases, daemon=True)
    asking.start()
    asking.join()


def _exit_stopped(stopped: Stopped | None, verb: str) -> NoReturn:
    message, number = f"stopped by {stop_signals.name()}", stop_signals.received() or signal.SIGTERM
    if verb != "plan":
        message = str(stopped) if stopped and verb != "sweep" else f"{message}; {_how_to_resume(verb)}"
    _fail(message, stop_signals.SIGNALLED + number)


def compose_config(overrides: Sequence[str], folder: str | None = None, *, needs_source: bool = True) -> Config:
    """Return the typed configuration of the overrides.

    Errors: `UserError` with one line for an override that Hydra or the types refuse."""
    _check_once(overrides)
    _check_groups(overrides)
    if folder is not None and not Path(folder).is_dir():
        raise UserError(f"--config-dir={folder}: no such folder")
    missing = [] if needs_source else ["++source.uri=null"]
    try:
        with initialize_config_dir(conf_dir(), version_base="1.3"):
            composed = compose("config", overrides=[*_search_path(folder), *missing, *overrides])
            raw: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = error.full_key
        raise UserError(f"{key} is missing: set {key}=...") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_hydra_message(error, folder)) from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"a file of the configuration is not YAML: {one_line(error)}") from error
    if "exp" in raw:
        raise UserError(
            f"an experiment sets {raw['exp']!r}; expected `# @package _global_` as the first line of its file"
        )
    return parse(raw)


def _check_once(overrides: Sequence[str]) -> None:
    # Hydra uses the last of several values, so a pattern that a shell expanded would leave one shard of the pool
    alike = Counter(DIGITS.sub("0", override) for override in dict.fromkeys(overrides))
    for override, times in alike.items():
        key = override.partition("=")[0]
        if times > 1 and key.rsplit(".", 1)[-1] in PATH_KEYS:
            raise UserError(
                f"{key} is given {times:,} times with different numbers: the shell expands {{...}} that is not quoted. "
                f"`ray job submit` runs a second shell: quote the value twice there, {key}=\"'...'\""
            )


def _check_groups(overrides: Sequence[str]) -> None:
    # Hydra refuses these values with an error that names neither the group nor its files
    for override in overrides:
        group, _, value = override.partition("=")
        folder = Path(conf_dir()) / group.lstrip("+")
        if NO_NAME.fullmatch(value) and folder.name and folder.is_dir():
            names = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
            raise UserError(
                f"{override}: expected the name of a file in conf/{folder.name}: {names}; to change one setting of the "
                f"group, write {folder.name}.KEY=VALUE"
            )


def _hydra_message(error: BaseException, folder: str | None) -> str:
    message = str(error).split("Config search path:")[0].split("Set the environment variable")[0]
    lines = [line.strip() for line in message.splitlines() if "object_type" not in line and "full_key" not in line]
    text = " ".join(line for line in lines if line).removeprefix("In 'config': ")
    options = re.search(r"(Available options in '[^']+':)(.*)", text)
    if options:
        text = text.replace(options[2], " " + ", ".join(options[2].split()))
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        added = "; to apply an experiment, write +exp=NAME" if unknown[1] == "exp" else ""
        text = f"unknown key {unknown[1]!r}{added or _valid_keys(unknown[1], folder)}"
    return text


def _valid_keys(key: str, folder: str | None) -> str:
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        node: Any = compose("config", overrides=_search_path(folder))
    for name in key.split(".")[:-1]:
        if not OmegaConf.is_dict(node.get(name)):
            break
        node = node[name]
    return f", expected one of: {', '.join(map(str, node))}"


def _search_path(folder: str | None) -> list[str]:
    return [f"hydra.searchpath=['file://{Path(folder).resolve()}']"] if folder else []


def _names_data(override: str) -> bool:
    return override.startswith("-") or override.lstrip("+").split("=")[0].split(".")[0] in ("exp", "source")


def _take_config_dir(arguments: list[str]) -> tuple[str | None, list[str]]:
    for index, argument in enumerate(arguments):
        if argument.startswith("--config-dir="):
            return argument.partition("=")[2], arguments[:index] + arguments[index + 1 :]
        if argument in ("--config-dir", "-cd") and index + 1 < len(arguments):
            return arguments[index + 1], arguments[:index] + arguments[index + 2 :]
    return None, arguments


def _hydra_cli(verb: str | None, arguments: list[str], folder: str | None) -> None:
    extra = ["--config-dir", folder] if folder else []
    sys.argv = [f"orchestrator {verb or ''}".strip(), *arguments, *extra]
    hydra.main(config_path=conf_dir(), config_name="config", version_base="1.3")(lambda _: None)()


def _explain(error: BaseException, verb: str) -> NoReturn:
    lost = ""
    for one in causes(error, contexts=True):
        if isinstance(one, UserError) and not is_ray_wrapper(one):
            _fail(one_line(one), FAILURE if isinstance(one, ClusterError) else USAGE_ERROR)
        if isinstance(one, OSError) and one.filename is not None and not is_ray_wrapper(one):
            _fail(one_line(one), FAILURE)
        if type(one).__name__ in LOST and OWN_FAULT not in str(one):
            lost = type(one).__name__
    if lost:
        _fail(f"the cluster lost a node or process that this command needs ({lost}); {_how_to_resume(verb)}", FAILURE)
    traceback.print_exception(error)
    _fail(f"internal error ({type(error).__name__}): please report it with the traceback above", FAILURE)


def _fail(message: str, code: int = USAGE_ERROR) -> NoReturn:
    print(f"orchestrator: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    sys.exit(code)

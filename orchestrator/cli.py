"""The command line: a verb, then Hydra overrides. The only file that imports Hydra, and nothing heavy before it
must."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import hydra
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from orchestrator.config import Config, parse
from orchestrator.errors import Stopped, UserError, causes, line_of

# where the verb's function lives, imported only once it is needed
VERBS = dict.fromkeys(("run", "plan", "select", "evaluate", "report", "export"), "orchestrator.pipeline")
VERBS["sweep"] = "orchestrator.sweep.execute"
# what a verb does without arguments
DEMOS = {"run": "demo", "plan": "demo", "select": "demo", "sweep": "demo_sweep"}
NEED_NO_SOURCE = ("evaluate", "report", "export")
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
TERMINATED = 128 + signal.SIGTERM
# Ray reads it when it is imported: training workers and reading tasks are more processes than a laptop has cores
RAY_NOISE = "worker processes have been started on node"
# what Ray raises in the driver when a node or process is gone that no retry brings back, such as the driver's own node;
# unless it was our code in it that failed
LOST = ("ActorDiedError", "LocalRayletDiedError", "NodeDiedError", "OwnerDiedError", "WorkerCrashedError")
OWN_FAULT = "creation task"
# all that tells apart the words that a shell makes of {00000..00999}
DIGITS = re.compile(r"\d+")
# a list, or a value quoted whole: these the user wrote in Hydra's grammar
HYDRA_SYNTAX = re.compile(r"\[.*\]|'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)


def conf_dir() -> str:
    """The folder of configuration groups: beside the package in a checkout, inside it in a wheel."""
    here = Path(__file__).resolve().parent
    beside = here.parent / "conf"
    return str(beside if beside.is_dir() else here / "conf")


def for_hydra(overrides: Sequence[str]) -> list[str]:
    """Overrides as Hydra's grammar takes them: with the value quoted where the key takes a path.

    A shell strips the user's quotes, and the grammar then rejects raw `{`, `=` and blanks, and takes `2024` for a
    number; `null`, lists and quoted values stay as they are."""
    return [_quote(one) for override in overrides for one in _with_plus(override)]


def _with_plus(override: str) -> list[str]:
    # what a space holds is the user's to name, which Hydra asks a + for; a whole one takes the place of what was there
    if override.startswith("sweep.space="):
        return ["~sweep.space", f"+{override}"]
    if override.startswith("sweep.space."):
        return [f"++{override}"]
    # a list of tasks is added to a command like an experiment, though for Hydra it takes the place of the default
    return [override.removeprefix("+") if override.startswith("+evaluation=") else override]


def _quote(override: str) -> str:
    key, equals, value = override.partition("=")
    if not equals or key.lstrip("+~").rsplit(".", 1)[-1] not in PATH_KEYS:
        return override
    if value == "null" or HYDRA_SYNTAX.fullmatch(value):
        return override
    # the grammar halves backslashes before a quote, and only there
    escaped = re.sub(r"(\\+)$", r"\1\1", re.sub(r"(\\*)'", r"\1\1\\'", value))
    return f"{key}='{escaped}'"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a verb and exits: 0, 2 for a user's mistake (one line on stderr), 1 for a fault of ours (with its trace),
    143 after SIGTERM."""
    arguments = list(sys.argv[1:] if argv is None else argv)
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
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", RAY_NOISE)
    signal.signal(signal.SIGTERM, _sweep_terminated if verb == "sweep" else _terminated)
    try:
        config = compose_config(overrides, folder, needs_source=verb not in NEED_NO_SOURCE)
        getattr(import_module(VERBS[verb]), verb)(config)
    except KeyboardInterrupt:
        _fail(f"interrupted; {_goes_on(verb)}", FAILURE)
    except Stopped as stopped:
        _tell_stopped(stopped, verb)
    except Exception as error:  # noqa: BLE001 the last door: whatever comes is told, and ends with a code that is not 0
        # what a handler raises in one of Ray's calls comes out of it as the cause of a SystemError
        if isinstance(error.__cause__, Stopped):
            _tell_stopped(error.__cause__, verb)
        _explain(error, verb)


def _goes_on(verb: str) -> str:
    return f"the same command {'with resume=true ' if verb == 'sweep' else ''}goes on where it stopped"


def _sweep_terminated(number: int, frame: FrameType | None) -> NoReturn:
    from orchestrator.training.phase_signals import stop_phases

    # who asks again means at once
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # while Tune waits: once it knows it ends its trials. Not in this thread, which may be in one of Ray's calls
    asking = threading.Thread(target=stop_phases, daemon=True)
    asking.start()
    asking.join()
    _terminated(number, frame)


def _tell_stopped(stopped: Stopped, verb: str) -> NoReturn:
    if verb == "plan":
        _fail("stopped by SIGTERM", TERMINATED)
    _fail(str(stopped) if verb != "sweep" else f"stopped by SIGTERM; {_goes_on(verb)}", TERMINATED)


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(f"stopped by SIGTERM; {_goes_on('run')}")


def compose_config(overrides: Sequence[str], folder: str | None = None, *, needs_source: bool = True) -> Config:
    """The typed configuration that the overrides make.

    Errors: `UserError` with one line for what Hydra or the types refuse."""
    _check_once(overrides)
    missing = [] if needs_source else ["++source.uri=null"]
    try:
        with initialize_config_dir(conf_dir(), version_base="1.3"):
            composed = compose("config", overrides=[*_search_path(folder), *missing, *overrides])
            raw: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = error.full_key
        raise UserError(f"{key} is missing: set {key}=...") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_one_line(error, folder)) from error
    return parse(raw)


def _check_once(overrides: Sequence[str]) -> None:
    # of several Hydra takes the last: a shell that expanded the braces would leave one shard of a pool
    alike = Counter(DIGITS.sub("0", override) for override in dict.fromkeys(overrides))
    for override, times in alike.items():
        key = override.partition("=")[0]
        if times > 1 and key.rsplit(".", 1)[-1] in PATH_KEYS:
            raise UserError(
                f"{key} is given {times:,} times with other numbers: a shell expands {{...}} that is not quoted, in "
                f"`ray job submit` a second one: quote it twice there, {key}=\"'...'\""
            )


def _one_line(error: BaseException, folder: str | None) -> str:
    told = str(error).split("Config search path:")[0].split("Set the environment variable")[0]
    lines = [line.strip() for line in told.splitlines() if "object_type" not in line and "full_key" not in line]
    text = " ".join(line for line in lines if line).removeprefix("In 'config': ")
    options = re.search(r"(Available options in '[^']+':)(.*)", text)
    if options:
        text = text.replace(options[2], " " + ", ".join(options[2].split()))
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        text = f"unknown key {unknown[1]!r}{_valid_keys(unknown[1], folder)}"
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
        # Ray wraps what a task raised: the wrapper is of its class but tells the whole trace, `cause` is the original
        is_wrapper = getattr(one, "cause", None) is not None
        if isinstance(one, UserError) and not is_wrapper:
            _fail(line_of(one))
        if isinstance(one, OSError) and one.filename is not None and not is_wrapper:
            _fail(f"{one.strerror}: {one.filename}", FAILURE)
        if type(one).__name__ in LOST and OWN_FAULT not in str(one):
            lost = type(one).__name__
    if lost:
        _fail(f"the cluster lost a node or process that this command was on ({lost}); {_goes_on(verb)}", FAILURE)
    traceback.print_exception(error)
    _fail(f"this is a fault of the orchestrator's: {type(error).__name__}", FAILURE)


def _fail(message: str, code: int = USAGE_ERROR) -> NoReturn:
    print(f"orchestrator: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    sys.exit(code)

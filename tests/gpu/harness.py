"""Run sections one after another, each in a process of its own that ends at its deadline, and keep all partial results.

A section is a generator of checks. Its process is a fork of this one, which has imported torch but never touches the
GPU: so a section starts in a second, gets all of the GPU's memory, and a crash or a hang of one section costs no other
its result. Every check is on disk as soon as it is known."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.gpu.lab import Lab

Outcome = Literal["pass", "fail", "skipped"]
# a section that cannot get at least this time is not started
MIN_SECONDS = 2.0
POLL_SECONDS = 0.05


class Skip(Exception):
    """A section cannot run here; its text is the reason."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One measured value. `passed` is None for a figure without a bound; `expected` is the bound in words."""

    name: str
    value: float | str
    unit: str = ""
    expected: str = ""
    passed: bool | None = None


def at_most(name: str, value: float, bound: float, unit: str = "") -> Check:
    """Return a check that `value` is a number not above `bound`."""
    return Check(name=name, value=value, unit=unit, expected=f"at most {bound:g}", passed=bool(value <= bound))


def at_least(name: str, value: float, bound: float, unit: str = "") -> Check:
    """Return a check that `value` is a number not below `bound`."""
    return Check(name=name, value=value, unit=unit, expected=f"at least {bound:g}", passed=bool(value >= bound))


def equal(name: str, value: float | str, wanted: float | str) -> Check:
    """Return a check that `value` is `wanted`."""
    return Check(name=name, value=value, expected=f"{wanted}", passed=value == wanted)


def figure(name: str, value: float | str, unit: str = "") -> Check:
    """Return a measured value without a bound."""
    return Check(name=name, value=value, unit=unit)


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a call: what it shows, its checks, and the seconds after which its process ends."""

    name: str
    run: Callable[[Lab], Iterator[Check]]
    seconds: float

    @property
    def shows(self) -> str:
        """The first line of the function's docstring."""
        return (self.run.__doc__ or "").strip().splitlines()[0]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a section gave: `reason` says why it failed or was skipped."""

    name: str
    shows: str
    outcome: Outcome
    reason: str = ""
    seconds: float = 0.0
    checks: list[Check] = field(default_factory=list)


def run_sections(sections: Sequence[Section], lab: Lab, *, seconds: float, out: Path) -> list[Result]:
    """Run the sections in order within `seconds` in all; write `results.json` after each of them."""
    end = time.monotonic() + seconds
    results: list[Result] = []
    for section in sections:
        left = min(section.seconds, end - time.monotonic())
        if left < MIN_SECONDS:
            results.append(_result(section, "skipped", f"the call's {seconds:g} s are used up"))
        else:
            results.append(_in_process(section, lab, left, out))
        write_json(results, out)
        last = results[-1]
        print(f"{last.outcome:8}{last.seconds:6.1f} s  {last.name}  {last.reason}", flush=True)
    return results


def write_json(results: Sequence[Result], out: Path) -> None:
    """Write `results.json`, whole or not at all."""
    partial = out / "results.json.partial"
    partial.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    partial.replace(out / "results.json")


def _result(section: Section, outcome: Outcome, reason: str, **measured: Any) -> Result:
    return Result(name=section.name, shows=section.shows, outcome=outcome, reason=reason, **measured)


def _in_process(section: Section, lab: Lab, seconds: float, out: Path) -> Result:
    checks_path, start = out / f"{section.name}.jsonl", time.monotonic()
    checks_path.write_text("")
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        _be_section(section, lab.until(start + seconds), checks_path, out / f"{section.name}.log")
    try:
        status = _wait(pid, start + seconds)
    except BaseException:
        # this process is to end: a section does not outlive it
        _kill_group(pid)
        raise
    took = round(time.monotonic() - start, 2)
    lines = [json.loads(line) for line in checks_path.read_text().splitlines()]
    checks = [Check(**line["check"]) for line in lines if "check" in line]
    ended = next((line for line in lines if "outcome" in line), None)
    checks_path.unlink()
    if ended is not None:
        return _result(section, ended["outcome"], ended["reason"], seconds=took, checks=checks)
    reason = f"stopped at its deadline of {seconds:.0f} s" if status is None else f"its process ended with {status}"
    return _result(section, "fail", reason, seconds=took, checks=checks)


def _wait(pid: int, deadline: float) -> str | None:
    """Wait for the process; at the deadline kill it and the processes it started. Return how it ended, or None."""
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            _kill_group(pid)
            code = os.waitstatus_to_exitcode(status)
            return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        time.sleep(POLL_SECONDS)
    _kill_group(pid)
    os.waitpid(pid, 0)
    return None


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    except PermissionError:
        # macOS raises this for a group if its only process has ended
        pass


def _be_section(section: Section, lab: Lab, checks_path: Path, log_path: Path) -> None:
    """Run a section in this forked process and end it; the log gets what the section prints."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    # the parent's objects may write elsewhere, as pytest's do
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", buffering=1, closefd=False) for descriptor in (1, 2))
    with checks_path.open("a", buffering=1) as lines:

        def write(**line: Any) -> None:
            lines.write(json.dumps(line) + "\n")

        failed: list[str] = []
        try:
            for check in section.run(lab):
                write(check=asdict(check))
                if check.passed is False:
                    failed.append(f"{check.name} is {short(check.value)}, expected {check.expected}")
            write(outcome="fail" if failed else "pass", reason="; ".join(failed))
        except Skip as skip:
            write(outcome="fail" if failed else "skipped", reason="; ".join([*failed, str(skip)]))
        except BaseException as error:  # noqa: BLE001 whatever ends a section is its result
            traceback.print_exc()
            text = " ".join(str(error).split())[:300]
            write(outcome="fail", reason="; ".join([*failed, f"{type(error).__name__}: {text}"]))
    sys.stdout.flush()
    sys.stderr.flush()
    # without the exit handlers of the parent's modules
    os._exit(0)


def short(value: float | str) -> str:
    """Return a value for people: four significant digits, thousands with commas."""
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"

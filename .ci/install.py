"""Install this package with its test and development tools into the environment of the running Python.

uv does it in a tenth of pip's time. Where uv cannot be installed, or fails, pip does it. pip's own settings (indexes,
wheel folders, constraints, certificates) hold for both: uv does not read them, so they are passed to it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

WANTED = ["-e", ".[test,dev]"]
# -qq: pip warns about every index location without the package
PIP = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
# all indexes are searched for the best version, as pip does
UV = [sys.executable, "-m", "uv", "pip", "install", "-q", "--python", sys.executable, "--index-strategy"]
UV += ["unsafe-best-match"]
# pip's setting and the option of uv that means the same
OPTIONS = {
    "index-url": "--default-index",
    "extra-index-url": "--index",
    "find-links": "--find-links",
    "constraint": "--constraint",
}
# the later one wins
SECTIONS = ("global", "install", ":env:")


def main() -> int:
    """Install with uv, else with pip; the exit code of the last one tried."""
    if _is_done([*PIP, "uv"]) and _is_done([*UV, *_uv_options(settings := _pip_settings()), *WANTED], settings):
        return 0
    print("uv is not available or failed: installing with pip", flush=True)
    return subprocess.run([*PIP, *WANTED], check=False).returncode


def _is_done(command: list[str], settings: dict[str, str] | None = None) -> bool:
    certificate = (settings or {}).get("cert")
    env = {**os.environ, **({"SSL_CERT_FILE": certificate} if certificate else {})}
    return subprocess.run(command, env=env, check=False).returncode == 0


def _pip_settings() -> dict[str, str]:
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    found: dict[tuple[str, str], str] = {}
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        found[section, key] = ast.literal_eval(value)
    return {key: found[section, key] for section in SECTIONS for s, key in found if s == section}


def _uv_options(settings: dict[str, str]) -> list[str]:
    return [word for key, option in OPTIONS.items() for one in settings.get(key, "").split() for word in (option, one)]


if __name__ == "__main__":
    sys.exit(main())

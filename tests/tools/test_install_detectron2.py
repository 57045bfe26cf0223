"""The installer on fabricated wheels and fabricated Pythons; nothing here reaches a network."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import sys
import zipfile
from email.parser import Parser
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import parse_wheel_filename

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "install_detectron2.py"


@pytest.fixture(scope="module")
def installer():
    # Loaded by path: "tools" is a common name and another package of that name may be installed.
    spec = importlib.util.spec_from_file_location("install_detectron2", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def contents(installer: ModuleType) -> dict[str, str]:
    files = {installer.PREFIX + name: "from LabGym.detectron2.utils import comm\n" for name in installer.REQUIRED_FILES}
    files[installer.PREFIX + "__init__.py"] = '__version__ = "0.6"\n'
    files[installer.PREFIX + "model_zoo/configs/base.yaml"] = "VERSION: 2\n"
    files["LabGym/__init__.py"] = "import wx\n"
    files["labgym-3.1.2.dist-info/METADATA"] = "Name: LabGym\n"
    return files


def write_wheel(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


@pytest.fixture
def source(installer, contents, tmp_path, monkeypatch):
    wheel = write_wheel(tmp_path / "labgym-3.1.2-py3-none-any.whl", contents)
    monkeypatch.setattr(installer, "SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    return wheel


def write_python(folder: Path, body: str) -> str:
    """A stand-in for a Python interpreter: a shell script."""
    script = folder / "python"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    return str(script)


def without_detectron2(folder: Path, pip: str) -> str:
    """A stand-in Python that has no Detectron2 and runs the shell code `pip` for each `-m pip` call."""
    return write_python(folder, f'if [ "$1" = -c ]; then echo; exit 0; fi\n{pip}')


def build(installer, source: Path, folder: Path) -> Path:
    return installer.build_wheel(installer.respell(installer.read_detectron2(source)).files, folder)


def assert_one_sentence(capsys, *words: str) -> None:
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    for word in words:
        assert word in captured.err


class TestReading:
    def test_takes_detectron2_and_nothing_else(self, installer, source):
        files = installer.read_detectron2(source)
        assert set(files) == {*installer.REQUIRED_FILES, "model_zoo/configs/base.yaml"}

    @pytest.mark.parametrize(
        "name", ["LabGym/detectron2/../../evil.py", "/etc/evil", "LabGym\\..\\..\\evil.py", "C:/evil.py", "../evil.py"]
    )
    def test_refuses_paths_that_leave_the_root(self, installer, contents, tmp_path, name):
        wheel = write_wheel(tmp_path / "bad.whl", {**contents, name: ""})
        with pytest.raises(installer.InstallationError, match=r"must hold plain files below its root, got '.*evil"):
            installer.read_detectron2(wheel)

    def test_refuses_links(self, installer, contents, tmp_path):
        wheel = write_wheel(tmp_path / "bad.whl", contents)
        with zipfile.ZipFile(wheel, "a") as archive:
            link = zipfile.ZipInfo("LabGym/detectron2/link.py")
            link.external_attr = 0o120777 << 16
            archive.writestr(link, "/etc/passwd")
        with pytest.raises(installer.InstallationError, match=r"link\.py"):
            installer.read_detectron2(wheel)

    def test_names_a_missing_file(self, installer, contents, tmp_path):
        del contents[installer.PREFIX + "engine/defaults.py"]
        wheel = write_wheel(tmp_path / "bad.whl", contents)
        with pytest.raises(installer.InstallationError, match=r"must hold LabGym/detectron2/engine/defaults\.py"):
            installer.read_detectron2(wheel)

    @pytest.mark.parametrize(("line", "got"), [('__version__ = "0.7"', "0.7"), ("", "None")])
    def test_refuses_another_version(self, installer, contents, tmp_path, line, got):
        contents[installer.PREFIX + "__init__.py"] = line
        wheel = write_wheel(tmp_path / "bad.whl", contents)
        with pytest.raises(installer.InstallationError, match=rf"must hold Detectron2 0\.6, got {got}"):
            installer.read_detectron2(wheel)

    def test_refuses_what_is_no_zip_file(self, installer, tmp_path):
        (tmp_path / "bad.whl").write_text("<html>sign in</html>")
        with pytest.raises(installer.InstallationError, match="must be a wheel"):
            installer.read_detectron2(tmp_path / "bad.whl")


class TestRespelling:
    def test_counts_names_and_files(self, installer):
        result = installer.respell(
            {"a.py": b"import LabGym.detectron2.x\nlog('LabGym.detectron2')\n", "b.yaml": b"VERSION: 2\n"}
        )
        assert result.files["a.py"] == b"import detectron2.x\nlog('detectron2')\n"
        assert result.files["b.yaml"] == b"VERSION: 2\n"
        assert (result.names, result.changed_files) == (2, 1)

    @pytest.mark.parametrize("left", [b"import LabGym\n", b"from LabGym.detector import x\n", b"# labgym\n"])
    def test_refuses_what_still_names_the_carrier(self, installer, left):
        with pytest.raises(installer.InstallationError, match=r"b\.py must not name LabGym .* line 2 does"):
            installer.respell({"a.py": b"import LabGym.detectron2\n", "b.py": b"\n" + left})

    @pytest.mark.timeout(10)
    def test_takes_linear_time_on_long_lines(self, installer):
        # Detectron2 keeps the LVIS categories on single lines of 200 kB.
        long_line = b"import LabGym.detectron2 " + b"x" * 2_000_000
        assert installer.respell({"a.py": long_line}).names == 1

    def test_refuses_an_unknown_spelling(self, installer):
        with pytest.raises(installer.InstallationError, match="got none"):
            installer.respell({"a.py": b"import detectron2\n"})


class TestWheel:
    def test_is_the_same_bytes_each_time(self, installer, source, tmp_path):
        files = installer.respell(installer.read_detectron2(source)).files
        first = installer.build_wheel(files, tmp_path / "a").read_bytes()
        second = installer.build_wheel(dict(reversed(files.items())), tmp_path / "b").read_bytes()
        assert first == second
        with zipfile.ZipFile(tmp_path / "a" / "detectron2-0.6+labgym3.1.2-py3-none-any.whl") as archive:
            assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}

    def test_record_lists_every_file_with_its_hash(self, installer, source, tmp_path):
        with zipfile.ZipFile(build(installer, source, tmp_path / "out")) as archive:
            *others, record = archive.namelist()
            assert record == "detectron2-0.6+labgym3.1.2.dist-info/RECORD"
            rows = [line.split(",") for line in archive.read(record).decode().splitlines()]
            assert rows.pop() == [record, "", ""]
            assert [row[0] for row in rows] == sorted(others)
            for path, digest, size in rows:
                data = archive.read(path)
                expected = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
                assert (digest, int(size)) == (f"sha256={expected}", len(data))

    def test_metadata_is_valid_and_states_the_licence(self, installer, source, tmp_path):
        wheel = build(installer, source, tmp_path / "out")
        name, version, _, tags = parse_wheel_filename(wheel.name)
        info = f"detectron2-{version}.dist-info"
        with zipfile.ZipFile(wheel) as archive:
            metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
            licence = archive.read(f"{info}/licenses/LICENSE").decode()
            notice = archive.read(f"{info}/licenses/NOTICE").decode()
        assert (metadata["Name"], metadata["Version"]) == (name, str(version))
        assert {str(tag) for tag in tags} == {"py3-none-any"}
        required = {Requirement(line).name for line in metadata.get_all("Requires-Dist")}
        assert {"fvcore", "iopath", "yacs", "pycocotools", "omegaconf", "hydra-core", "setuptools"} <= required
        assert metadata["License"] == "Apache-2.0"
        assert "Apache License" in licence
        assert "S2-UniSeg" not in licence
        assert "Facebook" in notice
        assert "Changed" in notice

    def test_imports_under_its_own_name(self, installer, source, tmp_path, monkeypatch):
        wheel = build(installer, source, tmp_path / "out")
        assert [found.version for found in importlib.metadata.distributions(path=[str(wheel)])] == ["0.6+labgym3.1.2"]


class TestFetching:
    def test_says_that_the_registry_is_out_of_reach(self, installer, tmp_path, capsys):
        python = without_detectron2(tmp_path, "echo 'ERROR: No matching distribution found' >&2; exit 1")
        assert installer.main(["--target-python", python, "--cache", str(tmp_path / "cache")]) == 1
        assert_one_sentence(capsys, "could not be downloaded", "No matching distribution", "check the network")

    def test_names_the_broken_connection_behind_pips_last_error(self, installer):
        output = (
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError('<HTTPConnection object "
            "at 0x7f>: Failed to establish a new connection: [Errno 111] Connection refused')': /simple/labgym/\n"
            "ERROR: No matching distribution found for LabGym==3.1.2\n"
        )
        assert installer._last_line(output) == "Failed to establish a new connection: [Errno 111] Connection refused"

    @pytest.mark.parametrize("saved_as", ["labgym-3.1.2-py3-none-any.whl", "LabGym-3.1.2-py3-none-any.whl"])
    def test_downloads_once(self, installer, source, tmp_path, saved_as):
        cache, calls = tmp_path / "cache", tmp_path / "calls"
        # pip's last but one argument is the folder, the last one the requirement.
        save = f'echo "$@" >> {calls}\nwhile [ $# -gt 2 ]; do shift; done\ncp {source} "$1/{saved_as}"'
        python = without_detectron2(tmp_path, save)
        first = installer.fetch_wheel(python, cache)
        assert installer.fetch_wheel(python, cache) == first
        assert first.read_bytes() == source.read_bytes()
        arguments = calls.read_text().splitlines()
        assert len(arguments) == 1
        assert "--no-deps --ignore-requires-python --only-binary=:all:" in arguments[0]

    def test_refuses_a_download_with_another_hash(self, installer, source, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(installer, "SHA256", "0" * 64)
        save = f'while [ $# -gt 2 ]; do shift; done\ncp {source} "$1/x.whl"'
        cache = tmp_path / "cache"
        assert installer.main(["--target-python", without_detectron2(tmp_path, save), "--cache", str(cache)]) == 1
        assert_one_sentence(capsys, "SHA-256", "0" * 64, "nothing of it was installed")
        assert not list(cache.iterdir())

    def test_replaces_a_damaged_file_in_the_cache(self, installer, source, tmp_path):
        cache = tmp_path / "cache"
        cache.mkdir()
        (cache / source.name).write_text("half a wheel")
        save = f'while [ $# -gt 2 ]; do shift; done\ncp {source} "$1/x.whl"'
        wheel = installer.fetch_wheel(without_detectron2(tmp_path, save), cache)
        assert wheel.read_bytes() == source.read_bytes()


class TestMain:
    def test_leaves_an_installed_detectron2_alone(self, installer, tmp_path, capsys):
        (tmp_path / "__init__.py").write_text('__version__ = "0.5"\n')
        python = write_python(tmp_path, f'[ "$1" = -c ] && echo {tmp_path}/__init__.py || exit 1')
        assert installer.main(["--target-python", python, "--cache", str(tmp_path / "cache")]) == 0
        assert "Detectron2 0.5 is installed already" in capsys.readouterr().out
        assert not (tmp_path / "cache").exists()

    def test_sees_no_installation_in_a_bare_folder(self, installer, tmp_path, monkeypatch):
        (tmp_path / "detectron2").mkdir()
        monkeypatch.chdir(tmp_path)
        # -S: without site-packages, so that only the bare folder is in sight.
        bare = write_python(tmp_path, f'exec {sys.executable} -S "$@"')
        assert installer.find_installed_version(bare) is None

    def test_installs_offline_from_a_wheel_at_hand(self, installer, source, tmp_path, capsys):
        calls = tmp_path / "calls"
        python = without_detectron2(tmp_path, f'echo "$@" >> {calls}')
        arguments = ["--target-python", python, "--cache", str(tmp_path / "cache"), "--source-wheel", str(source)]
        assert installer.main(arguments) == 0
        assert calls.read_text().split()[:3] == ["-m", "pip", "install"]
        assert "--no-deps --no-index" in calls.read_text()
        assert "14 names respelt in 14 of 16 files" in capsys.readouterr().out

    def test_says_why_pip_refuses(self, installer, source, tmp_path, capsys):
        python = without_detectron2(tmp_path, "echo 'error: externally-managed-environment' >&2; exit 1")
        arguments = ["--target-python", python, "--cache", str(tmp_path / "cache"), "--source-wheel", str(source)]
        assert installer.main(arguments) == 1
        assert_one_sentence(capsys, "externally-managed-environment", "virtual environment")

    def test_refuses_a_wheel_at_hand_with_another_hash(self, installer, source, tmp_path, capsys):
        source.write_bytes(source.read_bytes() + b" ")
        python = without_detectron2(tmp_path, "exit 0")
        assert installer.main(["--target-python", python, "--source-wheel", str(source)]) == 1
        assert_one_sentence(capsys, "SHA-256")

    def test_says_when_the_wheel_at_hand_is_missing(self, installer, tmp_path, capsys):
        python = without_detectron2(tmp_path, "exit 0")
        assert installer.main(["--target-python", python, "--source-wheel", str(tmp_path / "none.whl")]) == 1
        assert_one_sentence(capsys, "none.whl")

    def test_says_when_python_does_not_run(self, installer, tmp_path, capsys):
        assert installer.main(["--target-python", str(tmp_path / "python9")]) == 1
        assert_one_sentence(capsys, "python9 cannot be run")

"""Files that cannot be written: what stays, and what is said."""

import errno
import os
import resource
import subprocess
import sys

import pytest

from llava.errors import ConfigError, explain, run_command
from llava.files import naming, write_atomically, writing


def test_an_error_leaves_the_old_file_and_no_part(tmp_path):
    path = tmp_path / "a" / "x.txt"
    with pytest.raises(KeyboardInterrupt), writing(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert not list(path.parent.iterdir())
    write_atomically(path, "old")
    with pytest.raises(OSError) as caught, writing(path) as partial:
        partial.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert [each.read_text() for each in path.parent.iterdir()] == ["old\n"]
    assert explain(caught.value).startswith(f"{path}: No space left on device. What was whole")


def test_what_a_user_can_mend_is_explained(tmp_path):
    assert explain(ConfigError("x is 1")) == "x is 1"
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as caught:
        write_atomically(tmp_path / "file" / "x.txt", "")
    assert explain(caught.value) == f"{tmp_path / 'file'}: File exists; expected a folder"
    assert explain(ValueError("ours")) is None
    assert explain(OSError("without a number")) is None


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_is_named(tmp_path):
    with pytest.raises(OSError) as caught, naming(tmp_path / "x"), open("/dev/full", "w") as file:
        file.write("x")
        file.flush()
    assert caught.value.filename == str(tmp_path / "x")


def test_a_command_ends_with_a_line(capsys):
    def fail():
        raise ConfigError("x is 1")

    with pytest.raises(SystemExit, match="2"):
        run_command(fail)
    assert capsys.readouterr().err == "error: x is 1\n"
    run_command(lambda: None)
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 / 0)
    with pytest.raises(BrokenPipeError):  # not of our output: a process that we talk to has ended
        run_command(lambda: (_ for _ in ()).throw(BrokenPipeError("x")))


def run(code, **options):
    return subprocess.run(
        [sys.executable, "-c", f"from llava.errors import run_command\n{code}"],
        stderr=subprocess.PIPE, text=True, timeout=60, **options,
    )  # fmt: skip


@pytest.mark.parametrize("text", ["'x'", "'x\\n' * 100_000"])
def test_a_closed_pipe_ends_quietly(text):
    read_end, write_end = os.pipe()
    os.close(read_end)
    ended = run(f"run_command(lambda: print({text}))", stdout=write_end)
    os.close(write_end)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_a_limit_of_the_process_is_a_full_disk(tmp_path):
    path = tmp_path / "x.txt"
    ended = run(
        "import pathlib; from llava.files import write_atomically\n"
        f"run_command(lambda: write_atomically(pathlib.Path({str(path)!r}), 'x' * 100_000))",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )
    assert ended.returncode == 2 and not list(tmp_path.iterdir())
    assert ended.stderr.startswith(f"error: {path}: File too large")

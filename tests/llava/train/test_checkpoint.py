"""Checkpoints are there wholly or not at all."""

import errno
import json
import os
import zlib
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from llava.errors import CheckpointError
from llava.train import checkpoint
from llava.train.checkpoint import (
    CheckpointSaving,
    StateCopy,
    find_last_checkpoint,
    get_peft_state_maybe_zero_3,
    problem_of,
    rotate,
)


def write(output_dir, step, text="weights"):
    final = output_dir / f"checkpoint-{step}"
    with checkpoint.writing_folder(final) as folder:
        (folder / "a.bin").write_text(text)
        (folder / "sub").mkdir()
        (folder / "sub" / "b.bin").write_text(text)
    return final


def test_a_folder_appears_with_its_mark(tmp_path):
    final = write(tmp_path, 5)
    mark = json.loads((final / "COMPLETE").read_text())
    assert mark["files"] == {"a.bin": 7, "sub/b.bin": 7}
    assert mark["crc32"]["a.bin"] == f"{zlib.crc32(b'weights'):08x}"
    assert problem_of(final) is None
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


def test_the_last_whole_one_is_found(tmp_path):
    write(tmp_path, 9)
    write(tmp_path, 10)
    assert find_last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert find_last_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (lambda folder: (folder / "a.bin").write_text("we"), "should have 7 bytes, found 2"),
        (lambda folder: (folder / "a.bin").unlink(), "should have 7 bytes, found None"),
        (lambda folder: (folder / "COMPLETE").unlink(), "no COMPLETE file"),
        (lambda folder: (folder / "COMPLETE").write_text('{"fi'), "not readable"),
        (lambda folder: (folder / "COMPLETE").write_text("[]"), "not readable"),
    ],
)
def test_a_half_written_one_is_left_out(tmp_path, caplog, harm, problem):
    write(tmp_path, 1)
    harm(write(tmp_path, 2))
    assert problem in problem_of(tmp_path / "checkpoint-2")
    assert find_last_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
    assert problem in caplog.text


def test_a_flipped_byte_is_found_by_reading_all(tmp_path, caplog):
    write(tmp_path, 1)
    damaged = write(tmp_path, 2)
    (damaged / "sub" / "b.bin").write_text("weighus")
    assert problem_of(damaged) is None
    assert problem_of(damaged, read_all=True).startswith("sub/b.bin is damaged: its checksum")
    assert find_last_checkpoint(tmp_path, read_all=True) == tmp_path / "checkpoint-1"
    assert "checkpoint-2 is not used: sub/b.bin is damaged" in caplog.text


def test_a_mark_without_checksums_counts(tmp_path):
    final = write(tmp_path, 1)
    sizes = json.loads((final / "COMPLETE").read_text())["files"]
    (final / "COMPLETE").write_text(json.dumps({"files": sizes}))
    assert problem_of(final, read_all=True) is None


def test_parts_are_written_before_the_mark(tmp_path):
    final, later, parts = tmp_path / "checkpoint-4", [], []
    with checkpoint.writing_folder(final, parts, later.append) as folder:
        (folder / "small.bin").write_text("now")
        parts.append(lambda: (folder / "large.bin").write_text("later"))
    assert find_last_checkpoint(tmp_path) is None
    (finish,) = later
    finish()
    assert set(json.loads((final / "COMPLETE").read_text())["files"]) == {"small.bin", "large.bin"}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


def test_a_copy_of_the_state_does_not_change_with_it():
    weight = torch.arange(6.0).view(2, 3)
    state = {"a": weight, "tied": weight, "groups": [{"lr": 0.1, "params": [0]}], "none": None}
    copy = StateCopy()
    copied = copy("model", state)
    assert copied["tied"] is copied["a"]
    weight.zero_()
    assert copied["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert copied["groups"] == [{"lr": 0.1, "params": [0]}]
    assert copied["none"] is None
    assert copy("model", state)["a"] is copied["a"]  # the memory is used again


def test_an_error_while_writing_leaves_nothing_behind_that_counts(tmp_path):
    write(tmp_path, 1)
    with (
        pytest.raises(RuntimeError, match="boom"),
        checkpoint.writing_folder(tmp_path / "checkpoint-2") as folder,
    ):
        (folder / "a.bin").write_text("x")
        raise RuntimeError("boom")
    assert find_last_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
    checkpoint.begin_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while serializing: IoError(Os { code: 28, kind: StorageFull })"),
    ],
)
def test_a_full_disk_is_explained(tmp_path, error):
    write(tmp_path, 1)
    with (
        pytest.raises(CheckpointError, match=r"disk is full.*checkpoint-1.*same command"),
        checkpoint.writing_folder(tmp_path / "checkpoint-2"),
    ):
        raise error
    assert not (tmp_path / "tmp-saving").exists()


def test_an_older_folder_of_the_same_name_is_replaced(tmp_path):
    old = write(tmp_path, 3)
    (old / "COMPLETE").unlink()
    write(tmp_path, 3, "new")
    assert (old / "a.bin").read_text() == "new"
    assert problem_of(old) is None


def test_rotation_keeps_the_newest_and_the_best(tmp_path):
    for step in (1, 2, 3, 10):
        write(tmp_path, step)
    rotate(tmp_path, 2, keep=(tmp_path / "checkpoint-10", tmp_path / "checkpoint-1"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-10"]
    rotate(tmp_path, None)
    assert len(list(tmp_path.iterdir())) == 2


def test_final_files_move_in_and_stale_weights_go(tmp_path):
    (tmp_path / "model-00001-of-00002.safetensors").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "COMPLETE").write_text("{}")
    with checkpoint.writing_final(tmp_path) as folder:
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_text("new")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["COMPLETE", "config.json", "model.safetensors", "notes.txt"]
    assert problem_of(tmp_path) is None


def test_files_are_on_the_disk_before_the_folder_is_renamed(tmp_path, monkeypatch):
    events = []
    sync, rename = os.fsync, checkpoint.Path.rename
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("sync"), sync(handle))[1])
    monkeypatch.setattr(
        checkpoint.Path, "rename", lambda a, b: (events.append("rename"), rename(a, b))[1]
    )
    write(tmp_path, 1)
    # two files, the mark, two folders; the parent afterwards
    assert events == ["sync"] * 5 + ["rename", "sync"]


def peft_parameters():
    names = ["a.q_proj.lora_A.weight", "a.q_proj.base_layer.bias", "a.norm.bias", "a.up.weight"]
    return [(name, nn.Parameter(torch.zeros(1))) for name in names]


@pytest.mark.parametrize(("bias", "count"), [("none", 1), ("all", 3), ("lora_only", 2)])
def test_peft_state(bias, count):
    assert len(get_peft_state_maybe_zero_3(peft_parameters(), bias)) == count


def test_unknown_bias():
    with pytest.raises(NotImplementedError, match="none, all, lora_only"):
        get_peft_state_maybe_zero_3(peft_parameters(), "some")


@pytest.mark.parametrize(
    ("has_state", "on_each_node", "finishes"),
    [(True, True, True), (True, False, False), (False, False, True)],
)
def test_another_machine_finishes_a_folder_of_its_own(
    tmp_path, monkeypatch, has_state, on_each_node, finishes
):
    """On a shared disk the first process finishes the folder that holds the run's state."""
    second = SimpleNamespace(
        is_main_process=False, is_local_main_process=True, wait_for_everyone=lambda: None
    )
    monkeypatch.setattr(checkpoint, "PartialState", lambda: second)
    final = tmp_path / "checkpoint-2"
    with checkpoint.writing_folder(final, on_each_node=on_each_node) as folder:
        (folder / (checkpoint.STATE_FILE if has_state else "rng_state_1.pth")).write_text("{}")
    assert final.is_dir() is finishes


@pytest.mark.parametrize("ask", ["wait_for_save", "check_save"])
def test_what_goes_wrong_in_the_background_is_raised_once(ask):
    trainer = CheckpointSaving.__new__(CheckpointSaving)
    trainer._saving = saving = Future()
    if ask == "check_save":
        trainer.check_save()  # it does not wait
    saving.set_exception(CheckpointError("the disk is full"))
    with pytest.raises(CheckpointError, match="disk is full"):
        getattr(trainer, ask)()
    getattr(trainer, ask)()

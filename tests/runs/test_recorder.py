"""What a run leaves behind: plain files, whole or not there, from which it can go on."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import filelock
import pytest
import torch
from support.runs import (
    SIZES,
    boundary_file,
    checkpoint_files,
    go_on,
    journal,
    read_tensors,
    same_tensors,
    small,
    stop_after,
    tiny,
    tiny_model,
    tiny_parts,
    told,
    unpacked,
)
from torch import nn

import randprune_lab
from randprune_lab import engine, store
from randprune_lab.checks import keep_count
from randprune_lab.events import CandidateScored, Checkpoint, EpochFinished, Resumed, RunStarted, StageFinished, Warned
from randprune_lab.files import is_held
from randprune_lab.histogram import MagnitudeHistogram
from randprune_lab.masks import unpack

STAGES3 = {"stages": (0.3, 0.6, 0.9)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of digits, to look at."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    go_on(folder, small())
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A tiny run that was never disturbed: its story, and the tensors it ended with."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    go_on(folder, tiny(), **tiny_parts())
    return told(folder), read_tensors(boundary_file(folder, 2))


def ends_like(folder, whole):
    said, tensors = whole
    mine = [record for record in told(folder) if record["kind"] != "warned"]
    assert mine == said
    assert same_tensors(read_tensors(boundary_file(folder, 2)), tensors)
    return True


# ---- the folder

HISTOGRAMS = ["0.json", "1-masked.json", "1.json", "2-masked.json", "2.json"]


def test_what_is_in_the_folder(finished):
    names = {path.name for path in finished.iterdir()} - {".lock"}
    assert names == {"config.json", "events.jsonl", "checkpoints", "histograms", "model"}
    assert json.loads((finished / "config.json").read_text()) == small().model_dump(mode="json")
    assert store.read_config(finished) == small()
    assert [path.name for path in sorted((finished / "histograms").iterdir())] == HISTOGRAMS
    stages = [path.stem.split("-")[1] for path in checkpoint_files(finished) if "epoch" not in path.stem]
    assert stages == ["stage0", "stage1", "stage2"]
    assert not list(finished.rglob("*.tmp"))
    for line in (finished / "events.jsonl").read_text().splitlines():
        record = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        assert {"time", "kind"} < set(record)


def test_no_pickle_anywhere(finished):
    assert {path.suffix for path in finished.rglob("*") if path.is_file()} <= {".json", ".jsonl", ".safetensors", ""}
    for path in Path(randprune_lab.__file__).parent.rglob("*.py"):
        code = re.sub(r'"[^"\n]*"', "", path.read_text())  # an error's text gives advice on torch.load
        assert not re.search(r"\btorch\.(save|load)\(|import pickle|import joblib", code), path


def test_weights_on_disk_are_zero_outside_the_masks_and_the_counts_are_those_reported(finished):
    events = [event for event in store.story(finished) if isinstance(event, StageFinished)]
    for event in events:
        tensors = read_tensors(boundary_file(finished, event.stage))
        total = 0
        for name, size in SIZES.items():
            weight = tensors[f"model.{name}"]
            mask = unpacked(tensors[f"mask.{name}"], weight.shape)
            assert tensors[f"mask.{name}"].numel() == -(-size // 8)  # eight a byte
            assert mask.sum() == keep_count(size, small().stages[event.stage - 1])
            assert not weight.numpy()[~mask].any()
            total += int(mask.sum())
        assert (event.kept, event.sparsity) == (total, pytest.approx(1 - total / sum(SIZES.values())))
    assert len(events) == 2


def test_the_finished_model_loads_with_plain_safetensors(finished):
    from safetensors.torch import load_file

    model = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    model.load_state_dict(load_file(finished / "model" / "model.safetensors"))
    last = read_tensors(boundary_file(finished, 2))
    assert all(torch.equal(tensor, last[f"model.{name}"]) for name, tensor in model.state_dict().items())
    from randprune_lab.tasks import digits

    test = digits().test
    accuracy = float((model(test.inputs).argmax(dim=1) == test.labels).double().mean())
    assert store.story(finished)[-1].test.metric == pytest.approx(accuracy)


def test_histograms_count_what_is_kept(finished):
    for stage, sparsity in enumerate((0.0, *small().stages)):
        found = store.read_histograms(finished, stage)
        tensors = read_tensors(boundary_file(finished, stage))
        for name, size in SIZES.items():
            weight = tensors[f"model.{name}"]
            mask = unpack(tensors[f"mask.{name}"], weight.shape)
            assert found[name].size == size
            assert found[name].alive == keep_count(size, sparsity)
            # Against numpy, at a few magnitudes: bins are at most 0.8 % wide.
            for edge in (0.01, 0.05, 0.1):
                low, high = (int((weight[mask].abs() >= edge * factor).sum()) for factor in (1.008, 0.992))
                above = found[name].counts[found[name].magnitudes >= edge].sum()
                assert low <= above <= high


def test_histograms_of_the_moment_when_a_mask_is_chosen(finished):
    for stage, sparsity in enumerate(small().stages, start=1):
        before = read_tensors(boundary_file(finished, stage - 1))
        masks = read_tensors(boundary_file(finished, stage))
        for name, found in store.read_histograms(finished, stage, masked=True).items():
            weight = before[f"model.{name}"]
            mask = unpack(masks[f"mask.{name}"], weight.shape)
            expected = MagnitudeHistogram.of(weight, alive=mask).coarse()
            assert found.alive == keep_count(SIZES[name], sparsity)
            assert (found.bins.tolist(), found.counts.tolist()) == (expected.bins.tolist(), expected.counts.tolist())


def test_histograms_of_a_stage_that_was_not_reached(finished):
    with pytest.raises(ValueError, match="Choose a stage that the run has reached"):
        store.read_histograms(finished, 9)


def test_checkpoints_come_back_bit_for_bit(tmp_path):
    """Of every kind: with an optimizer, a best epoch, running statistics."""
    given = []

    def watched():
        for item in engine.prune(tiny(patience=2, max_epochs=3, precision="bf16"), **tiny_parts()):
            if isinstance(item, Checkpoint):
                given.append(item)
            yield item

    labels = set()
    for event in store.record(tmp_path, watched()):
        if isinstance(event, EpochFinished) and event.epoch > 1:
            back = store.last_checkpoint(tmp_path)
            assert back.progress == given[-1].progress
            assert same_tensors(back.tensors, given[-1].tensors)
            labels |= {name.split(".")[0] for name in back.tensors}
    assert labels == {"model", "mask", "optimizer", "best"}


@pytest.mark.parametrize("layout", ["channels_last", "bfloat16", "float64"])
def test_networks_of_any_layout_and_type_are_saved(tmp_path, layout):
    torch_model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3))
    from support.runs import tiny_task

    task = tiny_task(shape=(2, 6, 6))
    if layout == "channels_last":
        torch_model = torch_model.to(memory_format=torch.channels_last)
    else:
        from randprune_lab.tasks import Split, Task

        dtype = getattr(torch, layout)
        torch_model = torch_model.to(dtype)
        splits = [Split(s.inputs.to(dtype), s.labels) for s in (task.train, task.selection, task.test)]
        task = Task("own", *splits)
    try:
        stream = engine.prune(tiny(), model=torch_model, data=task)
    except ValueError:
        return  # refused at once is fine, too
    list(store.record(tmp_path / "run", stream))
    last = read_tensors(boundary_file(tmp_path / "run", 2))
    assert all(torch.equal(tensor, last[f"model.{name}"]) for name, tensor in torch_model.state_dict().items())


@pytest.mark.parametrize(("keep", "stages"), [("all", {0, 1, 2, 3}), ("last", {0, 2, 3})])
def test_keep_stages(tmp_path, keep, stages):
    """ "last" keeps one stage more than the last: it stands in should that one be damaged."""
    go_on(tmp_path, tiny(keep_stages=keep, **STAGES3), **tiny_parts())
    names = [path.stem.split("-", 1)[1] for path in checkpoint_files(tmp_path)]
    assert {int(name.removeprefix("stage")) for name in names if name.startswith("stage")} == stages
    assert len([name for name in names if "epoch" in name]) <= 1


# ---- the journal


def test_a_half_written_line_is_ignored_and_cut_off(tmp_path, whole):
    stop_after(tmp_path, tiny(), 15, **tiny_parts())
    before = store.story(tmp_path)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"time": 1795243366.415, "kind": "candidate_sco')
    assert store.story(tmp_path) == before
    go_on(tmp_path, tiny(), **tiny_parts())
    assert len(journal(tmp_path)) > len(before)  # every line is whole again
    assert ends_like(tmp_path, whole)


def test_the_story_after_one_and_after_two_resumes(tmp_path, whole):
    for items in (13, 9, 6):
        stop_after(tmp_path, tiny(), items, **tiny_parts())
        said = told(tmp_path)
        assert said == whole[0][: len(said)]  # a beginning of the undisturbed story, without gaps or repetitions
    go_on(tmp_path, tiny(), **tiny_parts())
    assert ends_like(tmp_path, whole)
    story = store.story(tmp_path)
    scored = [(event.stage, event.candidate) for event in story if isinstance(event, CandidateScored)]
    epochs = [(event.phase, event.stage, event.epoch) for event in story if isinstance(event, EpochFinished)]
    assert scored == [(stage, candidate) for stage in (1, 2) for candidate in (0, 1, 2)]
    assert epochs == [
        (phase, s, e) for phase, s in (("dense", 0), ("fine-tuning", 1), ("fine-tuning", 2)) for e in (1, 2)
    ]
    assert len([record for record in journal(tmp_path) if record["kind"] == "resumed"]) == 3


def test_the_story_is_what_was_passed_on(tmp_path):
    passed = go_on(tmp_path, tiny(), **tiny_parts())
    assert store.story(tmp_path) == passed


# ---- damage


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def flip_tensor(path):
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def flip_progress(path):
    """One digit of the progress in the header: no tensor is touched."""
    content = path.read_bytes()
    at = content.index(b'\\"epoch\\": ') + len(b'\\"epoch\\": ')
    path.write_bytes(content[:at] + (b"5" if content[at : at + 1] != b"5" else b"6") + content[at + 1 :])


def flip_events(path):
    content = path.read_bytes()
    at = content.index(b'"events":"') + len(b'"events":"')
    path.write_bytes(content[:at] + (b"3" if content[at : at + 1] != b"3" else b"2") + content[at + 1 :])


DAMAGES = [truncate, empty, flip_tensor, flip_progress, flip_events]


@pytest.mark.parametrize("items", [5, 9, 14, 17, 22, 30])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_and_said(tmp_path, whole, damage, items):
    stop_after(tmp_path, tiny(), items, **tiny_parts())
    newest = checkpoint_files(tmp_path)[-1]
    damage(newest)
    said = go_on(tmp_path, tiny(), **tiny_parts())
    assert isinstance(said[0], Resumed)
    assert [newest.name in event.text for event in said if isinstance(event, Warned)] == [True]
    assert ends_like(tmp_path, whole)


def test_any_flipped_bit_is_noticed_or_harmless(tmp_path):
    """One bit of each byte of the metadata, and of 150 others: what comes back is never a wrong checkpoint."""
    stop_after(tmp_path, tiny(), 15, **tiny_parts())
    path = checkpoint_files(tmp_path)[-1]
    good, content = store.last_checkpoint(tmp_path), path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    start = content.index(b'"__metadata__"')
    header = 8 + int.from_bytes(content[:8], "little")
    places = [*range(start, content.index(b"}", content.index(b"checksum", start)))]
    places += torch.randint(0, header, (100,), generator=generator).tolist()
    places += torch.randint(header, len(content), (50,), generator=generator).tolist()
    wrong = []
    for at in places:
        bit = 1 << int(torch.randint(0, 8, (), generator=generator))
        path.write_bytes(content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :])
        found = store.last_checkpoint(tmp_path)
        same = (found.progress, found.events) == (good.progress, good.events)
        if path.name not in found.damaged and not (same and same_tensors(found.tensors, good.tensors)):
            wrong.append((at, content[max(0, at - 20) : at + 20]))
    assert not wrong


@pytest.mark.parametrize("items", [9, 14, 22, 30])
def test_when_all_are_damaged_the_run_starts_over_and_says_so(tmp_path, whole, items):
    stop_after(tmp_path, tiny(), items, **tiny_parts())
    paths = checkpoint_files(tmp_path)
    for path in paths:
        truncate(path)
    said = go_on(tmp_path, tiny(), **tiny_parts())
    assert [type(event) for event in said[: len(paths) + 2]] == [Resumed, *[Warned] * len(paths), RunStarted]
    assert ends_like(tmp_path, whole)


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_without_the_dense_network_the_run_starts_over_once(tmp_path, whole, how):
    """The teacher is gone. A second interruption must not throw away the work done since."""
    stop_after(tmp_path, tiny(), 20, **tiny_parts())
    dense = boundary_file(tmp_path, 0)
    dense.unlink() if how == "missing" else truncate(dense)
    stop_after(tmp_path, tiny(), 25, **tiny_parts())
    assert store.last_checkpoint(tmp_path).progress.stage >= 1
    go_on(tmp_path, tiny(), **tiny_parts())
    assert ends_like(tmp_path, whole)


def test_a_run_killed_before_its_first_event_starts_over(tmp_path, whole):
    """config.json is written just before the first line."""
    go_on(tmp_path / "other", tiny(), **tiny_parts())
    folder = tmp_path / "killed"
    folder.mkdir()
    (folder / "config.json").write_bytes((tmp_path / "other" / "config.json").read_bytes())
    (folder / "events.jsonl").write_text('{"time": 1.0, "kind": "run_sta')
    go_on(folder, tiny(), **tiny_parts())
    assert ends_like(folder, whole)


# ---- a full disk


@pytest.mark.parametrize("write", [1, 2, 3, 5, 8, 11, 13, 15])
def test_a_full_disk_stops_the_run_with_what_it_had_intact(tmp_path, monkeypatch, whole, write):
    sync, count = os.fsync, [0]

    def full(descriptor):
        count[0] += 1
        if count[0] == write:
            if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".tmp"):  # not the journal: it is only appended to
                os.ftruncate(descriptor, 100)  # what was written so far is not whole
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            go_on(tmp_path, tiny(), **tiny_parts())
    assert count[0] == write  # it did stop
    for path in tmp_path.rglob("*.safetensors"):
        read_tensors(path)
    assert not list(tmp_path.rglob("*.tmp"))
    said = told(tmp_path)
    assert said == whole[0][: len(said)]
    resume = store.last_checkpoint(tmp_path)
    assert resume is None or not resume.damaged
    go_on(tmp_path, tiny(), **tiny_parts())
    assert ends_like(tmp_path, whole)
    assert [path.name for path in sorted((tmp_path / "histograms").iterdir())] == HISTOGRAMS
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file.json"
    store.write_atomically(path, "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        store.write_atomically(path, b"new")
    assert path.read_text() == "old"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.json"]


def test_what_was_deleted_does_not_come_back_with_its_next_file(tmp_path):
    run = tmp_path / "run"
    for path in (run / "status.json", run / "checkpoints" / "1"):
        with pytest.raises(FileNotFoundError):
            store.write_atomically(path, "new", inside=run)
        assert not run.exists()
        run.mkdir()
        store.write_atomically(path, "new", inside=run)
        shutil.rmtree(run)


# ---- folders that are taken


def test_a_folder_with_a_run_is_refused(tmp_path):
    stop_after(tmp_path, tiny(), 3, **tiny_parts())
    before = (tmp_path / "events.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"is not empty\. Pass a new folder, or resume"):
        list(store.record(tmp_path, engine.prune(tiny(), **tiny_parts())))
    assert (tmp_path / "events.jsonl").read_bytes() == before


def test_a_folder_with_something_else_in_it_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match="not empty"):
        list(store.record(tmp_path, engine.prune(tiny(), **tiny_parts())))
    assert not (tmp_path / "config.json").exists()


def test_a_finished_run_has_nothing_to_resume(finished):
    with pytest.raises(ValueError, match="finished"):
        engine.prune(small(), resume=store.last_checkpoint(finished))


def test_another_configuration_is_refused_on_resume(tmp_path):
    stop_after(tmp_path, tiny(), 12, **tiny_parts())
    with pytest.raises(ValueError, match=r"another batch_size, seed\. Resume with that run's own configuration"):
        engine.prune(tiny(seed=1, batch_size=8), resume=store.last_checkpoint(tmp_path), **tiny_parts())


def test_a_run_from_python_is_resumed_from_python(tmp_path):
    stop_after(tmp_path, tiny(), 12, **tiny_parts())
    with pytest.raises(ValueError, match="from Python with its own model: resume it there"):
        engine.prune(store.read_config(tmp_path), resume=store.last_checkpoint(tmp_path))


def test_two_writers_are_refused(tmp_path, whole):
    held, release = threading.Event(), threading.Event()

    def hold():
        with filelock.FileLock(tmp_path / ".lock"):
            held.set()
            release.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(10)
        with pytest.raises(ValueError, match="another process is writing this run"):
            list(store.record(tmp_path, engine.prune(tiny(), **tiny_parts())))
        assert not (tmp_path / "events.jsonl").exists()
    finally:
        release.set()
        thread.join()
    go_on(tmp_path, tiny(), **tiny_parts())  # and afterwards it works
    assert ends_like(tmp_path, whole)


def test_who_only_asks_whether_a_run_is_written_is_not_taken_for_its_writer(tmp_path):
    lock = filelock.FileLock(tmp_path / ".lock", thread_local=False)
    lock.acquire()
    assert is_held(tmp_path / ".lock")
    asked = threading.Timer(0.05, lock.release)  # another one's question, on a slow machine
    asked.start()
    assert not is_held(tmp_path / ".lock")
    asked.join()


def test_a_second_writer_in_the_same_process_is_refused(tmp_path):
    first = store.record(tmp_path, engine.prune(tiny(), **tiny_parts()))
    next(first)
    with pytest.raises(ValueError, match="another process is writing this run"):
        next(store.record(tmp_path, engine.prune(tiny(), **tiny_parts())))
    first.close()


def test_where_no_run_is(tmp_path):
    assert store.last_checkpoint(tmp_path) is None
    assert store.story(tmp_path) == []
    with pytest.raises(ValueError, match="no run is there"):
        store.read_config(tmp_path)


# ---- the folder of runs


def test_runs_are_listed_as_finished_stopped_or_running(tmp_path, monkeypatch):
    go_on(tmp_path / "1", tiny(), **tiny_parts())
    stop_after(tmp_path / "2", tiny(method="imp"), 20, **tiny_parts())
    working = store.record(tmp_path / "3", engine.prune(tiny(seed=4), **tiny_parts()))
    next(working)
    (tmp_path / "4").mkdir()
    (tmp_path / "file.txt").write_text("no run")
    monkeypatch.setenv("RANDPRUNE_RUNS", str(tmp_path))
    assert store.runs_folder() == tmp_path
    found = store.runs()
    assert [(run.folder.name, run.status) for run in found] == [("1", "finished"), ("2", "stopped"), ("3", "running")]
    last = store.story(tmp_path / "1")[-1]
    assert (found[0].stages_done, found[0].sparsity, found[0].score) == (2, last.sparsity, last.test.metric)
    assert (found[1].stages_done, found[1].config.method) == (1, "imp")
    assert (found[2].stages_done, found[2].sparsity, found[2].score) == (0, None, None)
    working.close()
    assert [run.status for run in store.runs(tmp_path)] == ["finished", "stopped", "stopped"]


@pytest.mark.parametrize("content", ['{"architectures": ["BertModel"]}', "{", "[]", ""])
def test_a_config_that_is_not_ours_does_not_spoil_the_list(tmp_path, content):
    """Every Hugging Face model folder has a config.json."""
    stop_after(tmp_path / "1", tiny(), 5, **tiny_parts())
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(content)
    assert [run.folder.name for run in store.runs(tmp_path)] == ["1"]


def test_new_folders_do_not_collide(tmp_path):
    folders = []
    for _ in range(3):
        folders.append(store.new_folder(small(), parent=tmp_path))
    assert len(set(folders)) == 3
    assert all(folder.is_dir() for folder in folders)  # whoever is named it, has it
    assert all("digits-randomized-seed0" in folder.name for folder in folders)


def test_old_runs_open_without_the_engine(finished):
    code = f"""
import sys
from pathlib import Path
from randprune_lab import store
folder = Path({str(finished)!r})
assert len(store.story(folder)) == 21
assert store.read_config(folder).candidates == 3
assert [run.status for run in store.runs(folder.parent)] == ["finished"]
assert len(store.stage_table(folder)) == 3
loaded = {{name for name in sys.modules if name.startswith("randprune_lab.")}}
assert not loaded & {{"randprune_lab.engine", "randprune_lab.training", "randprune_lab.executors"}}, loaded
assert not {{"accelerate", "sklearn"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tiny_models_are_alike():
    """These tests rest on it."""
    assert same_tensors(tiny_model().state_dict(), tiny_model().state_dict())


# ---- what else may happen to a folder between two sittings


def interrupted(folder, items=12):
    """A run that was closed in its dense phase or soon after."""
    stream = store.record(folder, engine.prune(tiny(), **tiny_parts()))
    for _ in zip(range(items), stream, strict=False):
        pass
    stream.close()


def test_a_checkpoint_that_another_process_has_overtaken_is_refused(tmp_path):
    interrupted(tmp_path)
    stale = engine.prune(tiny(), **tiny_parts(), resume=store.last_checkpoint(tmp_path))
    go_on(tmp_path, tiny(), **tiny_parts())
    with pytest.raises(ValueError, match="another process has gone on meanwhile"):
        list(store.record(tmp_path, stale))


def test_an_edited_configuration_is_noticed_on_resume(tmp_path):
    interrupted(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 7'))
    assert store.read_config(tmp_path).seed == 7
    with pytest.raises(ValueError, match=r"another seed\."):
        engine.prune(tiny(seed=7), **tiny_parts(), resume=store.last_checkpoint(tmp_path))


@pytest.mark.parametrize("line", [b"[]", b"garbage", b'{"kind": "later"}', b"\xff\xfe", b'{"kind": "run_finished"}'])
def test_a_damaged_line_is_named_and_spoils_no_other_run(tmp_path, line):
    interrupted(tmp_path / "one")
    interrupted(tmp_path / "two")
    journal = tmp_path / "one" / "events.jsonl"
    lines = journal.read_bytes().split(b"\n")
    journal.write_bytes(b"\n".join([*lines[:3], line, *lines[3:]]))
    with pytest.raises(ValueError, match=r"events\.jsonl: line 4 is damaged"):
        store.last_checkpoint(tmp_path / "one")
    assert {run.folder.name: run.status for run in store.runs(tmp_path)} == {"one": "damaged", "two": "stopped"}


def test_checkpoints_without_events_are_not_taken_for_a_new_run(tmp_path):
    interrupted(tmp_path)
    (tmp_path / "events.jsonl").write_bytes(b"")
    with pytest.raises(ValueError, match="has checkpoints, but no events"):
        store.last_checkpoint(tmp_path)


def test_a_checkpoint_that_stands_on_lost_events_is_passed_over(tmp_path, whole):
    interrupted(tmp_path)
    journal = tmp_path / "events.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:2]))
    assert store.last_checkpoint(tmp_path).damaged
    go_on(tmp_path, tiny(), **tiny_parts())
    assert ends_like(tmp_path, whole)

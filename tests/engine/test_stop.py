"""Signals: the first is obeyed when work is whole, the second at once."""

import os
import signal
import time
from pathlib import Path

import pytest

from instancezoo.engine import Trainer, errors_in_one_line, stop
from instancezoo.engine.stop import STOP, Interrupted, heed_parent_alone
from instancezoo.errors import ConfigError


def _signal_self(signum=signal.SIGTERM):
    os.kill(os.getpid(), signum)


def _run_in_child(function):
    """Run in a forked process. Returns its wait status."""
    pid = os.fork()
    if pid == 0:
        function()
        os._exit(0)
    return os.waitpid(pid, 0)[1]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_remembered_or_raised(signum):
    before = signal.getsignal(signum)
    with STOP.catch_signals():
        with STOP.deferred():
            _signal_self(signum)
            with pytest.raises(Interrupted) as stopped:
                STOP.check()
            with pytest.raises(Interrupted), STOP.deferred(False):
                pytest.fail("it came before")
        assert stopped.value.exit_code == 128 + signum
    assert signal.getsignal(signum) == before
    with STOP.catch_signals(), pytest.raises(Interrupted):
        _signal_self(signum)
    STOP.check()


@pytest.mark.parametrize("later,ends", [(True, True), (False, False)])
def test_the_second_signal_ends_the_process(monkeypatch, later, ends):
    monkeypatch.setattr(stop, "SAME_REQUEST_S", 0.0 if later else 60.0)

    def signal_twice():
        with STOP.catch_signals(), STOP.deferred():
            _signal_self()
            _signal_self()
            os._exit(0)

    status = _run_in_child(signal_twice)
    assert os.WIFSIGNALED(status) == ends
    assert not ends or os.WTERMSIG(status) == signal.SIGTERM


def test_saving_outlives_a_second_sigterm(monkeypatch):
    monkeypatch.setattr(stop, "SAME_REQUEST_S", 0.0)
    with STOP.catch_signals(), STOP.deferred():
        _signal_self()
        with STOP.saving():
            _signal_self()


def test_loaders_leave_signals_to_their_parent():
    def be_a_loader():
        _signal_self(signal.SIGINT)
        heed_parent_alone()
        _signal_self()
        os.write(to_parent, b"alive")
        time.sleep(60)

    from_loader, to_parent = os.pipe()
    with STOP.catch_signals():
        pid = os.fork()
        if pid == 0:
            be_a_loader()
    assert os.read(from_loader, 5) == b"alive"
    os.kill(pid, signal.SIGTERM)
    assert os.waitpid(pid, 0)[1] == 0


def test_errors_are_one_line_and_signals_an_exit_code(capsys):
    for error, code in [
        (ConfigError("bad key"), "error: bad key"),
        (
            OSError(28, "No space left on device", "/a/b.pth"),
            "error: /a/b.pth: No space left on device",
        ),
        (Interrupted(15, "saved"), 143),
        (Interrupted(2), 130),
    ]:
        with pytest.raises(SystemExit) as ended, errors_in_one_line():
            raise error
        assert ended.value.code == code
    assert capsys.readouterr().err == "saved\nstopped by SIGINT\n"


def _train_and_signal(cfg, monkeypatch, owner, name, call_number):
    """Train; a signal comes before the given call of a function."""
    inner, calls = getattr(owner, name), []

    def call(*args, **kwargs):
        calls.append(None)
        if len(calls) == call_number:
            _signal_self()
        return inner(*args, **kwargs)

    with monkeypatch.context() as patch, STOP.catch_signals():
        patch.setattr(owner, name, call)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        with pytest.raises(Interrupted) as stopped:
            trainer.train()
    return stopped.value


@pytest.mark.parametrize(
    "name,call_number,saved",
    [
        ("run_step", 1, "model_0000000"),
        ("_evaluate", 1, "model_0000002"),
        ("_evaluate", 2, "model_final"),
    ],
)
def test_a_stopped_training_saves_and_names_its_checkpoint(
    small_cfg, few_shapes, monkeypatch, name, call_number, saved
):
    small_cfg.DATASETS.TEST = (few_shapes,)
    small_cfg.TEST.EVAL_PERIOD = 3
    stopped = _train_and_signal(small_cfg, monkeypatch, Trainer, name, call_number)
    path = Path(small_cfg.OUTPUT_DIR, f"{saved}.pth")
    assert str(path) in stopped.message and path.is_file()
    assert stopped.exit_code == 143 and "--resume" in stopped.message
    trainer = Trainer(small_cfg)
    trainer.resume_or_load(resume=True)
    results = trainer.train()
    assert set(results) == {"bbox", "segm"}
    assert Path(small_cfg.OUTPUT_DIR, "model_final.pth").is_file()

"""Start and end of the command, whatever the subcommand is."""

import errno
import os

import pytest

from instancezoo.cli import doctor
from instancezoo.cli.main import main
from instancezoo.cli.quiet import wait_passively

ENDS = [
    (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
    (OSError(errno.ENOSPC, "No space left", "/a/b.json"), 1, "error: /a/b.json: No space left"),
]


@pytest.mark.parametrize("error,code,line", ENDS)
def test_ends_in_one_line(monkeypatch, capsys, error, code, line):
    def fail(args):
        raise error

    monkeypatch.setattr(doctor, "run", fail)
    assert main(["doctor", "--config-file", "x.yaml"]) == code
    assert capsys.readouterr().err == f"{line}\n"


@pytest.mark.parametrize(
    "chosen,policy",
    [
        ({}, "PASSIVE"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
        ({"GOMP_SPINCOUNT": "1000"}, None),
        ({"KMP_BLOCKTIME": "200"}, None),
    ],
)
def test_threads_wait_as_the_user_chose_or_asleep(monkeypatch, chosen, policy):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.setenv(name, "")  # so that it is restored after the test
        monkeypatch.delenv(name)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    wait_passively()
    assert os.environ.get("OMP_WAIT_POLICY") == policy

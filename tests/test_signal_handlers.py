"""What a command leaves behind in the process of the tests does not reach the next test."""

import signal

import pytest

from tadiff_rt.cli import app
from tadiff_rt.console import run_app


@pytest.fixture(scope="module")
def ran():
    with pytest.raises(SystemExit):
        run_app(app, "tadiff-rt", ["--version"])
    return signal.getsignal(signal.SIGINT)


def test_a_command_of_a_module_fixture_leaves_ctrl_c_as_it_was(ran):
    assert ran is not signal.default_int_handler  # the command did take it over
    for _ in range(2):  # its handler raises once in a while only
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_and_it_is_so_for_the_next_test():
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

"""Fixtures of the command line's tests."""

import pytest

from invdiff.cli import main


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def call(capsys):
    """Run the command line here: exit code, standard output, standard error."""

    def run(*arguments):
        code = main([str(a) for a in arguments])
        seen = capsys.readouterr()
        return code, seen.out, seen.err

    return run

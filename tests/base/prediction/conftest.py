"""The project of these tests, made once; each test runs in its folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from predicted_project import Project

from base.names.registry import project_root, set_project_root


@pytest.fixture(scope="session")
def project_once(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("predicted"))


@pytest.fixture
def trained(project_once: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    former, threads = project_root(), torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.chdir(project_once.folder)
    set_project_root(project_once.folder)
    yield project_once
    set_project_root(former)
    torch.set_num_threads(threads)

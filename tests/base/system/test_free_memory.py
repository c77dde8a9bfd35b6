"""Free memory: the least of what the machine and the control groups leave."""

import psutil
import pytest

from base.system.free_memory import UNLIMITED, free_memory

MEMINFO = "MemTotal:  9000 kB\nMemFree:  100 kB\nMemAvailable:  5000 kB\n"


@pytest.fixture
def system(tmp_path):
    """Write the files of a made-up system: path -> content."""

    def write(files):
        for name, content in {"proc/meminfo": MEMINFO, **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return tmp_path / "proc", tmp_path / "cgroup"

    return write


def group(folder, limit, used, inactive=0, version=2):
    """The files of one group, kilobytes to bytes."""
    names = {1: ("limit_in_bytes", "usage_in_bytes", "total_"), 2: ("max", "current", "")}[version]
    stat = f"anon 7\n{names[2]}inactive_file {inactive * 1024}\n{names[2]}active_file 1024\n"
    limit = limit if limit == "max" else limit * 1024
    return {
        f"cgroup/{folder}/memory.{names[0]}": f"{limit}\n",
        f"cgroup/{folder}/memory.{names[1]}": f"{used * 1024}\n",
        f"cgroup/{folder}/memory.stat": stat,
    }


def test_it_is_near_what_psutil_says():
    assert 0 < free_memory() < psutil.virtual_memory().available * 1.1


def test_without_groups_it_is_what_the_machine_has(system):
    assert free_memory(*system({})) == 5000 * 1024


def test_a_limit_leaves_what_is_not_used_and_what_files_only_keep(system):
    files = {"proc/self/cgroup": "0::/a/b\n", **group("a/b", 1000, 900, inactive=300)}
    assert free_memory(*system(files)) == (1000 - 900 + 300 + 1) * 1024


def test_the_groups_above_count_too(system):
    files = {"proc/self/cgroup": "0::/a/b\n", **group("a/b", "max", 10), **group("a", 50, 20)}
    assert free_memory(*system(files)) == (50 - 20 + 1) * 1024


def test_version_1_is_read(system):
    lines = "5:cpu,cpuacct:/x\n4:memory:/x\n0::/\n"
    unlimited = group("memory", 2**53, 20, version=1)
    files = {"proc/self/cgroup": lines, **unlimited, **group("memory/x", 80, 30, version=1)}
    assert free_memory(*system(files)) == (80 - 30 + 1) * 1024


def test_in_a_container_the_root_is_the_groups_own(system):
    files = {"proc/self/cgroup": "4:memory:/docker/abc\n", **group("memory", 80, 30, version=1)}
    assert free_memory(*system(files)) == (80 - 30 + 1) * 1024


def test_more_used_than_allowed_leaves_nothing(system):
    files = {"proc/self/cgroup": "0::/\n", **group(".", 80, 90)}
    assert free_memory(*system(files)) == 0


def test_a_system_that_does_not_tell_has_no_limit(tmp_path):
    assert free_memory(tmp_path, tmp_path) == UNLIMITED


def test_a_limit_of_the_process_itself_counts(system, monkeypatch):
    monkeypatch.setattr("base.system.free_memory.resource.getrlimit", lambda _: (5 << 20, -1))
    places = system({"proc/self/status": "Name:\tpython\nVmSize:\t   1024 kB\n"})
    assert free_memory(*places) == 4 << 20

# SPDX-License-Identifier: Apache-2.0
"""Cores and memory that a process may really use: affinity, cpuset, quota and limits of cgroup v1, v2 and both."""

from __future__ import annotations

from pathlib import Path

import pytest

from dovetail.probe.cgroup import group_folders, parse_membership
from dovetail.probe.cores import quota_cores, read_affinity, read_cores
from dovetail.probe.memory import parse_meminfo, read_address_space_limit, read_memory
from dovetail.probe.sysroot import Notes, Sysroot
from dovetail.probe.topology import parse_size, read_last_level_cache, read_numa_nodes
from tests.fakes.sysroots import sysroot_of

V2_MOUNT = "25 20 0:22 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
V1_MOUNTS = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
    "32 31 0:29 /docker/abc /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)
V1_GROUPS = "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/\n"
EIGHT = frozenset(range(8))
GIB = 1 << 30


def v2(root: Path, group: str, files: dict[str, str]) -> Sysroot:
    return sysroot_of(root, {"/proc/self/cgroup": f"0::{group}\n", "/proc/self/mountinfo": V2_MOUNT, **files})


def v1(root: Path, files: dict[str, str]) -> Sysroot:
    return sysroot_of(root, {"/proc/self/cgroup": V1_GROUPS, "/proc/self/mountinfo": V1_MOUNTS, **files})


def test_without_limits_all_cpus_of_the_mask_are_usable(tmp_path: Path) -> None:
    cores = read_cores(Sysroot(tmp_path), Notes(), affinity=EIGHT)

    assert (cores.usable, cores.cpus, cores.efficiency) == (8, EIGHT, 0)


@pytest.mark.parametrize(
    ("cpu_max", "expected"),
    [
        ("max 100000", 8),
        ("400000 100000", 4),
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("1600000 100000", 8),
        ("", 8),
    ],
)
def test_a_v2_quota_counts_in_whole_cores_and_at_least_one(tmp_path: Path, cpu_max: str, expected: int) -> None:
    tree = v2(tmp_path, "/app", {"/sys/fs/cgroup/app/cpu.max": cpu_max})

    assert read_cores(tree, Notes(), affinity=EIGHT).usable == expected


def test_the_smallest_quota_of_all_ancestors_counts(tmp_path: Path) -> None:
    tree = v2(
        tmp_path,
        "/kubepods/pod1/app",
        {
            "/sys/fs/cgroup/kubepods/pod1/app/cpu.max": "600000 100000",
            "/sys/fs/cgroup/kubepods/pod1/cpu.max": "300000 100000",
            "/sys/fs/cgroup/kubepods/cpu.max": "max 100000",
        },
    )

    assert quota_cores(tree) == 3.0
    assert read_cores(tree, Notes(), affinity=EIGHT).usable == 3


@pytest.mark.parametrize(("quota", "expected"), [("-1", None), ("150000", 1.5), ("0", None), ("nonsense", None)])
def test_a_v1_quota_is_read_below_the_mounted_part_of_the_hierarchy(
    tmp_path: Path, quota: str, expected: float | None
) -> None:
    folder = "/sys/fs/cgroup/cpu,cpuacct"
    tree = v1(tmp_path, {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": "100000"})

    assert quota_cores(tree) == expected


def test_with_v1_and_v2_mounted_the_controller_is_found_where_it_is(tmp_path: Path) -> None:
    tree = sysroot_of(
        tmp_path,
        {
            "/proc/self/cgroup": "1:cpu:/\n0::/init.scope\n",
            "/proc/self/mountinfo": V2_MOUNT.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified ")
            + "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n",
        },
    )

    assert group_folders(tree, "cpu") == (
        (2, "/sys/fs/cgroup/unified/init.scope"),
        (2, "/sys/fs/cgroup/unified"),
        (1, "/sys/fs/cgroup/cpu"),
    )


def test_a_cpuset_smaller_than_the_mask_counts(tmp_path: Path) -> None:
    tree = v2(tmp_path, "/app", {"/sys/fs/cgroup/app/cpuset.cpus.effective": "2-3"})
    notes = Notes()

    cores = read_cores(tree, notes, affinity=EIGHT)

    assert cores.cpus == {2, 3}
    assert "cpuset" in notes.sources["usable_cores"]


def test_membership_of_joined_controllers_is_split() -> None:
    assert parse_membership("3:cpu,cpuacct:/a:b\n0::/c\nbroken\n") == {"cpu": "/a:b", "cpuacct": "/a:b", "": "/c"}


def test_hybrid_intel_cores_are_counted_by_their_performance_monitor(tmp_path: Path) -> None:
    tree = sysroot_of(tmp_path, {"/sys/devices/cpu_core/cpus": "0-3", "/sys/devices/cpu_atom/cpus": "4-7"})

    assert read_cores(tree, Notes(), affinity=EIGHT).efficiency == 4
    assert read_cores(tree, Notes(), affinity=frozenset({0, 1, 4})).efficiency == 1


def test_small_arm_cores_are_told_by_their_capacity(tmp_path: Path) -> None:
    capacities = {cpu: 430 if cpu < 4 else 1024 for cpu in range(8)}
    files = {f"/sys/devices/system/cpu/cpu{cpu}/cpu_capacity": f"{value}\n" for cpu, value in capacities.items()}

    assert read_cores(sysroot_of(tmp_path, files), Notes(), affinity=EIGHT).efficiency == 4


def test_a_quota_is_spent_on_large_cores_first(tmp_path: Path) -> None:
    files = {"/sys/devices/cpu_atom/cpus": "6-7", "/sys/fs/cgroup/app/cpu.max": "700000 100000"}

    cores = read_cores(v2(tmp_path, "/app", files), Notes(), affinity=EIGHT)

    assert (cores.usable, cores.efficiency) == (7, 1)


def test_equal_capacities_mean_no_small_cores(tmp_path: Path) -> None:
    files = {f"/sys/devices/system/cpu/cpu{cpu}/cpu_capacity": "1024\n" for cpu in range(2)}

    assert read_cores(sysroot_of(tmp_path, files), Notes(), affinity=frozenset({0, 1})).efficiency == 0


def test_this_process_may_run_somewhere() -> None:
    assert read_affinity()


MEMINFO = (
    "MemTotal:        8000000 kB\nMemFree:         1000000 kB\nMemAvailable:    6000000 kB\nHugePages_Total:       0\n"
)


def test_meminfo_is_read_in_bytes() -> None:
    assert parse_meminfo(MEMINFO) == {
        "MemTotal": 8192000000,
        "MemFree": 1024000000,
        "MemAvailable": 6144000000,
    }


def test_without_a_limit_the_machines_memory_is_ours(tmp_path: Path) -> None:
    memory = read_memory(sysroot_of(tmp_path, {"/proc/meminfo": MEMINFO}), Notes(), address_space_limit=None)

    assert (memory.total_bytes, memory.available_bytes) == (8192000000, 6144000000)


def test_a_v2_limit_counts_and_clean_file_cache_is_not_used_memory(tmp_path: Path) -> None:
    folder = "/sys/fs/cgroup/app"
    tree = v2(
        tmp_path,
        "/app",
        {
            "/proc/meminfo": MEMINFO,
            f"{folder}/memory.max": str(2 * GIB),
            f"{folder}/memory.current": str(GIB),
            f"{folder}/memory.stat": f"anon 1\ninactive_file {GIB // 2}\n",
        },
    )

    memory = read_memory(tree, Notes(), address_space_limit=None)

    assert (memory.total_bytes, memory.available_bytes) == (2 * GIB, 2 * GIB - GIB // 2)


def test_a_v1_limit_counts_and_its_no_limit_number_does_not(tmp_path: Path) -> None:
    folder = "/sys/fs/cgroup/memory"
    limited = {f"{folder}/memory.limit_in_bytes": str(GIB), f"{folder}/memory.usage_in_bytes": "0"}
    tree = v1(tmp_path, {"/proc/meminfo": MEMINFO, **limited})
    notes = Notes()

    assert read_memory(tree, notes, address_space_limit=None).total_bytes == GIB
    assert "cgroup v1" in notes.sources["memory_bytes"]

    (tmp_path / f"{folder}/memory.limit_in_bytes".lstrip("/")).write_text("9223372036854771712\n")
    assert read_memory(tree, Notes(), address_space_limit=None).total_bytes == 8192000000


def test_an_address_space_limit_counts(tmp_path: Path) -> None:
    memory = read_memory(sysroot_of(tmp_path, {"/proc/meminfo": MEMINFO}), Notes(), address_space_limit=GIB)

    assert (memory.total_bytes, memory.available_bytes) == (GIB, GIB)


def test_without_meminfo_memory_is_unknown_with_a_reason(tmp_path: Path) -> None:
    notes = Notes()

    assert read_memory(Sysroot(tmp_path), notes, address_space_limit=GIB).total_bytes == 0
    assert "MemTotal" in notes.absent["memory"]


def test_the_address_space_limit_of_this_process_is_none_or_positive() -> None:
    limit = read_address_space_limit()

    assert limit is None or limit > 0


def test_only_numa_nodes_with_usable_cpus_count(tmp_path: Path) -> None:
    nodes = "/sys/devices/system/node"
    tree = sysroot_of(
        tmp_path, {f"{nodes}/node0/cpulist": "0-3", f"{nodes}/node1/cpulist": "4-7", f"{nodes}/node2/cpulist": ""}
    )

    assert read_numa_nodes(tree, Notes(), cpus=EIGHT) == 2
    assert read_numa_nodes(tree, Notes(), cpus=frozenset({1})) == 1
    assert read_numa_nodes(Sysroot(tmp_path / "none"), Notes(), cpus=EIGHT) == 1


def test_the_last_level_cache_is_the_largest_of_the_usable_cores(tmp_path: Path) -> None:
    files = {}
    for cpu, size in ((0, "8192K"), (1, "16384K")):
        folder = f"/sys/devices/system/cpu/cpu{cpu}/cache"
        for index, (level, kind, text) in enumerate(
            [(1, "Data", "64K"), (1, "Instruction", "64K"), (2, "Unified", "512K"), (3, "Unified", size)]
        ):
            files[f"{folder}/index{index}/level"] = str(level)
            files[f"{folder}/index{index}/type"] = kind
            files[f"{folder}/index{index}/size"] = text
    tree = sysroot_of(tmp_path, files)

    assert read_last_level_cache(tree, Notes(), cpus=frozenset({0})) == 8 << 20
    assert read_last_level_cache(tree, Notes(), cpus=frozenset({0, 1})) == 16 << 20


def test_a_kernel_without_cache_sizes_gives_a_reason(tmp_path: Path) -> None:
    notes = Notes()

    assert read_last_level_cache(Sysroot(tmp_path), notes, cpus=EIGHT) == 0
    assert "cache" in notes.absent


@pytest.mark.parametrize(
    ("text", "expected"), [("32768K", 32 << 20), ("1M", 1 << 20), ("512", 512), ("", 0), ("xK", 0)]
)
def test_cache_sizes_are_read_with_their_unit(text: str, expected: int) -> None:
    assert parse_size(text) == expected

# SPDX-License-Identifier: Apache-2.0
"""Takes rights away from the calling process, as many as the kernel and the container let it give up.

Each step says whether it worked and none is taken for granted: root may do all of it, an ordinary user most of it in a
user namespace of its own, and some containers forbid namespaces altogether. Only system calls; nothing here knows what
will run. To be called while the process has a single thread.

Source: unshare(2), user_namespaces(7), mount_namespaces(7), pid_namespaces(7), mount_setattr(2), proc_sys_kernel(5),
sched(7), capabilities(7), prctl(2); numbers from the kernel's headers linux/sched.h, linux/mount.h, linux/prctl.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUTS = 0x04000000
_CLONE_NEWIPC = 0x08000000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWPID = 0x20000000
_CLONE_NEWNET = 0x40000000
_KINDS: Mapping[str, int] = {
    "network": _CLONE_NEWNET,
    "mounts": _CLONE_NEWNS,
    "processes": _CLONE_NEWPID,
    "ipc": _CLONE_NEWIPC,
    "hostname": _CLONE_NEWUTS,
}

_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
_SYS_MOUNT_SETATTR = 442  # the same on all architectures since Linux 5.12
_AT_FDCWD, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY = -100, 0x8000, 1

_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAPABILITY = 63  # unknown ones are refused and passed over

_LEAST_PID_MAX = 302  # kernel/pid_namespace.c: one more than the numbers that are kept back
_THREADS_EACH = 16
_OOM_SCORE = "500"  # the kernel then takes this process before the worker and the services


def isolate() -> frozenset[str]:
    """Move into new namespaces.

    Returns:
        Which: some of "network" (no interfaces), "mounts", "processes" (for children only), "ipc", "hostname".
    """
    unshare = _libc().unshare
    every = sum(_KINDS.values())
    if unshare(every) == 0:
        return frozenset(_KINDS)
    user, group = os.getuid(), os.getgid()
    if unshare(_CLONE_NEWUSER | every) == 0:
        _map_ids(user, group)
        return frozenset(_KINDS)
    return frozenset(name for name, flag in _KINDS.items() if unshare(flag) == 0)


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it is gone. New privileges undo it: call it last."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def make_read_only_but(directory: Path) -> bool:
    """In a mount namespace of our own: all of the file system read-only, `directory` and a new /proc excepted.

    Returns:
        True if it is so.
    """
    if not _mount("none", "/", "", _MS_REC | _MS_PRIVATE) or not _mount(str(directory), str(directory), "", _MS_BIND):
        return False
    if not _set_read_only("/", recursive=True):
        return False
    _set_writable(str(directory))
    _set_writable("/proc")  # a process writes to its own entries there
    return os.access(directory, os.W_OK)


def hide(file: Path) -> bool:
    """In a mount namespace of our own: show an empty file in the place of that one, to everything started from here.

    Who gave up the right to mount, as `give_up_privileges` does, cannot take it away again.

    Returns:
        True if it is so.
    """
    return _mount(os.devnull, str(file), "", _MS_BIND)


def mount_own_proc() -> bool:
    """Show only the processes of our own namespace; to be called in the first process of it."""
    return _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)


def limit_processes(most: int) -> None:
    """Let the kernel refuse forks beyond about `most` processes, with what it has for that.

    In the first process of a process namespace with a /proc of its own. The namespace's own range of numbers (Linux
    6.14 and later, never below 301 of them) holds for root, too; RLIMIT_NPROC counts threads and exempts root. Neither
    is exact: who counts is the watcher, and these give it the time to.
    """
    numbers = max(_LEAST_PID_MAX, 2 * most)
    with contextlib.suppress(OSError):
        Path("/proc/sys/kernel/pid_max").write_text(str(numbers), encoding="ascii")
    if os.getuid() != 0:
        _, ceiling = resource.getrlimit(resource.RLIMIT_NPROC)
        wanted = _THREADS_EACH * most
        allowed = wanted if ceiling == resource.RLIM_INFINITY else min(wanted, ceiling)
        resource.setrlimit(resource.RLIMIT_NPROC, (allowed, allowed))


def watch_first() -> None:
    """Have this process, and none that it starts, run before all others, where that is allowed."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))


def give_up_privileges() -> bool:
    """Drop all capabilities for good, and the way to new ones by set-user-id programs.

    Returns:
        True if none is left.
    """
    libc = _libc()
    for number in range(_LAST_CAPABILITY + 1):
        libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()
    dropped = libc.capset(header, none) == 0
    return libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 and bool(dropped)


def apply_limits(limits: Mapping[str, Any]) -> None:
    """Set resource limits on this process and what it starts; one above what is set already is lowered to it."""
    cpu_s = int(limits["cpu_s"])
    wanted = {
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_FSIZE: (int(limits["file_bytes"]),) * 2,
        resource.RLIMIT_NOFILE: (int(limits["open_files"]),) * 2,
        resource.RLIMIT_CPU: (cpu_s, cpu_s + 5),  # soft: SIGXCPU, which names the reason; hard: SIGKILL
    }
    if limits.get("address_space", True):
        wanted[resource.RLIMIT_AS] = (int(limits["memory_bytes"]),) * 2
    for what, (soft, hard) in wanted.items():
        _, ceiling = resource.getrlimit(what)
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(what, (soft, hard))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, encoding="ascii")


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _map_ids(user: int, group: int) -> None:
    """Keep our own number in the new user namespace, so that our files are still ours."""
    with contextlib.suppress(OSError):  # without a map they are too, only our own number reads as "nobody"
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")


def _mount(source: str, target: str, kind: str, flags: int) -> bool:
    done: int = _libc().mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), None)
    return done == 0


def _set_read_only(path: str, *, recursive: bool) -> bool:
    return _set_attributes(path, (_MOUNT_ATTR_RDONLY, 0), _AT_RECURSIVE if recursive else 0)


def _set_writable(path: str) -> bool:
    return _set_attributes(path, (0, _MOUNT_ATTR_RDONLY), 0)


def _set_attributes(path: str, change: tuple[int, int], flags: int) -> bool:
    attributes = (ctypes.c_uint64 * 4)(*change, 0, 0)  # set, clear, propagation, user namespace
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    arguments = (ctypes.c_long(_SYS_MOUNT_SETATTR), ctypes.c_int(_AT_FDCWD), path.encode(), ctypes.c_uint(flags))
    done: int = _libc().syscall(*arguments, attributes, size)
    return done == 0

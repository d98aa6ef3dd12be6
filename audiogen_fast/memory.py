"""How much memory there is to use."""

from pathlib import Path


def free_memory() -> float:
    """Bytes that can be used now without swapping: what the kernel says is available, or what is
    left of the control group's limit. Infinite where neither can be read."""
    free = float("inf")
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    limit, used = _lines("/sys/fs/cgroup/memory.max"), _lines("/sys/fs/cgroup/memory.current")
    if limit and used and limit[0].isdigit():
        free = min(free, max(0, int(limit[0]) - int(used[0])))
    return free


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []

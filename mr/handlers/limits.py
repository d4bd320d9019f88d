"""What a handler may use."""

from __future__ import annotations

from dataclasses import dataclass

from mr.config import Config


@dataclass(frozen=True)
class Limits:
    """What one handler may use; 0 is no limit (except for what it prints).

    ``memory_bytes`` of address space on top of the interpreter's, ``cpu_s`` seconds of processor and ``wall_s`` seconds
    of time for one run, ``open_files``, ``processes`` below the runner (looked at from time to time), and how many
    bytes of what it prints are kept.
    """

    memory_bytes: int = 1024 * 1024 * 1024
    cpu_s: float = 0.0
    wall_s: float = 3600.0
    open_files: int = 1024
    processes: int = 64
    output_bytes: int = 1024 * 1024

    @classmethod
    def of(cls, config: Config) -> Limits:
        return cls(
            memory_bytes=config.runner_memory_bytes,
            wall_s=config.runner_wall_s,
            open_files=config.runner_open_files,
            processes=config.runner_processes,
            output_bytes=config.runner_output_bytes,
        )

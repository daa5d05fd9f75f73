"""What a command writes belongs to one process at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from cee_gym import processes
from cee_gym.errors import CeeGymError


@contextmanager
def hold(output: Path, *, wait: float = 0.0) -> Iterator[None]:
    """Keeps other processes of cee-gym from writing an output while a block runs.

    It is a lock of the operating system on `.NAME.lock` beside the output, which ends with its
    process, however that ends; the file is removed after the block. Machines that share a file
    system see each other's locks where it has them, as NFS from version 4 and Lustre mounted with
    `flock` do. Of several processes of one run the main one holds it for all.

    Args:
        output: a file or directory, there or not; the folder it is in is made.
        wait: seconds to wait for another process.

    Raises:
        CeeGymError: if another process holds it.
    """
    if not processes.is_main():
        yield
        return
    output = output.absolute()
    file = output.with_name(f".{output.name}.lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(file, timeout=wait):
            try:
                yield
            finally:
                # While it is held: whoever opened it before finds that it is gone, and tries again.
                file.unlink(missing_ok=True)
    except Timeout:
        raise CeeGymError(
            f"another process is writing {output}: wait for it, or give another output"
        ) from None

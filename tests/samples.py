"""What several tests share: page contents, threads, and what a process holds."""

import gc
import itertools
import os
import random
import threading
from collections.abc import Callable, Iterator

from cram_emu import Device, PoisonError

PAGE = 4096
LINE = 64


def noise(seed: int, length: int = PAGE) -> bytes:
    """Bytes that no codec shrinks: a page of them is stored raw."""
    return random.Random(seed).randbytes(length)


def entropy(seed: int, amount: int = 1024) -> bytes:
    """A page of so many random bytes (at least 1), and another byte repeated up to its end."""
    head = noise(seed, amount)
    return head + bytes([head[-1] ^ 0xFF]) * (PAGE - amount)


def right_or_poison(device: Device, dpa: int, page: bytes) -> bool:
    """Is the page poison? Else it is asserted to hold these bytes."""
    try:
        assert device.read(dpa, PAGE) == page
    except PoisonError:
        return True
    return False


def run_threads(*functions: Callable[[], object]) -> None:
    """Runs each in a thread of its own; raises what one of them raised."""
    errors: list[BaseException] = []

    def catch(function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=catch, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def holdings() -> tuple[set[str], int]:
    """The descriptors and the number of threads of this process."""
    gc.collect()
    fds = {fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")}
    return fds, len(os.listdir("/proc/self/task"))


def operations(seed: int, pages: range) -> Iterator[tuple[int, bytes | None]]:
    """An endless stream of writes to these pages, and of discards (None), the same for a seed."""
    generator = random.Random(seed)
    for number in itertools.count():
        page = generator.choice(pages)
        amount = generator.choice((None, 1, 100, 700, 1500, 3000, PAGE))
        yield page, None if amount is None else entropy(seed * 1000003 + number, amount)


def apply(device: Device, page: int, data: bytes | None) -> None:
    """Does one of operations()."""
    if data is None:
        device.discard(page * PAGE, PAGE)
    else:
        device.write(page * PAGE, data)

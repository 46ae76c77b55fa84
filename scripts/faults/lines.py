"""A processor with a write-back cache before a device, for the scenarios: lines.py PATH LINES PAGES

The device is mapped one to one, as plain memory; the frames of the window, LINES of them, are the cache, which has one line of
a page dirty at most. First each page is filled with one byte, which takes no media, and flushed. Then one line of each is dirtied,
64 bytes that do not compress, until no_alloc is set: it is read before each line, so nobody could stop sooner. What is dirty in
the cache by then goes to the device all the same. Then all is read back. It prints DIRTIED POISONED WRONG: lines, pages, pages.
"""

import random
import sys

from cram_emu import Device, PoisonError

PAGE, LINE = 4096, 64


def line(page: int) -> bytes:
    return random.Random(page).randbytes(LINE)


def main() -> None:
    path, lines, pages = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    filled = [bytes([page % 251 + 1]) * PAGE for page in range(pages)]
    with Device.open(path) as device:
        with device.map(length=pages * PAGE, window=lines * PAGE, delivery="inline", writeback=0) as memory:
            for page in range(pages):
                memory[page * PAGE : (page + 1) * PAGE] = filled[page]
            memory.flush()
            dirtied = 0
            while dirtied < pages and not device.no_alloc:
                start = dirtied * PAGE + dirtied % (PAGE // LINE) * LINE
                memory[start : start + LINE] = line(dirtied)
                dirtied += 1
            memory.flush()
        poisoned = wrong = 0
        for page in range(pages):
            expected = filled[page]
            if page < dirtied:
                at = page % (PAGE // LINE) * LINE
                expected = expected[:at] + line(page) + expected[at + LINE :]
            try:
                wrong += device.read(page * PAGE, PAGE) != expected
            except PoisonError:
                poisoned += 1
        print(dirtied, poisoned, wrong)


main()

"""A driver that fills a device, for the scenarios: writer.py PATH HOW PAGES

HOW is what it does about a device that runs low:

  ignore     it goes on
  interrupt  it stops once it has been interrupted (lthresh), and does not wait for that
  obey       the same; every 64 pages it lets its interrupt handler catch up with what the device has raised
  poll       it reads no_alloc before each page, and stops when that is set
  churn      it goes on, but holds 64 pages at most: it trims the oldest before it takes another

Each page takes half its size. Then it reads back what it has written, and prints WRITTEN POISONED WRONG, page counts.
"""

import random
import sys
import threading

from cram_emu import Device, Interrupt, PoisonError

PAGE = 4096
HELD = 64


def content(page: int) -> bytes:
    return random.Random(page).randbytes(PAGE // 2).ljust(PAGE, b"\0")


def main() -> None:
    path, how, pages = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with Device.open(path) as device:
        warned: list[int] = []
        heard = threading.Condition()

        def interrupted(interrupt: Interrupt) -> None:
            with heard:
                warned.append(interrupt.sequence)
                heard.notify()

        device.on_interrupt(interrupted)
        written = 0
        for page in range(pages):
            if how == "obey" and page % HELD == 0:
                events = device.stats.events
                with heard:
                    heard.wait_for(lambda: (warned or [0])[-1] >= events)
            if (how in ("interrupt", "obey") and warned) or (how == "poll" and device.no_alloc):
                break
            if how == "churn" and page >= HELD:
                device.discard((page - HELD) * PAGE, PAGE)
            device.write(page * PAGE, content(page))
            written += 1
        poisoned = wrong = 0
        for page in range(max(0, written - HELD) if how == "churn" else 0, written):
            try:
                wrong += device.read(page * PAGE, PAGE) != content(page)
            except PoisonError:
                poisoned += 1
        print(written, poisoned, wrong)


main()

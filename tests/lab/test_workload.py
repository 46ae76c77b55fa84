"""The seeded workload: the same every time, verified against what was written. On a bytearray.

Kernel zram is the witness of how much pages shrink.
"""

import hashlib
import os
from pathlib import Path

import pytest

from cram_emu.lab import zram
from cram_emu.lab.loops import WrongContents
from cram_emu.lab.undo import Unavailable, patiently, write
from cram_emu.lab.workload import ANY_CODEC, ORDINARY, PAGE, Contents, Workload

PAGES = 512


def left(**arguments) -> bytes:
    """A digest of what a workload leaves in memory."""
    memory = bytearray(PAGES * PAGE)
    Workload(PAGES, accesses=500, **arguments).run(memory)
    return hashlib.blake2b(memory).digest()


class TestDeterminism:
    """The same arguments leave the same bytes."""

    def test_same(self):
        assert left(seed=7) == left(seed=7)

    def test_across_processes(self, run_child):
        """Whatever the seed of the interpreter's own hashes is."""
        program = """
            from cram_emu.lab.workload import *
            import hashlib
            memory = bytearray(512 * PAGE)
            Workload(512, accesses=500, seed=7).run(memory)
            print(hashlib.blake2b(memory).hexdigest())
        """
        child = run_child(program)
        assert (child.stdout.strip(), child.stderr) == (left(seed=7).hex(), "")

    @pytest.mark.parametrize("other", ({"seed": 8}, {"seed": 7, "mix": ANY_CODEC}, {"seed": 7, "passes": 2}))
    def test_twin_other(self, other):
        assert left(**other) != left(seed=7)


class TestVerification:
    """What the memory holds is what was written last, and one wrong byte is found."""

    @pytest.fixture
    def done(self) -> tuple[Workload, bytearray]:
        memory = bytearray(PAGES * PAGE)
        workload = Workload(PAGES, accesses=500)
        workload.run(memory)
        return workload, memory

    def test_right(self, done):
        workload, memory = done
        workload.verify(memory)

    @pytest.mark.parametrize("page", (0, 17, PAGES - 1))
    def test_twin_wrong_byte(self, done, page):
        workload, memory = done
        memory[page * PAGE + 4095] ^= 1
        with pytest.raises(WrongContents, match=f"1 of {PAGES} pages are wrong, page {page} first"):
            workload.verify(memory)

    def test_twin_old_page(self, done):
        """A page that holds another page's bytes."""
        workload, memory = done
        other = next(p for p in range(1, PAGES) if memory[:PAGE] != memory[p * PAGE : (p + 1) * PAGE])
        memory[other * PAGE : (other + 1) * PAGE] = memory[:PAGE]
        with pytest.raises(WrongContents, match=f"page {other} first"):
            workload.verify(memory)

    def test_twin_lost_writes(self, monkeypatch):
        """Memory that forgets what is written is caught on the way, not only in the end."""

        def forget(self: Workload, memory: memoryview, page: int, kind: str) -> None:
            self._ledger.record(page, self._contents.page(kind))

        monkeypatch.setattr(Workload, "_write", forget)
        with pytest.raises(WrongContents, match=f"page .* of {PAGES} is wrong"):
            Workload(PAGES, accesses=500).run(bytearray(PAGES * PAGE))

    def test_zero_pages(self, done):
        """Their number is that of the pages that hold no other byte."""
        workload, memory = done
        zeros = sum(not any(memory[p * PAGE : (p + 1) * PAGE]) for p in range(PAGES))
        assert workload.zero_pages == zeros > 0

    def test_buffer_is_free_again(self, done):
        """No view is held: the buffer can be resized or unmapped."""
        _, memory = done
        memory.clear()


class TestContents:
    """Pages are what their kind says."""

    @pytest.mark.parametrize("kind", (*ORDINARY, *ANY_CODEC))
    def test_length(self, kind):
        contents = Contents(1)
        assert all(len(contents.page(kind)) == PAGE for _ in range(100))

    def test_word(self):
        page = Contents(1).page("word")
        assert page == page[:8] * 512 and any(page)

    def test_shares(self):
        for mix in (ORDINARY, ANY_CODEC):
            assert sum(mix.values()) == pytest.approx(1)


class TestCompressors:
    """Lzo and lz4 shrink pages of ANY_CODEC to the same bytes within 1 %, and not those of text."""

    @pytest.fixture
    def shrunk(self, skip_unless_root):
        def shrunk(algorithm: str, pages: bytes) -> int:
            """Compressed bytes, by a zram device of our own."""
            control = Path("/sys/class/zram-control")
            number = (control / "hot_add").read_text().strip()
            block = Path(f"/sys/block/zram{number}")
            try:
                if algorithm not in (block / "comp_algorithm").read_text():
                    pytest.skip(f"zram has no {algorithm}")
                write(block / "comp_algorithm", algorithm)
                write(block / "disksize", len(pages))
                fd = os.open(f"/dev/zram{number}", os.O_WRONLY)
                try:
                    assert os.write(fd, pages) == len(pages)
                    os.fsync(fd)
                finally:
                    os.close(fd)
                return int((block / "mm_stat").read_text().split()[1])
            finally:
                patiently(lambda: write(block / "reset", 1))
                patiently(lambda: write(control / "hot_remove", number))

        try:
            zram.require()
        except Unavailable as reason:
            pytest.skip(f"no zram here: {reason}")
        return shrunk

    @pytest.mark.parametrize(
        ("kinds", "alike"), ((tuple(ANY_CODEC), True), (("half_text", "little_text"), False))
    )
    def test_alike(self, shrunk, kinds, alike):
        contents = Contents(1)
        pages = b"".join(contents.page(kind) for _ in range(1000) for kind in kinds)
        lz4, lzo = (shrunk(algorithm, pages) for algorithm in ("lz4", "lzo"))
        assert (abs(lzo / lz4 - 1) < 0.01) is alike

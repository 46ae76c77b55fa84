"""`--poison-at` and `--fault-after` as words; the book."""

import struct
from pathlib import Path

import pytest

from cram_emu.errors import InvalidArgument
from cram_emu.lab.witness import After, Book, PoisonAt, Place, parse_after, parse_poison_at


class TestPoisonAt:
    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("heap:50%", PoisonAt("heap:50%", "heap", "heap:50")),
            ("heap:0.5%", PoisonAt("heap:0.5%", "heap", "heap:0.5")),
            ("mmap:3", PoisonAt("mmap:3", "mmap", "mmap:3+0", 3)),
            ("mmap:3+0x1000", PoisonAt("mmap:3+0x1000", "mmap", "mmap:3+4096", 3)),
            ("caller:make#7", PoisonAt("caller:make#7", "caller", "caller:make#7", 7, "make")),
        ],
    )
    def test_read(self, text: str, found: PoisonAt) -> None:
        """The shim gets numbers without their units."""
        assert parse_poison_at(text) == found

    @pytest.mark.parametrize(
        "text",
        ["", "heap", "heap:50", "heap:100.1%", "heap:-1%", "heap:nan%", "heap:%", "heap:1,2%", "mmap:0", "mmap:+1", "mmap:1+",
         "mmap:1-1", "mmap:4294967296", "mmap:1+18446744073709551616", "caller:#1", "caller:a", "caller:a#0", "caller:a#x",
         "caller:a,b#1", "caller:a b#1", "caller:a#1#2", f"caller:{'a' * 200}#1", "stack:1", "Heap:1%"],
    )  # fmt: skip
    def test_refused(self, text: str) -> None:
        """What is none is named."""
        with pytest.raises(InvalidArgument) as error:
            parse_poison_at(text)
        assert str(error.value).startswith(f"{text!r}: ")


class TestAfter:
    def test_read(self) -> None:
        assert parse_after("5s") == After(seconds=5) and parse_after("0.25s") == After(seconds=0.25)
        assert parse_after("10000-faults") == After(faults=10000)

    @pytest.mark.parametrize("text", ["", "5", "s", "-1s", "faults", "1.5-faults", "5-fault", "1e3s", "nans"])
    def test_refused(self, text: str) -> None:
        with pytest.raises(InvalidArgument) as error:
            parse_after(text)
        assert str(error.value).startswith(f"{text!r}: ")

    def test_reached(self) -> None:
        """A time is reached by time, a number of faults by faults."""
        assert parse_after("2s").reached(2.0, 0) and not parse_after("2s").reached(1.9, 10**9)
        assert parse_after("9-faults").reached(0.0, 9) and not parse_after("9-faults").reached(1e9, 8)


class TestBook:
    def test_layout(self) -> None:
        """The book is as large as the shim's."""
        header = (Path(__file__).parents[2] / "csrc/shim/witness.h").read_text()
        assert "#define BOOK_LINE 256u\n#define BOOK_LINES 1023u\n" in header
        with Book() as book:
            assert Path(book.path).stat().st_size == 256 * 1024

    def test_lines(self) -> None:
        """What is written in the shim's form is read, and neither half a line nor more lines than there is room for do any harm."""
        with Book() as book:
            with open(book.path, "r+b", buffering=0) as file:
                file.seek(256)
                file.write(b"met\t7\t0x2000\theap\tmake+0x5 (a)\t1.500000000\tname\0".ljust(256, b"\0"))
                file.write(b"struck\t7\t0x2000\theap\t\t0x3000\0".ljust(256, b"\0"))
                file.write(b"met\t8\t0x20\0")
                file.seek(16)
                file.write(struct.pack("I", 5000))
            (met,) = book.met()
            assert (met.place, met.time, met.name) == (Place(7, 0x2000, "heap", "make+0x5 (a)"), 1.5, "name")
            struck = book.struck(parse_poison_at("heap:1%"))
            assert (struck.target, struck.dpa, struck.place, struck.why) == ("heap:1%", 0x3000, Place(7, 0x2000, "heap", ""), "")

    def test_nothing(self) -> None:
        """An empty book says why nothing was struck."""
        with Book() as book:
            assert book.struck(parse_poison_at("heap:1%")).why == "the program ended before it was due"
            book.set_due()
            assert "-rdynamic" in book.struck(parse_poison_at("caller:a#1")).why
            assert book.struck(parse_poison_at("mmap:1")).why == "mappings of the program on the device: 0"
            assert book.met() == []

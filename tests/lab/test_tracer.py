"""The tracer, against programs that die in known ways."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from cram_emu.lab import tracer

# Dies as a program does that reads poisoned memory: it queues itself the signal with this siginfo.
MACHINE_CHECK = """
import ctypes, os, signal, struct, sys, threading
siginfo = struct.pack("=iiiiQh102x", signal.SIGBUS, 0, 4, 0, int(sys.argv[1], 0), 12)
ctypes.CDLL(None).syscall(297, os.getpid(), threading.get_native_id(), signal.SIGBUS, siginfo)
"""

# Touches memory past the end of its file: a SIGBUS by the kernel itself, at an address it prints.
PAST_THE_END = """
import ctypes, mmap, tempfile
file = tempfile.TemporaryFile()
file.truncate(4096)
memory = mmap.mmap(file.fileno(), 4096)
file.truncate(0)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
print(hex(address + 8), flush=True)
ctypes.string_at(address + 8, 1)
"""

SLEEPER = """
import os, sys, time
print(os.getpid(), file=open(sys.argv[1], "w"), flush=True)
time.sleep(60)
"""


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def eventually(condition: Callable[[], object]) -> bool:
    for _ in range(1000):
        if condition():
            return True
        time.sleep(0.01)
    return False


def python(program: str, *args: str, timeout: float = 30.0) -> tracer.Ending:
    return tracer.run([sys.executable, "-c", program, *args], timeout=timeout)


class TestDeath:
    """The siginfo of the signal that kills is reported as the kernel delivered it."""

    @pytest.mark.skipif(os.uname().machine != "x86_64", reason="system call number of x86-64")
    def test_machine_check(self) -> None:
        ending = python(MACHINE_CHECK, "0x123456789000")
        assert ending.signal == signal.SIGBUS
        assert ending.siginfo == tracer.Siginfo(signal.SIGBUS, 4, 0x123456789000, 12)
        assert ending.siginfo.code_name == "BUS_MCEERR_AR"

    def test_fault_of_the_kernel(self) -> None:
        ending = python(PAST_THE_END)
        assert ending.signal == signal.SIGBUS
        assert ending.siginfo.code_name == "BUS_ADRERR"
        assert ending.siginfo.address == int(ending.output, 16)

    def test_code_without_a_name(self) -> None:
        ending = python("import os, signal; os.kill(os.getpid(), signal.SIGTERM)")
        assert (ending.signal, ending.siginfo.code_name) == (signal.SIGTERM, "0")

    def test_real_time_signal(self) -> None:
        number = signal.SIGRTMIN + 12
        ending = python(f"import os; os.kill(os.getpid(), {number})")
        assert ending.signal == ending.siginfo.signal == number

    def test_other_thread_has_no_siginfo(self) -> None:
        ending = python(
            "import os, signal, threading, time\n"
            "def die(): signal.pthread_kill(threading.get_ident(), signal.SIGBUS)\n"
            "threading.Thread(target=die).start(); time.sleep(9)"
        )
        assert (ending.signal, ending.siginfo) == (signal.SIGBUS, None)

    def test_no_core_file(self, tmp_path, monkeypatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert python("import os; os.abort()").signal == signal.SIGABRT
        assert os.listdir(tmp_path) == []


class TestLife:
    """A program that handles its signals runs as it would without a tracer."""

    def test_handled_signals_are_passed_on_and_counted(self) -> None:
        ending = python(
            "import signal, sys\n"
            "seen = []\n"
            "signal.signal(signal.SIGBUS, lambda *_: seen.append(1))\n"
            "for _ in range(5): signal.raise_signal(signal.SIGBUS)\n"
            "sys.exit(len(seen))"
        )
        assert (ending.exit_code, ending.handled, ending.siginfo) == (5, 5, None)

    def test_stop_and_continue(self) -> None:
        ending = python(
            "import os, signal, subprocess\n"
            "subprocess.Popen(['sh', '-c', f'sleep 0.2; kill -CONT {os.getpid()}'])\n"
            "os.kill(os.getpid(), signal.SIGSTOP)\n"
            "print('on')"
        )
        assert (ending.exit_code, ending.output) == (0, "on\n")

    def test_output_of_both_streams(self) -> None:
        ending = python("import sys; print('a', flush=True); print('b' * 200_000, file=sys.stderr)")
        assert ending.output == "a\n" + "b" * 200_000 + "\n"

    def test_without_ptrace(self, monkeypatch) -> None:
        def refuse(*_: int) -> None:
            raise PermissionError

        monkeypatch.setattr(tracer, "_ptrace", refuse)
        ending = python("import os, signal; os.kill(os.getpid(), signal.SIGBUS)")
        assert (ending.signal, ending.siginfo, ending.traced) == (signal.SIGBUS, None, False)

    def test_not_found(self) -> None:
        ending = tracer.run(["/nonexistent/program"])
        assert ending.exit_code == 127
        assert "/nonexistent/program" in ending.output


class TestNothingLeft:
    """The program is gone when run returns or raises, or when the tracer is killed."""

    def test_deadline(self) -> None:
        begun = time.monotonic()
        ending = python("import time; time.sleep(60)", timeout=0.5)
        assert ending.signal == signal.SIGKILL
        assert time.monotonic() - begun < 10

    def test_interrupt(self, tmp_path) -> None:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            python(SLEEPER, str(tmp_path / "pid"))
        assert not alive(int((tmp_path / "pid").read_text()))

    def test_tracer_killed(self, tmp_path) -> None:
        pid = tmp_path / "pid"
        command = [sys.executable, "-c", SLEEPER, str(pid)]
        program = f"from cram_emu.lab import tracer; tracer.run({command!r})"
        with subprocess.Popen([sys.executable, "-c", program]) as parent:
            assert eventually(lambda: pid.exists() and pid.read_text())
            child = int(pid.read_text())
            assert alive(child)
            parent.kill()
        assert eventually(lambda: not alive(child))

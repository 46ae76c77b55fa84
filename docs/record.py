"""Makes docs/demo.svg: what `cram-emu demo` leaves on a terminal. Run it with .venv/bin/python."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS = 100
HERE = Path(__file__).parent
COMMAND = [str(Path(sys.executable).with_name("cram-emu")), "demo"]

# Text, a line end, or a control sequence: all that rich sends.
TOKEN = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\r|\n|[^\x1b\r\n]+")


def record() -> str:
    """Runs the demo on a terminal and returns everything it sent there."""
    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
        os.environ.update(TERM="xterm-256color", COLORTERM="truecolor")
        os.execv(COMMAND[0], COMMAND)
    sent = b""
    while True:
        try:
            sent += os.read(terminal, 65536)
        except OSError:  # the demo has closed its end
            break
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        sys.exit(f"{COMMAND} ended with {status}:\n{sent.decode()}")
    return sent.decode()


def screen(sent: str) -> str:
    """The lines as they stand at the end, with their colours; what was redrawn counts once."""
    lines, row = [""], 0
    for token in TOKEN.findall(sent):
        if token == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif token == "\x1b[2K":
            lines[row] = ""
        elif token == "\x1b[1A":
            row -= 1
        elif token.endswith("m") or not token.startswith(("\x1b", "\r")):
            lines[row] += token
    return "\n".join(lines).strip("\n")


def main() -> None:
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"), force_terminal=True)
    console.print("[bold]$[/bold] cram-emu demo\n", highlight=False)
    console.print(Text.from_ansi(screen(record())))
    console.save_svg(str(HERE / "demo.svg"), title="cram-emu demo")


if __name__ == "__main__":
    main()

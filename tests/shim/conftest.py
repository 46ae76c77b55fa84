"""Programs compiled once."""

from collections.abc import Callable

import pytest
from placed import compiled

from cram_emu import uffd_info


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The path of a C program, by its name in programs/."""
    where = tmp_path_factory.mktemp("programs")
    known: dict[str, str] = {}

    def find(name: str) -> str:
        if name not in known:
            known[name] = compiled(name, where)
        return known[name]

    return find


@pytest.fixture(autouse=True)
def skip_without_userfaultfd(skip_unless_userfaultfd) -> None:
    """Nothing here can do without."""


@pytest.fixture(params=["inline", "monitor"])
def delivery(request) -> str:
    if request.param == "monitor" and not uffd_info().kernel_faults:
        pytest.skip("userfaultfd serves user-mode faults only here (vm.unprivileged_userfaultfd)")
    return request.param

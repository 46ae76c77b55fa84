"""Every test here maps memory that userfaultfd serves."""

import pytest


@pytest.fixture(autouse=True)
def _userfaultfd(skip_unless_userfaultfd) -> None:
    pass

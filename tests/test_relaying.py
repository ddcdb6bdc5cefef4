"The tests of alone_relaying.py, in a process that has computed nothing: what it forks could compute nothing else."
import sys
from pathlib import Path

import pytest
from conftest import Workspace, output_of

TESTS = Path(__file__).parent


@pytest.mark.timeout(400)
def test_relaying(workspace: Workspace) -> None:
    "All of them; what failed is in what they print."
    process = workspace.launch(sys.executable, "-m", "pytest", str(TESTS/"alone_relaying.py"), "-c",
                               str(TESTS.parent/"pyproject.toml"), "-p", "no:xdist", "-p", "no:cacheprovider",
                               "--durations", "5")
    printed, errors = output_of(process, 360)
    assert process.returncode == 0, printed + errors
    assert " passed" in printed and "skipped" not in printed and "failed" not in printed

from pathlib import Path

import pytest

HERE = Path(__file__).resolve()
SHARED = HERE.parents[3] / "shared" / "golden"
KEPT = HERE.parents[1] / "golden"


def pytest_addoption(parser):
    parser.addoption("--golden", type=Path, default=None, help="folder of golden vector files")


def golden_folder(config):
    return config.getoption("--golden") or (SHARED if SHARED.is_dir() else KEPT)


@pytest.fixture(scope="session")
def golden(request):
    return golden_folder(request.config)


def pytest_report_header(config):
    folder = golden_folder(config)
    files = sorted(path.name for path in folder.glob("*.npz"))
    return f"golden: {len(files)} files: {', '.join(files)}"

"""Golden files: numbers and texts that change only on purpose."""

import json
import pathlib

import numpy as np

FOLDER = pathlib.Path(__file__).parent / "testdata"
MEND = "if the change is meant, run `pytest --update-goldens` and commit the file with the reason"


def check_numbers(name: str, values: dict[str, float], update: bool, rtol: float = 2e-3) -> None:
    """Compares numbers with tests/testdata/<name>.json, within what versions of XLA differ by."""
    path = FOLDER / f"{name}.json"
    if update:
        path.write_text(json.dumps(values, indent=1) + "\n")
    golden = json.loads(path.read_text())
    assert set(golden) == set(values), MEND
    for key, value in golden.items():
        np.testing.assert_allclose(values[key], value, rtol=rtol, err_msg=f"{key} moved: {MEND}")


def check_text(name: str, text: str, update: bool) -> None:
    """Compares a text with tests/testdata/<name>."""
    path = FOLDER / name
    if update:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert path.exists(), f"{path} is missing: {MEND}"
    assert path.read_text() == text, f"{path} differs: {MEND}"

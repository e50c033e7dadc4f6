"""Small inputs that users met as faults, beside the repository: each script ends in PASS."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# The scripts use the names of the house before it was redrawn.
NAMES = {
    "from idol import rle\n": "from idol.masks import rle\n",
    "from pipelines import evaluate, experiment_log": (
        "from pipelines.report import experiment_log; from tests import flat_metrics as evaluate"
    ),
    "from pipelines import experiment_log": "from pipelines.report import experiment_log",
    "from pipelines import annotations, evaluate": "from pipelines.sources import annotations",
    "from pipelines import frames\n": "from pipelines.sources import image_file as frames\n",
    "from pipelines import annotations": "from pipelines.sources import annotations",
    "evaluate.read_truth(p, ds)": "ds.truth()",
    "from idol import checkpoint, presets\n": "from idol import presets\nfrom idol.weights "
    "import checkpoint\nfrom pipelines.training.initial_model import Start, initial_model\n",
    "from pipelines import train\n": "from pipelines.stages import train\n",
    'train._initial_model(config, "shipped", None, True)': "initial_model(config, Start("
    "weights='shipped', reset_classes=True))",
    'train._initial_model(config, "shipped", None, False)': "initial_model(config, Start("
    "weights='shipped'))",
    "from idol import checkpoint": "from idol.weights import checkpoint",
    'r["reason"]': "r.reason",
    'idol.load("tiny").state_dict()': 'idol.build("tiny").state_dict()',
}


@pytest.mark.parametrize(
    "case",
    [
        "01_cocovid",
        "02_coco_track_id",
        "03_evaluate_coco_crash",
        "05_mlflow_names",
        "06_mlflow_deleted",
        "07_id_from_zero",
        "09_degenerate_polygons",
        "10_reset_classes_same_number",
        "12_compiled_prefix",
        "16_thermal_16bit",
    ],
)
def test_a_stored_case_passes(shared: Path, tmp_path: Path, case: str) -> None:
    text = (shared / "cases" / f"{case}.py").read_text()
    for old, new in NAMES.items():
        text = text.replace(old, new)
    script = tmp_path / f"{case}.py"
    script.write_text(text)
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "PASS" in done.stdout.splitlines()[-1], done.stdout
    assert "FAIL" not in done.stdout, done.stdout

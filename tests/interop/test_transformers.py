"""Our exports opened by transformers, in the interpreters that OURO_TRANSFORMERS names (separated as PATH is)."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from released_twin import build, weights

from ouro_lab.data.tokenizer import ByteTokenizer
from ouro_lab.interop import Trunk, export_trunk, read_ouro, write_ouro
from ouro_lab.model import LoopedTransformer, ModelConfig

ROOT = Path(__file__).resolve().parents[2]
TWINS = [(4, False, 1), (2, True, 2), (2, False, 3), (4, True, 4)]  # kv heads, tied, loops


def interpreters() -> list[str]:
    named = os.environ.get("OURO_TRANSFORMERS")
    if named:
        return named.split(os.pathsep)
    return [sys.executable] if importlib.util.find_spec("transformers") else []


def run(python: str, script: str, *arguments: str, home: Path) -> dict:
    environment = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [python, str(ROOT / "tests" / "interop" / script), *arguments]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(params=interpreters() or [""])
def python(request: pytest.FixtureRequest) -> str:
    if not request.param:
        pytest.skip("no transformers: pip install -e '.[eval]', or name interpreters in OURO_TRANSFORMERS")
    return request.param


@pytest.mark.slow
@pytest.mark.timeout(1800)  # two cold starts of transformers, on a machine that may be busy
def test_numbers_gradients_caches_generation_and_losses_are_the_equations(python: str, tmp_path: Path) -> None:
    folders = []
    for twin in TWINS:
        kv_heads, tied, loops = twin
        model = build(kv_heads, tied, loops).double()
        model.load_state_dict(weights(kv_heads, tied))
        folders.append(tmp_path / f"{kv_heads}-{tied}-{loops}")
        shards = 4000 if tied else None
        write_ouro(folders[-1], model, max_shard_bytes=shards, files={"twin.json": json.dumps(twin)})
    found = run(python, "hf_probe.py", *map(str, folders), home=tmp_path / "home")
    for folder in folders:
        # Our objectives' weights of loops are float32.
        limits = {name: 1e-6 if name.startswith("loss") else 1e-9 for name in found["errors"][str(folder)]}
        wrong = {name: error for name, error in found["errors"][str(folder)].items() if not error < limits[name]}
        assert not wrong, (found["transformers"], folder.name, wrong)
        own, _ = read_ouro(folder)
        again, _ = read_ouro(folder / "saved")  # what transformers saved is an Ouro for our strict reader too
        assert own.config == again.config
        assert all(torch.equal(again.state_dict()[name], value) for name, value in own.state_dict().items())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_trunk_without_a_gate_and_its_tokenizer_open_in_transformers(python: str, tmp_path: Path) -> None:
    text = "naïve loops, twice"
    model = LoopedTransformer(ModelConfig(257, 2, loops=2, width=16, heads=2, kv_heads=1, init_std=0.3))
    model.initialise(0)
    trunk = export_trunk(Trunk(model, ByteTokenizer(), {"length": 32}, ""), tmp_path / "trunk", dtype="bfloat16")
    found = run(python, "trunk_probe.py", str(tmp_path / "trunk"), text, home=tmp_path / "home")
    assert found["ids"] == list(text.encode()) and found["back"] == text
    assert found["no gate"] and found["eos"] == [256, 256] and found["dtype"] == "torch.bfloat16"
    assert found["refused"] == ["sliding_window", "early_exit_threshold", "rope_scaling"]
    with torch.no_grad():
        want = trunk.model(torch.tensor([found["ids"]]))[0, -1].double()
    torch.testing.assert_close(torch.tensor(found["logits"], dtype=torch.float64), want, rtol=0, atol=0.05)

"""How a run is executed: settled by measurement, kept for its later attempts; compiled blocks equal plain ones."""

import copy
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir

from ouro_lab import records
from ouro_lab.model import looped
from ouro_lab.objectives import StageOne
from ouro_lab.training import execution
from ouro_lab.training.execution import CompileStep, Execution, compile_blocks, graphs, settle, share_compiled_code

LONG = 1e18  # FLOPs
needs_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """A CPU with the given bf16 speed (float32: 1e11) and compiler."""

    def make(bf16: float, compiler: bool) -> None:
        rates = {"float32": 1e11, "bfloat16": bf16}
        for module in ("ouro_lab.compute.hardware", "ouro_lab.training.execution"):
            monkeypatch.setattr(f"{module}.cpu_rates", lambda: rates)
        monkeypatch.setattr(execution, "compiler_works", lambda: compiler)

    return make


AUTO = {"accelerator": "cpu", "precision": "auto", "compile": "auto"}


@pytest.mark.parametrize(
    ("bf16", "compiler", "flops", "expected"),
    [
        (2e11, True, LONG, Execution("bf16-mixed", True)),
        (2e11, False, LONG, Execution("bf16-mixed", False)),
        (5e10, True, LONG, Execution("32-true", True)),
        (2e11, True, 1e9, Execution("bf16-mixed", False)),  # too short to pay for a compilation
    ],
)
def test_auto_follows_the_machine_and_the_run_s_length(machine, bf16, compiler, flops, expected) -> None:
    machine(bf16, compiler)
    assert settle(AUTO, flops, {}) == expected


def test_what_was_settled_is_kept_whatever_is_measured_later(machine) -> None:
    machine(2e11, True)
    first = settle(AUTO, LONG, {})
    machine(1e10, False)
    assert settle(AUTO, LONG, execution.note(first)) == first


def test_auto_keeps_the_precision_of_the_study_s_other_runs(machine, tmp_path) -> None:
    def kept(*names: str, trainer: dict = AUTO) -> str | None:
        return execution.kept_precision(trainer, [tmp_path / name for name in names])

    machine(5e10, True)
    settled_run(tmp_path / "middle", "16-mixed", state="running")
    settled_run(tmp_path / "named", "64-true", asked="64-true")
    settled_run(tmp_path / "on_gpu", "bf16-true", accelerator="gpu")
    settled_run(tmp_path / "ended", "bf16-mixed", state="diverged")
    assert kept("not_begun", "named", "on_gpu") is None
    assert kept("middle", "named") == "16-mixed"
    assert kept("middle", "ended") == "bf16-mixed"
    assert kept("ended", "on_gpu", trainer=AUTO | {"accelerator": "gpu"}) == "bf16-true"
    assert kept("ended", trainer=AUTO | {"precision": "32-true"}) is None
    assert settle(AUTO, LONG, {}, "bf16-mixed") == Execution("bf16-mixed", True)
    assert settle(AUTO, LONG, {"precision": "16-mixed", "compiled": False}, "bf16-mixed").precision == "16-mixed"
    assert settle(AUTO | {"precision": "32-true"}, LONG, {}, "bf16-mixed").precision == "32-true"
    (said,) = execution.lines(AUTO, [tmp_path / "ended"])
    assert said.startswith("precision bf16-mixed, as in the study's runs so far; this machine would take 32-true")
    assert execution.lines(AUTO, []) == execution.lines(AUTO | {"precision": "32-true"}, [tmp_path / "ended"]) == []
    machine(2e11, True)
    assert execution.lines(AUTO, [tmp_path / "ended"]) == []


def test_stale_runs_are_not_listed(tmp_path) -> None:
    assert list(execution.listed(tmp_path)) == []
    records.write_json(tmp_path / "study.json", {"runs": [{"id": "today"}]})
    (tmp_path / "stale").mkdir()
    assert list(execution.listed(tmp_path)) == [tmp_path / "today"]


def settled_run(folder: Path, precision: str, state: str = "done", asked: str = "auto", accelerator: str = "cpu"):
    folder.mkdir()
    records.note(folder, {"execution": execution.note(Execution(precision, True))})
    records.write_json(folder / "state.json", {"state": state})
    (folder / "config.yaml").write_text(f"trainer: {{precision: {asked}, accelerator: {accelerator}}}\n")


def test_what_is_named_is_taken(machine) -> None:
    machine(2e11, True)
    assert settle({"precision": "32-true", "compile": True}, 1.0, {}) == Execution("32-true", True)
    assert settle({}, LONG, {}) == Execution("32-true", False)  # the constructor's own defaults
    assert settle(AUTO | {"accelerator": "gpu"}, LONG, {}) == Execution("bf16-mixed", False)


def test_bad_compile_is_one_clear_line(machine) -> None:
    machine(2e11, False)
    with pytest.raises(ValueError, match=r"trainer.compile = 'yes': must be true, false or auto"):
        settle(AUTO | {"compile": "yes"}, LONG, {})
    with pytest.raises(ValueError, match=r"trainer.compile = True: no C\+\+ compiler works here"):
        settle(AUTO | {"compile": True}, LONG, {})


def test_the_line_says_what_was_measured(machine) -> None:
    machine(2e11, True)
    assert Execution("bf16-mixed", True).line == (
        "precision bf16-mixed (bf16 products 2.0 × float32's speed here), blocks compiled"
    )


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "made", "mixed", "tolerance", "block"),
    [(3, 2, True, 2e-2, {}), (2, 1, False, 1e-5, {}), (1, 1, True, 2e-2, {"attention_float32": True})],
)
def test_compiled_blocks_train_as_plain_ones(
    layers: int, made: int, mixed: bool, tolerance: float, block: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Loss and gradients within rounding; a graph for all layers and loops and one for the norm, or one for both.

    As many again to evaluate; other batches stay plain.
    """
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    torch.manual_seed(0)
    tokens = torch.randint(11, (4, 12))
    plain = looped(layers, 2, vocab_size=11, width=32, heads=2, gate=True, init_std=0.3, attention="plain", **block)
    compiled = copy.deepcopy(plain)
    execution._compiled.cache_clear()
    torch._dynamo.reset()  # the graphs that other tests of this process made count towards its limit
    compile_blocks(compiled, 4)
    before = graphs()
    found = []
    for model in (plain, compiled):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss, _ = StageOne()(model.loop_states(tokens), model.head_weight, tokens)
        loss.backward()
        found.append((loss.detach(), {name: p.grad for name, p in model.named_parameters()}))
    (loss, grads), (loss_compiled, grads_compiled) = found
    assert graphs() - before == made
    torch.testing.assert_close(loss_compiled, loss, rtol=tolerance, atol=0)
    for name, grad in grads.items():
        assert (grads_compiled[name] - grad).norm() <= 2 * tolerance * grad.norm(), name
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        assert (compiled(tokens) - plain(tokens)).norm() <= tolerance * plain(tokens).norm()
        assert graphs() - before == 2 * made
        assert torch.equal(plain(tokens[:1]), compiled(tokens[:1]))
    assert graphs() - before == 2 * made
    assert compiled.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize(("sharded", "loops_whole"), [(True, False), (False, True)])
def test_sharded_blocks_are_compiled_one_by_one(sharded: bool, loops_whole: bool, monkeypatch) -> None:
    """They gather their weights around their own forward, which a graph of the whole loop would call no more."""
    monkeypatch.setattr(execution, "compile_losses", lambda: None)  # a setting of the process
    model = looped(2, 2, vocab_size=11, width=32, heads=2)
    strategy = SimpleNamespace(shard=None) if sharded else SimpleNamespace()
    trainer = SimpleNamespace(strategy=strategy, datamodule=SimpleNamespace(micro_batch_size=4))
    CompileStep().setup(trainer, SimpleNamespace(backbone=model), "fit")
    assert ("loop" in vars(model)) is loops_whole
    assert all(("forward" in vars(block)) is not loops_whole for block in model.layers)


def test_every_rank_compiles_into_its_own_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("OURO_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that it is restored
    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS", raising=False)
    monkeypatch.setattr(torch._inductor.config, "compile_threads", 2)
    for given, folder in ((default_cache_dir(), tmp_path / "compiled"), (str(tmp_path / "own"), tmp_path / "own")):
        for rank in (None, 0, 3):
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = given
            monkeypatch.delenv("RANK", raising=False)
            if rank is not None:
                monkeypatch.setenv("RANK", str(rank))
            for _ in range(2):  # a run's second attempt
                share_compiled_code()
                assert cache_dir() == str(folder / "rank_3" if rank else folder)  # as torch finds it
    assert torch._inductor.config.compile_threads == 1

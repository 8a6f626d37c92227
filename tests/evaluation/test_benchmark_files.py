"""Benchmarks of lm-eval as questions: what lm-eval says is right, and the scores that it gives. Needs lm-eval."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("lm_eval", reason="no lm-eval: pip install -e '.[eval]'")

from ouro_lab.data import ByteTokenizer, Questions  # noqa: E402
from ouro_lab.evaluation.benchmark_files import write_questions  # noqa: E402
from ouro_lab.evaluation.benchmarks import BenchmarkScores, score  # noqa: E402
from ouro_lab.evaluation.harness import Benchmark, network  # noqa: E402
from ouro_lab.interop import Trunk  # noqa: E402
from ouro_lab.model import LoopedTransformer, ModelConfig  # noqa: E402
from ouro_lab.objectives import token_cross_entropy  # noqa: E402

BYTES = ByteTokenizer()
OPTIONS = [["red", "blue, as ever"], ["four", "5", "six hundred"], ["a", "b", "c", "d"]]
TOY = Benchmark("toy", "toy", 1, "acc_norm,none")


@pytest.fixture
def tasks(tmp_path: Path) -> str:
    rows = [{"q": f"Question {i}:", "options": OPTIONS[i % 3], "gold": i % len(OPTIONS[i % 3])} for i in range(12)]
    (tmp_path / "toy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"task": "toy", "dataset_path": "json", "output_type": "multiple_choice", "test_split": "test"}
    task |= {"dataset_kwargs": {"data_files": {"test": str(tmp_path / "toy.jsonl")}}, "doc_to_text": "{{q}}"}
    task |= {"doc_to_target": "{{gold}}", "doc_to_choice": "{{options}}"}
    task["metric_list"] = [{"metric": "acc"}, {"metric": "acc_norm"}]
    (tmp_path / "toy.yaml").write_text(json.dumps(task))  # JSON is YAML
    open_task = {key: task[key] for key in ("dataset_path", "dataset_kwargs", "test_split", "doc_to_text")}
    open_task |= {"task": "open", "output_type": "generate_until", "doc_to_target": "{{gold}}"}
    (tmp_path / "open.yaml").write_text(json.dumps(open_task | {"metric_list": [{"metric": "exact_match"}]}))
    choice = {"benchmarks": {"toy": {"task": "toy", "shots": 1, "metric": "acc_norm,none", "positions": 5}}}
    (tmp_path / "choice.yml").write_text(json.dumps(choice))
    return str(tmp_path)


@pytest.fixture(scope="module")
def model() -> LoopedTransformer:
    model = LoopedTransformer(ModelConfig(257, 2, 2, 16, 2, init_std=0.4, attention="plain"))
    model.initialise(1)
    return model.eval()


def test_the_file_gives_lm_evals_own_score(tasks: str, model: LoopedTransformer, tmp_path: Path) -> None:
    for metric in ("acc_norm,none", "acc,none"):
        benchmark = Benchmark("toy", "toy", 1, metric)
        write_questions([benchmark], tmp_path / "out.jsonl", tasks)
        rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert [row["answer"] for row in rows] == [i % len(OPTIONS[i % 3]) for i in range(12)]
        assert all(row["group"] == "toy" and "Question" in row["options"][0][0] for row in rows)
        assert all(("lengths" in row) == (metric == "acc_norm,none") for row in rows)
        data = Questions(str(tmp_path / "out.jsonl"), BYTES, ("toy",), batch_size=4)
        found = data.metrics(2)
        for batch in data.test_dataloader():
            with torch.no_grad():
                states = model.loop_states(batch["tokens"])
                losses = [token_cross_entropy(state.hidden, model.head_weight, batch["targets"]) for state in states]
            found.update(batch, torch.stack(losses), torch.zeros(0))
        for loops in (1, 2):
            theirs = score(benchmark, Trunk(model, BYTES, None, ""), loops, tasks)
            assert float(found.compute()[f"accuracy_loop{loops}/toy"]) == pytest.approx(theirs)


def test_what_is_answered_by_writing_has_no_options(tasks: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^benchmark open: is answered by writing; must have options, or use --run$"):
        write_questions([Benchmark("open", "open", 0, "exact_match,none")], tmp_path / "out.jsonl", tasks)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_study_asks_for_scores_at_its_loops(tasks: str, model: LoopedTransformer) -> None:
    ask = BenchmarkScores(("toy",), choice=f"{tasks}/choice.yml", tasks=tasks)
    data = type("Data", (), {"tokenizer": BYTES})()
    assert ask.metric_names(data, 2) == ("benchmark/toy",)
    assert ask.positions(data, 2) == 5
    assert ask(model, data, "test") == {"benchmark/toy": score(TOY, Trunk(model, BYTES, None, ""), 2, tasks)}
    with pytest.raises(ValueError, match="only = glue: must be one of toy"):
        BenchmarkScores(("glue",), choice=f"{tasks}/choice.yml")


def test_nothing_is_fetched_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import config
    from huggingface_hub import constants

    for module in (config, constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    for allowed in (False, True):
        with network(allowed):
            assert (not allowed, not allowed) == (config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE)
        assert (config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE) == (False, False)

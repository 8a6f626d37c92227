"""lm-eval's requests against log-probabilities and a greedy search computed one token at a time; needs lm-eval."""

import json
from pathlib import Path

import pytest
import torch

lm_eval = pytest.importorskip("lm_eval", reason="no lm-eval: pip install -e '.[eval]'")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from ouro_lab.data.tokenizer import ByteTokenizer  # noqa: E402
from ouro_lab.evaluation.lm_eval import LoopedLM  # noqa: E402
from ouro_lab.inference.exits import Entropy, QExit, RandomExit, StaticDepth  # noqa: E402
from ouro_lab.model import LoopedTransformer, ModelConfig  # noqa: E402

BYTES = ByteTokenizer()
PAIRS = [("ab", "cd"), ("", "xyz"), ("a longer context than the others,", " q"), ("b", "éa")]


@pytest.fixture(scope="module")
def model() -> LoopedTransformer:
    model = LoopedTransformer(ModelConfig(257, 2, 3, 16, 2, gate=True, init_std=0.4, attention="plain"))
    model.initialise(1)
    return model


def instances(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, pair, index) for index, pair in enumerate(arguments)]


def slow(model: LoopedTransformer, context: list[int], continuation: list[int], loops: int) -> tuple[float, bool]:
    """One forward pass per token, no padding."""
    nats, greedy = 0.0, True
    for index, target in enumerate(continuation):
        with torch.no_grad():
            logits = model(torch.tensor([context + continuation[:index]]), loops=loops)[0, -1].double()
        nats += float(logits.log_softmax(-1)[target])
        greedy = greedy and int(logits.argmax()) == target
    return nats, greedy


def ids(text: str) -> list[int]:
    return BYTES.encode([text])[0].tolist()


@pytest.mark.parametrize("loops", [1, 2, 3, 4])
def test_loglikelihood_at_any_depth(model: LoopedTransformer, loops: int) -> None:
    found = LoopedLM(model, BYTES, loops, batch_size=3).loglikelihood(instances("loglikelihood", PAIRS))
    for (context, continuation), (nats, greedy) in zip(PAIRS, found, strict=True):
        want, right = slow(model, ids(context) or [BYTES.eos], ids(continuation), loops)
        assert nats == pytest.approx(want, abs=1e-3) and greedy == right
    if loops < 3:  # the same by a rule, which reads the loops of one pass
        by_rule = LoopedLM(model, BYTES, rule=StaticDepth(loops)).loglikelihood(instances("loglikelihood", PAIRS))
        assert [n for n, _ in by_rule] == pytest.approx([n for n, _ in found], abs=1e-4)


@pytest.mark.parametrize("rule", [QExit(0.6), Entropy(4.0), RandomExit(1.5)])
def test_each_token_is_read_where_its_rule_lets_it_go(model: LoopedTransformer, rule) -> None:
    text = ids("some text of one row")
    hidden = LoopedLM(model, BYTES, rule=rule).read_out([text])[0]
    with torch.no_grad():
        states = list(model.loop_states(torch.tensor([text])))
    loops = [
        next(t for t, state in enumerate(states) if torch.equal(state.hidden[0, i], row))
        for i, row in enumerate(hidden)
    ]
    if isinstance(rule, QExit):
        hazard = torch.stack([state.gate_logit[0] for state in states]).sigmoid()
        cdf = 1 - (1 - hazard).cumprod(0)
        assert loops == [
            int((cdf[:2, i] >= 0.6).int().argmax()) if (cdf[:2, i] >= 0.6).any() else 2 for i in range(len(text))
        ]
    assert len(set(loops)) > 1


def test_rolling_counts_every_token_once(model: LoopedTransformer) -> None:
    text = "a text of more tokens than are read at once"
    whole = LoopedLM(model, BYTES).loglikelihood_rolling(instances("loglikelihood_rolling", [(text,)]))
    assert whole == [pytest.approx(slow(model, [BYTES.eos], ids(text), 3)[0], rel=1e-5)]
    short = LoopedLM(model, BYTES, max_length=16).loglikelihood_rolling(instances("loglikelihood_rolling", [(text,)]))
    tokens, want = [BYTES.eos, *ids(text)], 0.0
    for start in range(0, len(ids(text)), 16):
        end = min(start + 16, len(ids(text)))
        first = max(0, end - 16)  # the last window reaches back, and what it has counted before is only context
        want += slow(model, tokens[first : start + 1], tokens[start + 1 : end + 1], 3)[0]
    assert short == [pytest.approx(want, rel=1e-5)]


def test_generation_is_greedy_and_stops(model: LoopedTransformer) -> None:
    lm = LoopedLM(model, BYTES, loops=2)
    text = ids("abc")
    for _ in range(12):
        with torch.no_grad():
            text.append(int(model(torch.tensor([text]), loops=2)[0, -1].argmax()))
    whole = BYTES.decode(text[3:])
    got = lm.generate_until(instances("generate_until", [("abc", {"until": [], "max_gen_toks": 12})]))
    assert got == [whole]
    stop = whole[4]
    cut = lm.generate_until(instances("generate_until", [("abc", {"until": [stop], "max_gen_toks": 12})]))
    assert cut == [whole[: whole.find(stop)]]
    with pytest.raises(ValueError, match="decoding is greedy"):
        lm.generate_until(instances("generate_until", [("abc", {"do_sample": True})]))


@pytest.mark.parametrize("rule", [None, QExit(0.6), Entropy(4.0), RandomExit(1.5)], ids=str)
@pytest.mark.parametrize("max_length", [64, 12])
def test_the_cache_changes_no_text(model: LoopedTransformer, rule, max_length: int) -> None:
    """Also where the text grows beyond what is read at once, and where a string stops it half-way."""
    asked = [("abc", {"until": [], "max_gen_toks": 16}), ("", {"until": "z", "max_gen_toks": 9})]
    asked += [("a text that is longer than twelve", {"until": ["b", "\n"], "max_gen_toks": 6})]
    cached, plain = (LoopedLM(model, BYTES, rule=rule, max_length=max_length) for _ in range(2))
    plain.__dict__["_engine"] = None
    assert cached._engine is not None
    got, want = (lm.generate_until(instances("generate_until", asked)) for lm in (cached, plain))
    assert got == want


def test_a_shape_that_no_cache_takes_generates_all_the_same() -> None:
    parted = LoopedTransformer(ModelConfig(257, 3, 2, 16, 2, prelude=1, init_std=0.4, attention="plain"))
    parted.initialise(1)
    text = ids("abc")
    for _ in range(3):
        with torch.no_grad():
            text.append(int(parted(torch.tensor([text]))[0, -1].argmax()))
    got = LoopedLM(parted, BYTES).generate_until(instances("generate_until", [("abc", {"max_gen_toks": 3})]))
    assert got == [BYTES.decode(text[3:])]


def test_what_cannot_be_is_refused(model: LoopedTransformer) -> None:
    plain = LoopedTransformer(ModelConfig(257, 1, width=8, heads=2))
    with pytest.raises(ValueError, match="rule = QExit: needs an exit gate"):
        LoopedLM(plain, BYTES, rule=QExit(0.5))
    for options, message in (({"loops": 0}, "loops = 0"), ({"max_length": 1}, "max_length = 1")):
        with pytest.raises(ValueError, match=message):
            LoopedLM(model, BYTES, **options)


@pytest.mark.slow
def test_a_local_task_runs_through_lm_eval(model: LoopedTransformer, tmp_path: Path) -> None:
    rows = [
        {"q": "2+2=", "options": ["4", "5"], "gold": 0},
        {"q": "the sky is:", "options": ["red", "blue"], "gold": 1},
    ]
    rows += [{"q": f"{n},", "options": [f"{n + 1}", f"{n - 1}"], "gold": n % 2} for n in range(3, 9)]
    (tmp_path / "toy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "toy",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "toy.jsonl")}},
    }
    task |= {
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{gold}}",
    }
    task |= {"doc_to_choice": "{{options}}", "target_delimiter": "", "metric_list": [{"metric": "acc"}]}
    (tmp_path / "toy.yaml").write_text(json.dumps(task))  # JSON is YAML
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    result = lm_eval.simple_evaluate(LoopedLM(model, BYTES), tasks=["toy"], task_manager=manager, bootstrap_iters=0)
    right = 0
    for row in rows:
        nats = [slow(model, ids(row["q"]), ids(option), 3)[0] for option in row["options"]]
        right += nats.index(max(nats)) == row["gold"]
    assert result["results"]["toy"]["acc,none"] == pytest.approx(right / len(rows))

"""Evaluation metrics against a slow count over tokens; sums add over batches and ranks."""

import math

import pytest
import torch

from ouro_lab.data import EvaluationMetrics

GROUPS = ("easy", "hard", "undefined")


def batches(count: int = 3, loops: int = 2) -> list[tuple[dict, torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for size in range(4, 4 + count):
        targets = torch.randint(-1, 5, (size, 6), generator=generator)
        targets[targets < 0] = -100
        batch = {
            "targets": targets,
            "scored": torch.rand(size, 6, generator=generator) < 0.5,
            "group": torch.randint(0, 3, (size,), generator=generator),
            "bytes": torch.randint(1, 4, (size, 6), generator=generator),
        }
        loss = torch.rand(loops, size, 6, generator=generator)
        loss[:, targets == -100] = float("nan")  # what stands there must not matter
        made.append((batch, loss, torch.rand(loops, size, 6, generator=generator) < 0.5))
    return made


def slow(made: list, loop: int, group: str | None = None) -> dict[str, float]:
    nats, targets, size, hits, scored = 0.0, 0, 0, 0, 0
    for batch, loss, correct in made:
        for row in range(len(loss[0])):
            name = GROUPS[batch["group"][row]]
            for i in range(6):
                if batch["targets"][row, i] == -100:
                    continue
                if group in (None, name):
                    nats, targets = nats + float(loss[loop, row, i]), targets + 1
                    size += int(batch["bytes"][row, i])
                if batch["scored"][row, i] and (name == group or (group is None and name != "undefined")):
                    hits, scored = hits + int(correct[loop, row, i]), scored + 1
    return {"loss": nats / targets, "bits": nats / math.log(2) / size, "accuracy": hits / scored}


def evaluated(made: list, metrics: EvaluationMetrics) -> dict[str, float]:
    for batch in made:
        metrics.update(*batch)
    return {name: float(value) for name, value in metrics.compute().items()}


def test_values_are_the_slow_count() -> None:
    made = batches()
    values = evaluated(made, EvaluationMetrics(2, GROUPS, count_bytes=True))
    expected = {"loss": slow(made, 1)["loss"], "accuracy": slow(made, 1)["accuracy"]}
    expected["bits_per_byte"] = slow(made, 1)["bits"]
    for loop in (0, 1):
        expected[f"loss_loop{loop + 1}"] = slow(made, loop)["loss"]
        expected[f"bits_per_byte_loop{loop + 1}"] = slow(made, loop)["bits"]
        for group in GROUPS:
            expected[f"accuracy_loop{loop + 1}/{group}"] = slow(made, loop, group)["accuracy"]
            expected[f"bits_per_byte_loop{loop + 1}/{group}"] = slow(made, loop, group)["bits"]
    expected |= {f"accuracy/{group}": slow(made, 1, group)["accuracy"] for group in GROUPS}
    expected |= {f"bits_per_byte/{group}": slow(made, 1, group)["bits"] for group in GROUPS}
    assert values == pytest.approx(expected, rel=1e-6)


def test_one_loop_without_groups_has_the_short_names() -> None:
    made = [({"targets": batch["targets"]}, loss[:1], correct[:1]) for batch, loss, correct in batches()]
    values = evaluated(made, EvaluationMetrics(1))
    assert set(values) == {"loss", "loss_loop1", "accuracy"}
    hits = sum(int((correct[0] & (batch["targets"] != -100)).sum()) for batch, _, correct in made)
    assert values["accuracy"] == pytest.approx(hits / sum(int((b["targets"] != -100).sum()) for b, _, _ in made))


def test_a_group_without_sequences_is_not_named() -> None:
    made = batches(1)
    made[0][0]["group"][:] = 1
    values = evaluated(made, EvaluationMetrics(2, GROUPS))
    assert "accuracy/hard" in values
    assert not any(name.endswith(("easy", "undefined")) for name in values)


def test_a_sequence_counts_on_every_axis_of_groups_and_once_in_accuracy() -> None:
    made = batches()
    for batch, _, _ in made:
        batch["group"].clamp_(max=1)
    one = evaluated(made, EvaluationMetrics(2, GROUPS))
    for batch, _, _ in made:
        other = 2 + (torch.arange(len(batch["group"])) % 2)
        batch["group"] = torch.stack([batch["group"], other], dim=1)
    values = evaluated(made, EvaluationMetrics(2, ("easy", "hard", "left", "right")))
    assert {name: values[name] for name in one} == pytest.approx(one)
    for batch, _, _ in made:
        batch["group"] = batch["group"][:, 1] - 2
    second = evaluated(made, EvaluationMetrics(2, ("left", "right")))
    assert {name: values[name] for name in second} == pytest.approx(second)


def test_states_add_over_ranks() -> None:
    made = batches()
    whole, one, other = (EvaluationMetrics(2, GROUPS) for _ in range(3))
    expected = evaluated(made, whole)
    evaluated(made[:1], one)
    evaluated(made[1:], other)
    for name in one._defaults:
        assert one._reductions[name] is not None
        setattr(one, name, getattr(one, name) + getattr(other, name))
    one._computed = None
    assert {name: float(value) for name, value in one.compute().items()} == pytest.approx(expected)


def test_reset_forgets() -> None:
    metrics = EvaluationMetrics(2, GROUPS)
    evaluated(batches(), metrics)
    metrics.reset()
    assert evaluated(batches(1), metrics) == pytest.approx(evaluated(batches(1), EvaluationMetrics(2, GROUPS)))


def test_an_answer_of_several_positions_counts_once_and_only_as_a_whole() -> None:
    """Row 0: answers of two, one and no scored position; row 1: one of three, with a wrong position that is not."""
    batch = {
        "targets": torch.ones(2, 5, dtype=torch.long),
        "scored": torch.tensor([[1, 1, 0, 1, 0], [0, 1, 1, 1, 0]]).bool(),
        "answer": torch.tensor([[0, 0, 0, 1, 2], [0, 0, 0, 0, 0]]),
        "group": torch.tensor([0, 1]),
    }
    correct = torch.tensor([[[1, 0, 1, 1, 1], [0, 1, 1, 1, 0]], [[1, 1, 0, 0, 0], [1, 1, 0, 1, 1]]]).bool()
    values = evaluated([(batch, torch.ones(2, 2, 5), correct)], EvaluationMetrics(2, GROUPS))
    assert values["accuracy_loop1/easy"] == 0.5  # the second answer alone
    assert values["accuracy_loop1/hard"] == 1
    assert values["accuracy_loop2/easy"] == 0.5  # the first alone
    assert values["accuracy_loop2/hard"] == 0
    assert values["accuracy"] == pytest.approx(1 / 3)
    assert values["loss"] == 1  # of every target, whatever is scored

"""Memory, traffic and checkpoint intervals of a planned run, against closed forms, autograd and a minimum searched."""

import math
from dataclasses import replace

import pytest
import torch
from scipy.optimize import minimize_scalar

from ouro_lab.compute.communication import Volume, replicated, sharded
from ouro_lab.compute.cost import stored_parameters
from ouro_lab.compute.failures import daly, lost_share, young
from ouro_lab.compute.footprint import Spread, checkpoint_bytes, footprint
from ouro_lab.compute.machines import DEVICE_MTBF, parse
from ouro_lab.compute.measure import kept_bytes, kept_for_backward
from ouro_lab.compute.memory import activation_bytes, cast_bytes
from ouro_lab.model import LoopedTransformer, ModelConfig
from ouro_lab.objectives import LastLoop, StageOne

SHAPE = {"vocab_size": 96, "layers": 2, "loops": 3, "width": 64, "heads": 4, "attention": "plain"}
SMALL = ModelConfig(**SHAPE)
OURO = ModelConfig(
    vocab_size=49_152, layers=48, loops=4, width=2048, heads=16, ffn_width=5632, gate=True, attention="sdpa"
)
GIB = 2**30


@pytest.mark.parametrize(
    "change",
    [
        {}, {"attention": "sdpa"}, {"loops": 1}, {"gate": True}, {"kv_heads": 2, "attention": "sdpa"},
        {"recompute": True},
        {"norms": 2, "norm": "layer", "mlp": "gelu", "bias": True}, {"norm_between_loops": False},
        {"attention_float32": True}, {"attention_float32": True, "attention": "sdpa"},
    ],
    ids=str,
)  # fmt: skip
def test_under_autocast_activations_and_casts_are_what_autograd_keeps(change):
    config = ModelConfig(**SHAPE | change)
    objective = StageOne() if config.gate else LastLoop()
    model, tokens = LoopedTransformer(config), torch.randint(config.vocab_size, (8, 48))
    with kept_for_backward() as kept, torch.autocast("cpu", torch.bfloat16):
        objective(model.loop_states(tokens), model.head_weight, tokens)
    found = kept_bytes(kept, model) - 4 * model.head_weight.numel()
    supervised = objective.supervised_loops(config.loops)
    formula = activation_bytes(config, 48, 8, supervised_loops=supervised, mixed=True)
    casts = cast_bytes(config) * (1 if config.recompute else config.loops)
    assert formula + casts == pytest.approx(found, rel=0.01)


def test_components_of_one_device():
    stored = stored_parameters(OURO).total
    found = footprint(OURO, 4096, 1, 4, Spread())
    assert (found.weights, found.gradients, found.moments) == (4 * stored, 4 * stored, 8 * stored)
    assert found.gathered == found.casts == 0
    assert checkpoint_bytes(OURO) == 12 * stored
    assert found.activations == activation_bytes(OURO, 4096, 1, supervised_loops=4)
    # Before the backward pass: everything kept, the head's gradient and a chunk of logits; no other gradient yet.
    at_loss = found.activations + 4 * 49_152 * 2048 + 512 * 49_152 * 8
    assert found.peak == found.weights + found.moments + at_loss


def test_small_batches_peak_in_the_gradients():
    found = footprint(OURO, 64, 1, 4, Spread())
    assert found.peak == pytest.approx(found.weights + found.moments + found.gradients + 0.75 * found.activations)


def test_shards_divide_weights_and_moments_and_looped_gradients_stay_whole():
    stored = stored_parameters(OURO)
    blocks, rest = stored.body + stored.norms, stored.total - stored.body - stored.norms
    one, eight = (footprint(OURO, 4096, 1, 4, Spread("fsdp", world)) for world in (1, 8))
    assert (eight.weights, eight.moments) == (one.weights / 8, one.moments / 8)
    assert eight.gradients == 4 * (blocks + rest) + 4 * stored.total / 8
    assert eight.gathered == 4 * (2 / 48 * blocks + rest)
    kept = footprint(OURO, 4096, 1, 4, Spread("fsdp", 8, reshard=False))
    assert kept.gathered == 4 * stored.total
    plain = footprint(replace(OURO, loops=1), 4096, 1, 1, Spread("fsdp", 8))
    assert plain.gradients == 4 * (2 / 48 * blocks + rest) + 4 * stored.total / 8
    assert footprint(OURO, 4096, 1, 4, Spread("ddp", 8)).gradients == 8 * stored.total


def test_mixed_precision_keeps_a_cast_of_every_matrix_per_loop_unless_blocks_are_gathered_in_bf16():
    matrices = OURO.layers * OURO.width * (4 * OURO.width + 3 * 5632)
    assert footprint(OURO, 64, 1, 4, Spread("ddp", 8), mixed=True).casts == 2 * 4 * matrices
    assert footprint(replace(OURO, recompute=True), 64, 1, 4, Spread("ddp", 8), mixed=True).casts == 2 * matrices
    narrow = footprint(OURO, 64, 1, 4, Spread("fsdp", 8, narrow=True), mixed=True)
    assert narrow.casts == 0
    assert narrow.gathered < footprint(OURO, 64, 1, 4, Spread("fsdp", 8), mixed=True).gathered


def test_an_unknown_mode_is_one_line():
    with pytest.raises(ValueError, match="strategy = zero: must be one of single, ddp, fsdp"):
        Spread("zero", 2)


def test_volumes():
    assert replicated(1000, 1).total == 0
    assert replicated(1000, 4) == Volume(summed=2 * 0.75 * 4000)
    assert sharded(800, 200, 4, loops=3) == Volume(0.75 * (6 * 3200 + 800), 0.75 * 4000)
    assert sharded(800, 200, 4, loops=3, reshard=False) == Volume(0.75 * (3 * 3200 + 800), 0.75 * 4000)
    assert sharded(800, 200, 4, loops=3, gather_bytes=2, micro_batches=2) == Volume(1.5 * (6 * 1600 + 800), 1.5 * 4000)


@pytest.mark.parametrize(("write", "mtbf"), [(10.0, 3e5), (300.0, 2e4), (900.0, 1e4)])
def test_daly_minimises_the_expected_time(write, mtbf):
    def expected(interval: float) -> float:  # per second of work (Daly 2006, equation 13, without restarts)
        return mtbf / interval * math.expm1((interval + write) / mtbf)

    best = minimize_scalar(expected, bounds=(1.0, 10 * mtbf), method="bounded").x
    assert expected(daly(write, mtbf)) <= 1.0005 * expected(best)
    assert expected(daly(write, mtbf)) <= expected(young(write, mtbf))


def test_young_is_the_first_order_optimum_and_the_limit_of_daly():
    assert young(50, 10_000) == 1000
    least = lost_share(1000, 50, 10_000)
    assert least == 0.1
    assert all(lost_share(other, 50, 10_000) > least for other in (900, 1100))
    assert daly(1e-3, 1e6) == pytest.approx(young(1e-3, 1e6), rel=1e-3)
    assert daly(3e4, 1e4) == 1e4


def test_machines():
    node = parse("8xH100", 0)
    assert (str(node), node.nodes, node.device.memory, node.device.peak) == ("8×H100", 1, 80e9, 989.4e12)
    assert node.link == 0.8 * 450e9
    many = parse("64×h200", 0)
    assert (many.count, many.nodes, many.device.name, many.link) == (64, 8, "H200", 0.8 * 50e9)
    assert many.mtbf == DEVICE_MTBF / 64
    assert parse("B200", 0).count == 1
    assert parse("2 x cpu", 8 * GIB).device.memory == 4 * GIB


@pytest.mark.parametrize("text", ["8xH1000", "0xH100", "", "H100x8", "-1xcpu"])
def test_an_unknown_machine_is_one_line_with_the_known_ones(text):
    with pytest.raises(ValueError, match=rf"MACHINE = {text}: .*; devices: A100, H100, H200, B200, cpu"):
        parse(text, 0)

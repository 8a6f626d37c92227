"""The formulas against closed forms from the literature, and against PyTorch's counter and autograd (design rule 4)."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ouro_lab.compute.cost import TRAINING, decode_flops, forward_flops, frozen_cost, stored_parameters, training_cost
from ouro_lab.compute.measure import kept_bytes, kept_for_backward
from ouro_lab.compute.memory import activation_bytes, kv_bytes_per_token
from ouro_lab.model import LoopedTransformer, ModelConfig
from ouro_lab.objectives import LastLoop, StageOne, StageTwo

OURO = ModelConfig(vocab_size=49_152, layers=24, loops=4, width=2048, heads=16, ffn_width=5632, gate=True)
SHAPE = {"vocab_size": 96, "layers": 2, "loops": 3, "width": 64, "heads": 4, "attention": "plain"}
SMALL = ModelConfig(**SHAPE)
GPT2 = {"norms": 2, "norm": "layer", "mlp": "gelu", "bias": True}


def variant(**changes: Any) -> ModelConfig:
    """`replace` would keep the widths that SMALL's own width gave."""
    return ModelConfig(**SHAPE | changes)


def test_ouro_1_4b_is_counted_to_the_last_parameter():
    stored = stored_parameters(OURO)
    assert stored.total == 1_434_652_673
    assert stored_parameters(replace(OURO, layers=48)).total == 2_667_974_657
    assert stored_parameters(replace(OURO, layers=25)).total - stored.total == 51_388_416
    assert stored.non_embedding == stored.total - 2 * 49_152 * 2048


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("kv_heads", [4, 1])
@pytest.mark.parametrize("block", ["ouro", "gpt2", "biased"])
def test_parameters_are_those_of_the_module(tied, gate, kv_heads, block):
    blocks = {"ouro": {}, "gpt2": GPT2, "biased": {"bias": True, "norms": 2}}
    config = variant(tie_embeddings=tied, gate=gate, kv_heads=kv_heads, **blocks[block])
    with torch.device("meta"):
        model = LoopedTransformer(config)
    stored = stored_parameters(config)
    assert stored.total == sum(p.numel() for p in model.parameters())
    assert stored.recurring == sum(p.numel() for m in (model.layers, model.norm) for p in m.parameters())


# Width, layers, vocabulary, length, ffn → body MFLOP a token (training, causal, 4 loops), shares of 1 and 4 heads in %.
SHARES = [
    (256, 4, 256, 256, 704, 83, 0.5, 1.9),
    (256, 4, 2048, 256, 704, 83, 3.6, 13.1),
    (256, 4, 8192, 256, 704, 83, 13.1, 37.6),
    (256, 4, 49152, 256, 704, 83, 47.5, 78.4),
    (512, 8, 49152, 2048, 1344, 799, 15.9, 43.1),
    (1024, 12, 49152, 2048, 2752, 4247, 6.6, 22.1),
    (2048, 24, 49152, 4096, 5632, 34428, 1.7, 6.6),
]


@pytest.mark.parametrize(("width", "layers", "vocabulary", "length", "ffn", "body", "one", "four"), SHARES)
def test_share_of_the_heads(width, layers, vocabulary, length, ffn, body, one, four):
    config = ModelConfig(vocab_size=vocabulary, layers=layers, loops=4, width=width, ffn_width=ffn)
    for supervised, share in ((1, one), (4, four)):
        flops = training_cost(config, length, supervised).flops
        assert (flops.body + flops.attention) / 1e6 == pytest.approx(body, abs=0.51)
        assert 100 * flops.head / flops.total == pytest.approx(share, abs=0.06)  # its ffn widths are inferred


def counted_flops(config: ModelConfig, length: int, supervised: int) -> tuple[int, int]:
    """PyTorch's count per token: forward, and forward with backward."""
    model = LoopedTransformer(config)
    tokens = torch.zeros(2, length, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        states = list(model.loop_states(tokens))
        loss = sum((state.hidden @ model.head_weight.T).sum() for state in states[-supervised:])
        if config.gate:
            loss = loss + sum(state.gate_logit.sum() for state in states)
        forward = counter.get_total_flops()
        loss.backward()
    return forward // tokens.numel(), counter.get_total_flops() // tokens.numel()


VARIANTS = {
    "looped": {},
    "iso_parameter": {"loops": 1},
    "iso_flop": {"layers": 6, "loops": 1},
    "deep_loop": {"layers": 1, "loops": 8},
    "grouped_keys": {"kv_heads": 2},
    "wide_heads": {"head_dim": 32, "kv_heads": 1},
    "tied": {"tie_embeddings": True},
    "gate": {"gate": True},
    "gate_once": {"gate": True, "loops": 1},
    "ffn": {"ffn_width": 100},
    "read_outs": {"layers": 6, "loops": 1, "read_out_every": 2, "gate": True},
    "two_norms": {"norms": 2, "norm_between_loops": False},
    "gpt2": GPT2,
    "biased_swiglu": {"bias": True, "kv_heads": 2},
    "prelude_coda": {"layers": 5, "prelude": 1, "coda": 2},
    "prelude_coda_gate": {"layers": 5, "prelude": 1, "coda": 2, "gate": True, "norm_between_loops": False},
}


@pytest.mark.parametrize(("name", "length"), [(name, 16) for name in VARIANTS] + [("looped", 33)])
def test_formula_is_pytorchs_count(name, length):
    """Exactly: there is no known discrepancy. The embedding's output needs a gradient, so layer 1 is no exception."""
    config = variant(**VARIANTS[name])
    for supervised in {1, config.states}:
        forward, trained = counted_flops(config, length, supervised)
        formula = forward_flops(config, length, supervised, convention="full")
        assert forward == formula.total
        assert trained == formula.times(TRAINING).total == training_cost(config, length, supervised).flops_full.total


def test_what_is_computed_twice_is_charged_in_memory_alone():
    kept, again = (training_cost(variant(recompute=recompute), 48, 1) for recompute in (False, True))
    assert again.flops == kept.flops
    assert again.activation_bytes < 0.5 * kept.activation_bytes


def test_causal_attention_is_the_mean_over_positions():
    length, full = 10, forward_flops(SMALL, 1, convention="full").attention  # at one key a position
    by_position = [decode_flops(SMALL, context).attention for context in range(1, length + 1)]
    assert forward_flops(SMALL, length).attention == sum(by_position) / length
    assert by_position[0] == full


def test_documents_count_by_their_mean_square():
    documents = [3, 5, 8]
    seen = sum(sum(range(1, n + 1)) for n in documents)  # pairs (position, visible key)
    mean_square = sum(n * n for n in documents) / sum(documents)
    passes = SMALL.layers * SMALL.loops
    attention = forward_flops(SMALL, 16, document_length=mean_square).attention
    assert attention == pytest.approx(4 * SMALL.width * passes * seen / sum(documents))


def test_key_value_cache():
    assert kv_bytes_per_token(OURO) == 768 * 1024
    assert kv_bytes_per_token(replace(OURO, layers=48)) == 1536 * 1024
    assert kv_bytes_per_token(OURO, slots=1) == 192 * 1024
    assert kv_bytes_per_token(replace(OURO, kv_heads=4)) == 192 * 1024


CHANGES = [{}, {"loops": 1}, {"attention": "sdpa"}, {"width": 128}, {"kv_heads": 2}, {"gate": True}]
CHANGES += [{"recompute": True, "loops": 8}, {"recompute": True, "gate": True}]
CHANGES += [{"layers": 6, "loops": 1, "read_out_every": 2, "gate": True}]
CHANGES += [{"norms": 2}, GPT2, GPT2 | {"layers": 6, "loops": 1, "read_out_every": 2, "gate": True}]
CHANGES += [{"norm_between_loops": False} | more for more in ({}, {"gate": True}, {"gate": True, "recompute": True})]
CHANGES += [GPT2 | {"norm_between_loops": False, "recompute": True, "loops": 8}]
PARTED = {"layers": 5, "prelude": 1, "coda": 2}
CHANGES += [PARTED | more for more in ({}, {"gate": True}, {"gate": True, "norm_between_loops": False})]
CHANGES += [PARTED | {"recompute": True, "gate": gate, "norm_between_loops": gate} for gate in (False, True)]
CHANGES += [{"layers": 3, "prelude": 1, "gate": True}]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_activation_bytes_are_what_autograd_keeps(change):
    config = variant(**change)
    objective = StageOne() if config.gate else LastLoop()
    model = LoopedTransformer(config)
    tokens = torch.randint(config.vocab_size, (4, 48))
    with kept_for_backward() as kept:
        loss, _ = objective(model.loop_states(tokens), model.head_weight, tokens)
    assert loss.requires_grad
    head_gradient = 4 * model.head_weight.numel()  # kept from the loss on; counted with the gradients
    supervised = objective.supervised_loops(config.states)
    formula = activation_bytes(config, 48, batch=4, supervised_loops=supervised)
    assert formula == pytest.approx(kept_bytes(kept, model) - head_gradient, rel=0.01)


@pytest.mark.parametrize("objective", [StageTwo(), StageTwo(label="forward", first=1), StageTwo(first=3)], ids=str)
@pytest.mark.parametrize("change", [{}, {"norm_between_loops": False, "kv_heads": 2}], ids=str)
def test_a_frozen_trunk_is_charged_a_forward_pass_and_the_gates_slopes(objective, change):
    config = variant(gate=True, **change)
    model = LoopedTransformer(config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("early_exit_gate"))
    tokens = torch.randint(config.vocab_size, (4, 48))
    with FlopCounterMode(display=False) as counter, kept_for_backward() as kept:
        loss, _ = objective(model.loop_states(tokens), model.head_weight, tokens)
        loss.backward()
    cost = frozen_cost(config, 48, batch=4, gates=len(objective.terms(config.loops)))
    assert counter.get_total_flops() / tokens.numel() == cost.flops_full.total
    assert cost.activation_bytes == pytest.approx(kept_bytes(kept, model), rel=0.01)
    assert cost.optimiser_bytes == 8 * (config.width + 1)
    assert cost.flops_per_token < 0.34 * training_cost(config, 48).flops_per_token


def test_an_evaluation_is_charged_a_forward_pass_and_keeps_nothing():
    config = variant(gate=True)
    cost = frozen_cost(config, 48)
    assert cost.flops == forward_flops(config, 48)
    assert cost.activation_bytes == cost.optimiser_bytes == 0


def test_cost_as_stored_in_a_study():
    cost = training_cost(SMALL, 48, 1, batch=2).as_dict()
    assert set(cost["flops_by_part"]) == {"body", "attention", "head", "gate"}
    assert cost["flops_per_token"] == sum(cost["flops_by_part"].values())
    assert {"parameters", "body_parameters", "kv_bytes_per_token", "activation_bytes", "decode_flops"} <= set(cost)
    assert cost["activation_bytes"] == 2 * training_cost(SMALL, 48, 1).activation_bytes
    assert cost["optimiser_bytes"] == 8 * cost["parameters"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"supervised_loops": 4}, r"supervised_loops = 4: must be in 1 … 3"),
        ({"supervised_loops": 0}, r"supervised_loops = 0"),
        ({"convention": "half"}, r"convention = 'half': must be one of causal, full"),
    ],
)
def test_bad_input_names_the_field(arguments, message):
    with pytest.raises(ValueError, match=message):
        forward_flops(SMALL, 16, **arguments)

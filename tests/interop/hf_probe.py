"""Run by an interpreter that has transformers: opens exported folders and prints, as JSON, how far they are off.

Arguments: folders, each of a released twin in float64, its shape in `twin.json` beside the weights.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from released_twin import LAYERS, VOCABULARY, build, expected, probe, tokens, weights
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, DynamicCache

from ouro_lab.model import LoopState
from ouro_lab.objectives import LastLoop, MeanOverLoops, MixtureOfLogits, StageOne, exit_distribution

OBJECTIVES = {"last_loop": LastLoop(), "mean_over_loops": MeanOverLoops(), "stage_one": StageOne(0.05)}
OBJECTIVES["mixture_of_logits"] = MixtureOfLogits()
NEW = 7


def main(folders: list[str]) -> None:
    transformers.logging.set_verbosity_error()
    found = {folder: errors(Path(folder)) for folder in folders}
    print(json.dumps({"transformers": transformers.__version__, "errors": found}))


def errors(folder: Path) -> dict[str, Any]:
    kv_heads, tied, loops = json.loads((folder / "twin.json").read_text())
    model = opened(folder)
    found = against_the_equations(model, kv_heads, tied, loops) | cached(model, loops)
    found |= greedy(model, kv_heads, tied, loops) | losses(folder, kv_heads, tied, loops)
    return found | saved(model, folder)


def opened(folder: Path, **options: Any) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float64, **options)
    assert type(model).__module__.startswith("transformers_modules.")
    return model.eval()


def against_the_equations(model: Any, kv_heads: int, tied: bool, loops: int) -> dict[str, float]:
    states, logits, gradients = expected(kv_heads, tied, loops, False)
    out = model(tokens(), output_hidden_states=True)
    got = [LoopState(h, g) for h, g in zip(out.hidden_states, out.gate_logits.unbind(-1), strict=True)]
    probe(got, out.logits).backward()
    named = {name.removeprefix("model."): p.grad for name, p in model.named_parameters()}
    p = exit_distribution(torch.stack([state.gate_logit for state in states])).exp()
    early = model(tokens(), loops=1, output_hidden_states=True)
    return {
        "states": max(distance(g.hidden, w.hidden) for g, w in zip(got, states, strict=True)),
        "gate_logits": max(distance(g.gate_logit, w.gate_logit) for g, w in zip(got, states, strict=True)),
        "logits": distance(out.logits, logits),
        "exit_distribution": distance(out.exit_distribution.movedim(-1, 0), p),
        "gradients": max(distance(named[name], want) for name, want in gradients.items()),
        "gradient_names": float(named.keys() != gradients.keys()),
        "loops=1": distance(early.hidden_states[0], states[0].hidden) + abs(len(early.hidden_states) - 1),
        "base model": distance(model.model(tokens()).last_hidden_state, states[-1].hidden),
    }


@torch.no_grad()
def cached(model: Any, loops: int) -> dict[str, float]:
    """Prefill and single steps against one pass, with both ways in which transformers makes a DynamicCache."""
    whole = model(tokens(), use_cache=False)
    found = {"no cache": float(whole.past_key_values is not None)}
    for name, cache in (("cache", DynamicCache()), ("cache of config", DynamicCache(config=model.config))):
        parts = [model(piece, past_key_values=cache) for piece in tokens().split([3, 1, 1, 1], dim=1)]
        found[name] = distance(torch.cat([part.logits for part in parts], 1), whole.logits)
        found[f"{name}: slots"] = abs(len(cache.layers) - loops * LAYERS)
        cache.crop(-3)
        found[f"{name}: cropped"] = distance(model(tokens()[:, 3:], past_key_values=cache).logits, whole.logits[:, 3:])
    return found


@torch.no_grad()
def greedy(model: Any, kv_heads: int, tied: bool, loops: int) -> dict[str, float]:
    """Against an uncached search with our own model, alone and in a batch whose shorter prompts are padded left."""
    own = build(kv_heads, tied, loops).double()
    own.load_state_dict(weights(kv_heads, tied))
    prompts = [tokens()[0], tokens()[1, :4], tokens()[0, 2:3]]
    alone = [search(own, prompt) for prompt in prompts]
    padded = [torch.cat([torch.zeros(6 - len(prompt), dtype=torch.long), prompt]) for prompt in prompts]
    mask = torch.stack([(torch.arange(6) >= 6 - len(prompt)).long() for prompt in prompts])
    options = {"do_sample": False, "max_new_tokens": NEW, "pad_token_id": 0, "eos_token_id": None}
    one = [model.generate(prompt[None], **options)[0, len(prompt) :] for prompt in prompts]
    many = model.generate(torch.stack(padded), attention_mask=mask, **options)[:, 6:]
    slow = model.generate(prompts[0][None], use_cache=False, **options)[0, 6:]
    return {
        "greedy": float(any(not torch.equal(a, b) for a, b in zip(one, alone, strict=True))),
        "greedy, padded left": float(any(not torch.equal(a, b) for a, b in zip(many, alone, strict=True))),
        "greedy, no cache": float(not torch.equal(slow, alone[0])),
        "static cache": float(not refuses_static(model, options)),
    }


def refuses_static(model: Any, options: dict[str, Any]) -> bool:
    try:
        model.generate(tokens(), cache_implementation="static", **options)
    except ValueError as error:
        return "must be a cache that grows" in str(error)
    return False


def search(own: Any, prompt: Tensor) -> Tensor:
    text = prompt[None]
    for _ in range(NEW):
        text = torch.cat([text, own(text)[:, -1:].argmax(-1)], 1)
    return text[0, len(prompt) :]


def losses(folder: Path, kv_heads: int, tied: bool, loops: int) -> dict[str, float]:
    """`labels` against our objectives on the states of the equations; some positions are not asked."""
    states, _, _ = expected(kv_heads, tied, loops, False)
    head = weights(kv_heads, tied)["embed_tokens.weight" if tied else "lm_head.weight"]
    labels = tokens().clone()
    labels[0, 3] = -100
    targets = torch.cat([labels[:, 1:], torch.full((len(labels), 1), -100)], 1)
    found = {}
    for name, objective in OBJECTIVES.items():
        model = opened(folder, objective=name)
        want, _ = objective([LoopState(s.hidden.detach(), s.gate_logit.detach()) for s in states], head, targets)
        found[f"loss {name}"] = distance(model(tokens(), labels=labels).loss, want)
    half = model(tokens(), labels=labels, num_items_in_batch=2 * int((targets != -100).sum())).loss
    return found | {"loss per item": distance(2 * half, want)}


def saved(model: Any, folder: Path) -> dict[str, float]:
    target = folder / "saved"
    model.save_pretrained(target)
    again = opened(target)
    config = AutoConfig.from_pretrained(target, trust_remote_code=True)
    base = AutoModel.from_pretrained(target, trust_remote_code=True, dtype=torch.float64).eval()
    return {
        "saved": distance(again(tokens()).logits, model(tokens()).logits),
        "saved config": float(config.total_ut_steps != model.config.total_ut_steps or config.vocab_size != VOCABULARY),
        "AutoModel": distance(base(tokens()).last_hidden_state, model.model(tokens()).last_hidden_state),
    }


def distance(got: Tensor, want: Tensor) -> float:
    return float((got.detach() - want.detach()).abs().max() / want.detach().abs().max().clamp_min(1.0))


if __name__ == "__main__":
    main(sys.argv[1:])

"""Run by an interpreter that has transformers: a trunk of ours with its tokenizer and without a gate, as JSON."""

import json
import sys

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

folder, text = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype="auto").eval()
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
ids = tokenizer(text, return_tensors="pt")["input_ids"]
with torch.no_grad():
    out = model(ids)
refused = []
for name, value in (("sliding_window", 8), ("early_exit_threshold", 0.5), ("rope_scaling", {"rope_type": "yarn"})):
    try:
        AutoConfig.from_pretrained(folder, trust_remote_code=True).__class__(**{name: value})
    except ValueError as error:
        refused.append(str(error).split(" = ")[0])
print(
    json.dumps(
        {
            "ids": ids[0].tolist(),
            "back": tokenizer.decode(ids[0]),
            "logits": out.logits[0, -1].double().tolist(),
            "dtype": str(out.logits.dtype),
            "no gate": out.gate_logits is None and out.exit_distribution is None,
            "eos": [tokenizer.eos_token_id, model.generation_config.eos_token_id],
            "refused": refused,
        }
    )
)

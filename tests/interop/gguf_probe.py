"""Run by an interpreter that has transformers, gguf and accelerate: a text's loss under a GGUF file, as JSON."""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

path, text = Path(sys.argv[1]), sys.argv[2]
model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"][:, :128]
with torch.no_grad():
    out = model(ids, labels=ids)
print(json.dumps({"ids": ids[0].tolist(), "loss": out.loss.item(), "top": out.logits[0, -1].topk(5).indices.tolist()}))

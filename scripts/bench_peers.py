#!/usr/bin/env python3
"""The work of scripts/bench.sh done by PEFT, transformers and llama.cpp. Each command prints one number: tokens per second.

    bench_peers.py train BASE TASKS [--experts 4] [--steps 10] [--batch 16] [--dtype float32] [--lean]
    bench_peers.py decode BASE [--dtype float32] [--tokens 64]
    bench_peers.py batch BASE [--dtype float32] [--rows 32] [--tokens 64]
    bench_peers.py prefill BASE [--dtype float32] [--tokens 470]
    bench_peers.py llama FILE.gguf [--tokens 64] [--rows 1]

train: one LoRA expert per task file, in a plain loop: padded batches, loss on the target only, no dropout, no validation;
tokens are those of the rows without padding. With --lean, rows are sorted by length, so that there is hardly any padding,
and logits are made of target tokens alone, which a user of PEFT would have to write. decode and batch are greedy and
without the time of the first token. All use as many threads as there are cores (--threads).
"""
import argparse
import glob
import json
import os
import random
import time

PROMPT = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11,"


def torch_with(given):
    import torch

    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    return torch


def opened(given, torch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(given.base, dtype=getattr(torch, given.dtype))
    return model, AutoTokenizer.from_pretrained(given.base)


def encoded(tokenizer, row):
    prompt = tokenizer.encode(f"{row['input']}\n")
    target = tokenizer.encode(f"{row['output']}", add_special_tokens=False) + [tokenizer.eos_token_id]
    return prompt + target, [-100] * len(prompt) + target


def padded(torch, batch):
    width = max(len(ids) for ids, _ in batch)
    fill = lambda values, with_: torch.tensor([v + [with_] * (width - len(v)) for v in values])
    return fill([i for i, _ in batch], 0), fill([l for _, l in batch], -100), fill([[1] * len(i) for i, _ in batch], 0)


def plain_loss(torch, model, ids, labels, mask):
    return model(input_ids=ids, attention_mask=mask, labels=labels).loss


def lean_loss(torch, model, ids, labels, mask):
    inner = model.base_model.model
    hidden = inner.model(input_ids=ids, attention_mask=mask).last_hidden_state[:, :-1]
    predicted = labels[:, 1:] != -100
    logits = inner.lm_head(hidden[predicted])
    return torch.nn.functional.cross_entropy(logits.float(), labels[:, 1:][predicted])


def batches(given, rows):
    """The rows of each step."""
    if not given.lean:
        return [random.sample(rows, min(given.batch, len(rows))) for _ in range(given.steps)]
    drawn = sorted(random.choices(rows, k=given.batch * given.steps), key=lambda row: len(row[0]))
    cut = [drawn[start : start + given.batch] for start in range(0, len(drawn), given.batch)]
    return random.sample(cut, len(cut))


def train(given):
    from peft import LoraConfig, get_peft_model

    torch = torch_with(given)
    random.seed(0)
    base, tokenizer = opened(given, torch)
    files = sorted(glob.glob(os.path.join(given.tasks, "*.json")))[: given.experts]
    modules = ["q_proj", "k_proj", "v_proj", "o_proj"]
    config = LoraConfig(r=4, lora_alpha=16, target_modules=modules, task_type="CAUSAL_LM")
    loss_of, tokens, started = lean_loss if given.lean else plain_loss, 0, time.perf_counter()
    for file in files:
        rows = [encoded(tokenizer, row) for row in json.load(open(file))]
        model = get_peft_model(base, config)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
        model.train()
        for batch in batches(given, rows):
            ids, labels, mask = padded(torch, batch)
            loss_of(torch, model, ids, labels, mask).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step(), optimizer.zero_grad()
            tokens += int(mask.sum())
        base = model.unload()
    return tokens / (time.perf_counter() - started)


def generated(given, rows):
    """Seconds of each token after the first of `rows` prompts at once."""
    torch = torch_with(given)
    model, tokenizer = opened(given, torch)
    ids = tokenizer([PROMPT] * rows, return_tensors="pt").input_ids
    with torch.inference_mode():
        out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        started = time.perf_counter()
        for _ in range(given.tokens - 1):
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
    return rows * (given.tokens - 1) / (time.perf_counter() - started)


def decode(given):
    return generated(given, 1)


def batch(given):
    return generated(given, given.rows)


def prefill(given):
    torch = torch_with(given)
    model, _ = opened(given, torch)
    ids, best = torch.arange(1000, 1000 + given.tokens)[None], float("inf")
    with torch.inference_mode():
        for _ in range(4):
            started = time.perf_counter()
            model(input_ids=ids, use_cache=True, logits_to_keep=1)
            best = min(best, time.perf_counter() - started)
    return given.tokens / best


def llama(given):
    import xllamacpp
    from concurrent.futures import ThreadPoolExecutor

    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel = given.base, 512 * given.rows, given.rows
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = given.threads
    server = xllamacpp.Server(settings)
    request = {"prompt": PROMPT, "n_predict": given.tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}

    def timed(rows, tokens):
        started = time.perf_counter()
        with ThreadPoolExecutor(rows) as pool:
            list(pool.map(lambda _: server.handle_completions({**request, "n_predict": tokens}), range(rows)))
        return time.perf_counter() - started

    timed(1, 2)
    first = timed(given.rows, 1)
    return given.rows * (given.tokens - 1) / (timed(given.rows, given.tokens) - first)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for work in (train, decode, batch, prefill, llama):
        command = commands.add_parser(work.__name__)
        command.set_defaults(work=work)
        command.add_argument("base")
        command.add_argument("--dtype", default="float32")
        command.add_argument("--threads", type=int, default=os.cpu_count())
        command.add_argument("--rows", type=int, default=32 if work is batch else 1)
        command.add_argument("--tokens", type=int, default=470 if work is prefill else 64)
        if work is train:
            command.add_argument("tasks")
            command.add_argument("--lean", action="store_true")
            for name, value in (("experts", 4), ("steps", 10), ("batch", 16)):
                command.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    print(f"{given.work(given):.1f}")


main()

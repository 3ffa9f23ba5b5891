#!/usr/bin/env python3
"""What bench_pieces.sh and gpu_bench.py compare lorakit with: the same work by PEFT, PyTorch and scikit-learn.

    pip install torch transformers==5.23.0 peft==0.21.2 scikit-learn
    scripts/bench_pieces_peers.py step                    a training step of two layers of Phi-2's width, every token with loss
    scripts/bench_pieces_peers.py library BASE TASKS      16 experts of 100 steps of 16 rows, one after another
    scripts/bench_pieces_peers.py arrow                   Arrow over 10, 64 and 256 experts of two layers of Phi-2's width
    scripts/bench_pieces_peers.py mbc                     MBC of 256 adapters of 1,966,080 parameters

Each prints a line with its times, tokens per second and peak memory. Weights are random, except those of BASE.
"""

import argparse
import json
import os
import pathlib
import random
import resource
import tempfile
import time
import warnings

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ATTENTION_OF_PHI = ["q_proj", "k_proj", "v_proj", "dense"]


class Place:
    """Where and in which type the work is done."""

    def __init__(self, given):
        import torch

        self.device = given.device
        self.dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[given.dtype]
        torch.set_num_threads(given.threads)
        torch.manual_seed(0)

    def fastest(self, repeats, work):
        """The shortest of some runs after a first one, in seconds."""
        import torch

        finish = torch.cuda.synchronize if self.device != "cpu" else lambda: None
        times = []
        for _ in range(repeats + 1):
            finish()
            start = time.perf_counter()
            work()
            finish()
            times.append(time.perf_counter() - start)
        return min(times[1:])

    def peak(self):
        """The most memory in use so far, in GB: that of the GPU, or the largest resident set."""
        import torch

        return torch.cuda.max_memory_allocated() / 1e9 if self.device != "cpu" else largest_resident_set()

    def random_base(self, name, layers, vocabulary=None):
        """A base of the width of Phi-2 or Mistral-7B."""
        import torch
        from transformers import MistralConfig, MistralForCausalLM, PhiConfig, PhiForCausalLM

        phi = {"hidden_size": 2560, "intermediate_size": 10240, "num_attention_heads": 32, "num_key_value_heads": 32,
               "partial_rotary_factor": 0.4, "vocab_size": vocabulary or 51_200}  # fmt: skip
        torch.set_default_dtype(self.dtype)
        with torch.device(self.device):
            base = (
                PhiForCausalLM(PhiConfig(num_hidden_layers=layers, **phi))
                if name == "phi"
                else MistralForCausalLM(MistralConfig(num_hidden_layers=layers, sliding_window=None))
            )
        torch.set_default_dtype(torch.float32)
        return base


def largest_resident_set():
    """In GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def step(given):
    import torch
    from peft import LoraConfig, get_peft_model

    place = Place(given)
    base = place.random_base(given.base, given.layers)
    if given.save:
        base.save_pretrained(given.save)
    ids = torch.randint(3, base.config.vocab_size, (given.batch, given.length), device=place.device)
    targets = ATTENTION_OF_PHI if given.base == "phi" else ATTENTION
    model = get_peft_model(base.train(), LoraConfig(r=4, lora_alpha=16, target_modules=targets))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def train():
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds = place.fastest(3, train)
    print(f"train {ids.numel() / seconds:.1f} tok/s, peak {place.peak():.2f} GB")


def encoded(tokenizer, row):
    """lorakit's plain form: BOS, the input and a newline; the output and EOS, which carry loss."""
    prompt = tokenizer.encode(f"{row['input']}\n")
    answer = tokenizer.encode(str(row["output"]), add_special_tokens=False) + [tokenizer.eos_token_id]
    return prompt + answer, [-100] * len(prompt) + answer


def padded(rows, device):
    import torch

    width = max(len(ids) for ids, _ in rows)
    fill = lambda values, value: torch.tensor([v + [value] * (width - len(v)) for v in values], device=device)
    return {
        "input_ids": fill([ids for ids, _ in rows], 0),
        "labels": fill([labels for _, labels in rows], -100),
        "attention_mask": fill([[1] * len(ids) for ids, _ in rows], 0),
    }


def library(given):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    place = Place(given)
    chosen = random.Random(0)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=os.path.join(given.base, "tokenizer.json"), eos_token="</s>", bos_token="<s>"
    )
    model = AutoModelForCausalLM.from_pretrained(given.base, dtype=place.dtype).to(place.device)
    files = sorted(pathlib.Path(given.tasks).glob("*.json"))[: given.experts]
    tokens, start = 0, time.perf_counter()
    for file in files:
        rows = [encoded(tokenizer, row) for row in json.loads(file.read_text())]
        expert = get_peft_model(model, LoraConfig(r=4, lora_alpha=16, target_modules=ATTENTION)).train()
        trained = [p for p in expert.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
        for _ in range(100):
            batch = padded(chosen.sample(rows, min(16, len(rows))), place.device)
            expert(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            tokens += int(batch["attention_mask"].sum())
        model = expert.unload()
    seconds = time.perf_counter() - start
    print(f"experts {len(files)} seconds {seconds:.2f} tokens/s {tokens / seconds:.0f} peak {place.peak():.2f} GB")


def arrow(given):
    import torch
    from peft import LoraConfig, create_arrow_model, get_peft_model
    from peft.tuners.lora.config import ArrowConfig

    place = Place(given)
    ids = torch.randint(3, 500, (1, given.length), device=place.device)

    @torch.no_grad()
    def milliseconds(model):
        return 1e3 * place.fastest(4, lambda: model(ids))

    for experts in map(int, given.experts.split(",")):
        base = place.random_base("phi", given.layers, vocabulary=512).eval()
        plain = milliseconds(base)
        config = LoraConfig(r=4, lora_alpha=16, target_modules=ATTENTION_OF_PHI, task_type="CAUSAL_LM")
        expert = get_peft_model(base, config)
        for name, values in expert.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(values, std=0.02)
        with tempfile.TemporaryDirectory() as folder:
            expert.save_pretrained(f"{folder}/e0")
            for i in range(1, experts):
                os.symlink(f"{folder}/e0", f"{folder}/e{i}")
            start = time.perf_counter()
            routed = create_arrow_model(
                base_model=expert.unload(),
                task_specific_adapter_paths=[f"{folder}/e{i}" for i in range(experts)],
                arrow_config=ArrowConfig(top_k=4, rng_seed=0),
            )
            routed = routed.to(place.device).eval()
            load = time.perf_counter() - start
        with_arrow = milliseconds(routed)
        print(
            f"experts {experts}: base {plain:.0f} ms, arrow {with_arrow:.0f} ms ({with_arrow / plain:.2f}x), "
            f"load {load:.1f} s, peak {place.peak():.2f} GB",
            flush=True,
        )


def mbc(given):
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(given.threads)
    import numpy as np
    from sklearn.cluster import KMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.metrics.pairwise import cosine_similarity

    adapters, parameters, clusters = 256, 1_966_080, 10
    values = np.random.default_rng(0)
    centers = values.standard_normal((clusters, parameters), dtype=np.float32)
    vectors = np.empty((adapters, parameters), dtype=np.float32)
    for i in range(adapters):
        vectors[i] = centers[i % clusters] + 2 * values.standard_normal(parameters, dtype=np.float32)
    del centers
    start = time.perf_counter()
    for vector in vectors:
        size = np.abs(vector)
        vector[size <= np.quantile(size, 0.5)] = 0
    embedding = TruncatedSVD(64, n_iter=5, n_oversamples=10, random_state=42).fit_transform(vectors)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    labels = KMeans(clusters, n_init=10, random_state=42).fit_predict(cosine_similarity(embedding))
    seconds = time.perf_counter() - start
    found = all(len(set(labels[i::clusters])) == 1 for i in range(clusters))
    print(f"adapters {adapters}: total {seconds:.1f} s, peak {largest_resident_set():.1f} GB, planted clusters found {found}")


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    works = parser.add_subparsers(required=True)

    def work(run, **defaults):
        one = works.add_parser(run.__name__)
        one.set_defaults(run=run)
        for name, value in defaults.items():
            one.add_argument(f"--{name}", type=type(value), default=value)
        return one

    place = {"device": "cpu", "dtype": "f32", "threads": 2}
    one = work(step, layers=2, batch=2, length=256, **place)
    one.add_argument("--base", choices=["phi", "mistral"], default="phi")
    one.add_argument("--save", help="a folder for the base, so that lorakit can train over the same weights")
    one = work(library, experts=16, **place)
    one.add_argument("base")
    one.add_argument("tasks", help="a folder of JSON lists of input and output")
    work(arrow, experts="10,64,256", layers=2, length=256, **place)
    work(mbc, threads=2)
    return parser.parse_args()


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    given = options()
    given.run(given)

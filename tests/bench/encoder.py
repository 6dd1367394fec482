"""Speed of Retort's embedding and encoder training beside sentence-transformers and a plain PyTorch loop, in alternating runs,
and of a student's embedding beside its teacher's.

    encoder.py embed --model DIR --corpus BEIR_FOLDER --peer target/release/examples/encoder_peer
    encoder.py train --model DIR --corpus BEIR_FOLDER --peer target/release/examples/encoder_peer
    encoder.py student --model TEACHER --student DIR --corpus BEIR_FOLDER --peer target/release/examples/encoder_peer

Both sides have `--threads` compute threads in all and see the same texts. PyTorch is one process. Ours are the tasks that workers
run: embedding in as many processes of one thread as there are threads, training in a cohort of as many members, which exchange
their gradients over loopback (`--parts` changes how many). Each side loads its model and warms up before its clock starts; texts
are tokenised within it for embedding, and beforehand for training. Prints the median of each side and the ratio, by the wall clock and
by processor time, which says more on a machine that is busy with other things.
"""

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time


def read_texts(folder, skip, count):
    path = os.path.join(folder, "corpus.jsonl")
    stream = open(path, encoding="utf-8") if os.path.exists(path) else gzip.open(path + ".gz", "rt", encoding="utf-8")
    texts = []
    with stream:
        for number, line in enumerate(stream):
            if number >= skip + count:
                break
            if number >= skip:
                row = json.loads(line)
                texts.append((row.get("title", "") + " " + row["text"]).strip())
    return texts


def race(commands, environment):
    """Starts processes together when all are ready; gives items per second, and per second of processor time."""
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(c, stdin=pipe, stdout=pipe, text=True, env=environment) for c in commands]
    for process in processes:
        line = process.stdout.readline()
        if line.strip() != "ready":
            sys.exit(f"a benchmark process said {line!r} instead of ready")
    for process in processes:
        try:
            process.stdin.write("\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass
    results = [json.loads(process.stdout.readline()) for process in processes]
    for process in processes:
        if process.wait() != 0:
            sys.exit("a benchmark process failed")
    items = sum(result["items"] for result in results)
    wall = max(result["seconds"] for result in results)
    return items / wall, items / sum(result["processor_seconds"] for result in results)


def ours(args, texts, folder, work, model):
    # Every n-th text each, so that all have the same lengths.
    shares = [texts[i :: args.parts] for i in range(args.parts)] if work == "embed" else [texts]
    threads = args.threads // args.parts if work == "embed" else args.threads
    commands = []
    for i, share in enumerate(shares):
        path = os.path.join(folder, f"ours-{i}.json")
        settings = {
            "work": work,
            "model": os.path.abspath(model),
            "texts": share,
            "device": args.device,
            "threads": threads,
            "max_tokens": args.max_tokens,
            "batch_tokens": args.batch * args.max_tokens,
            "batch": args.batch,
            "layers": args.layers,
            "members": args.parts,
            "out": None,
        }
        with open(path, "w", encoding="utf-8") as file:
            json.dump(settings, file)
        commands.append([args.peer, path])
    return race(commands, {**os.environ, "OMP_NUM_THREADS": str(max(1, args.threads // args.parts))})


def theirs(args, texts, folder):
    path = os.path.join(folder, "theirs.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump({**vars(args), "texts": texts}, file)
    command = [sys.executable, __file__, args.work, "--model", args.model, "--corpus", "", "--settings", path]
    return race([command], {**os.environ, "OMP_NUM_THREADS": str(args.threads)})


def wait():
    print("ready", flush=True)
    sys.stdin.readline()


def clocks():
    return time.perf_counter(), time.process_time()


def torch_embed(args, texts):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(args.model, device="cpu")
    model.max_seq_length = args.max_tokens
    model.encode(texts[: args.batch], batch_size=args.batch)
    wait()
    begin = clocks()
    # It sorts by length itself.
    model.encode(texts, batch_size=args.batch, normalize_embeddings=True)
    return len(texts), begin


def torch_train(args, texts):
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModel.from_pretrained(args.model)
    if args.layers:
        model.encoder.layer = torch.nn.ModuleList([model.encoder.layer[layer] for layer in args.layers])
    # Dropout off, as in a distillation towards fixed vectors; it would only slow PyTorch down.
    model.eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    target = torch.randn(args.batch, model.config.hidden_size)

    def batch(rows):
        return tokenizer(rows, padding=True, truncation=True, max_length=args.max_tokens, return_tensors="pt")

    def step(tokens):
        states = model(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1).float()
        vectors = (states * mask).sum(1) / mask.sum(1)
        loss = (1 - torch.nn.functional.cosine_similarity(vectors, target)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    steps = len(texts) // args.batch
    batches = [batch(texts[i * args.batch : (i + 1) * args.batch]) for i in range(steps)]
    step(batches[0])
    step(batches[1])
    wait()
    begin = clocks()
    for tokens in batches[2:]:
        step(tokens)
    return (steps - 2) * args.batch, begin


def peer(path):
    with open(path, encoding="utf-8") as file:
        settings = json.load(file)
    texts = settings.pop("texts")
    args = argparse.Namespace(**settings)
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    items, begin = (torch_embed if args.work == "embed" else torch_train)(args, texts)
    wall, processor = (now - then for now, then in zip(clocks(), begin))
    print(json.dumps({"items": items, "seconds": wall, "processor_seconds": processor}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=["embed", "train", "student"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--student", help="the folder of an encoder that a job has exported")
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--peer", default="target/release/examples/encoder_peer")
    parser.add_argument("--device", default="flex")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parts", type=int, default=0, help="processes or members of ours; as many as threads without it")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--layers", type=lambda text: [int(layer) for layer in text.split(",")], help="as 0,2")
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--count", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.settings:
        return peer(args.settings)
    args.parts = args.parts or args.threads
    texts = read_texts(args.corpus, args.skip, args.count)
    place = f"{args.device}, {args.parts} x {args.threads // args.parts} threads"
    if args.work == "student":
        if not args.student:
            parser.error("student needs --student")
        runs = {
            f"teacher, {place}": lambda folder: ours(args, texts, folder, "embed", args.model),
            f"student, {place}": lambda folder: ours(args, texts, folder, "embed", args.student),
        }
    else:
        runs = {
            "pytorch": lambda folder: theirs(args, texts, folder),
            place: lambda folder: ours(args, texts, folder, args.work, args.model),
        }
    sides = {name: [] for name in runs}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.rounds):
            for name, run in runs.items():
                sides[name].append(run(folder))
    for at, unit in enumerate(["texts/s", "texts per second of processor time"]):
        reference = statistics.median(speeds[at] for speeds in next(iter(sides.values())))
        for side, speeds in sides.items():
            middle = statistics.median(speed[at] for speed in speeds)
            runs = " ".join(f"{speed[at]:.1f}" for speed in speeds)
            print(f"{args.work}: {side}: {middle:.1f} {unit}, ratio {middle / reference:.2f}; runs {runs}", flush=True)


if __name__ == "__main__":
    main()

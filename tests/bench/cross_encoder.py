"""Trains a small cross-encoder on a BEIR folder's training questions, for trials of `mining.denoise` where none can be downloaded.

    cross_encoder.py --model examples/quickstart/teacher --corpus examples/quickstart/data --out /tmp/cross-encoder

It starts from a BERT folder whose mean-pooled vectors rank the corpus; a training pair is a question with its marked passage, or
with one drawn from the ranks 2 to 50 of these vectors. Loss: binary cross-entropy on one logit (RocketQA, Qu et al. 2021). Prints how
often the marked passage is above the drawn ones on --dev. Needs the virtual environment of tests/parity/setup.sh.
"""

import argparse
import gzip
import json
import os
import random

import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer, BertForSequenceClassification


def rows(folder, name):
    path = os.path.join(folder, name)
    with open(path, encoding="utf-8") if os.path.exists(path) else gzip.open(path + ".gz", "rt", encoding="utf-8") as file:
        yield from (json.loads(line) for line in file)


def positives(folder, name):
    found = {}
    with open(os.path.join(folder, "qrels", name + ".tsv"), encoding="utf-8") as file:
        for line in list(file)[1:]:
            query, passage, grade = line.split("\t")
            if int(grade) > 0:
                found.setdefault(query, set()).add(passage)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--train", default="train")
    parser.add_argument("--dev", default="dev")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--negatives", type=int, default=3, help="drawn for each positive")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--max-tokens", type=int, default=192)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    draw = random.Random(1)

    passages = {row["_id"]: (row.get("title", "") + " " + row["text"]).strip() for row in rows(args.corpus, "corpus.jsonl")}
    texts = {row["_id"]: row["text"] for row in rows(args.corpus, "queries.jsonl")}
    ids = list(passages)
    encoder = SentenceTransformer(args.model, device="cpu")
    encoder.max_seq_length = 128
    vectors = encoder.encode([passages[i] for i in ids], convert_to_tensor=True, normalize_embeddings=True)

    def ranked(name):
        judged = positives(args.corpus, name)
        queries = list(judged)
        asked = encoder.encode([texts[q] for q in queries], convert_to_tensor=True, normalize_embeddings=True)
        best = (asked @ vectors.T).topk(50).indices.tolist()
        return [(q, judged[q], [ids[i] for i in near[1:] if ids[i] not in judged[q]]) for q, near in zip(queries, best)]

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = BertForSequenceClassification.from_pretrained(args.model, num_labels=1)

    def logits(pairs):
        first, second = zip(*pairs)
        tokens = tokenizer(
            list(first), list(second), padding=True, truncation="longest_first", max_length=args.max_tokens, return_tensors="pt"
        )
        return model(**tokens).logits[:, 0]

    train = ranked(args.train)
    steps = args.epochs * len(train) * (1 + args.negatives) // args.batch
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min((s + 1) / (0.1 * steps), (steps - s) / (0.9 * steps)))
    loss_of = torch.nn.BCEWithLogitsLoss()
    step, mean = 0, 0.0
    model.train()
    for _ in range(args.epochs):
        pairs = []
        for query, known, near in train:
            pairs.append((texts[query], passages[draw.choice(sorted(known))], 1.0))
            pairs += [(texts[query], passages[p], 0.0) for p in draw.sample(near, args.negatives)]
        draw.shuffle(pairs)
        for start in range(0, len(pairs) - args.batch + 1, args.batch):
            batch = pairs[start : start + args.batch]
            loss = loss_of(logits([pair[:2] for pair in batch]), torch.tensor([pair[2] for pair in batch]))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            step, mean = step + 1, 0.98 * mean + 0.02 * loss.item()
            if step % 100 == 0:
                print(f"step {step}/{steps}, loss {mean / (1 - 0.98**step):.4f}", flush=True)
    model.eval()
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)

    wins, pairs, kept = 0, 0, []
    with torch.no_grad():
        for query, known, near in ranked(args.dev)[:200]:
            scores = logits([(texts[query], passages[p]) for p in [sorted(known)[0], *near[:15]]])
            wins += (scores[1:] < scores[0]).sum().item()
            pairs += len(scores) - 1
            kept.append(torch.sigmoid(scores[0]).item() > 0.1)
    print(f"{args.dev}: the marked passage is above {wins / pairs:.3f} of ranks 2 to 16, and above .1 for {sum(kept) / len(kept):.3f}")


if __name__ == "__main__":
    main()

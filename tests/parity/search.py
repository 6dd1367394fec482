"""Retort's search and quantisers beside faiss and bm25s: the same results, and how long each takes.

search.py parity BINARY [VECTORS.npy QUERIES.npy] [--only NAMES]   flat neighbours, recall of PCA and quantisers, BM25's scores
search.py bench BINARY [--passages N] [--only NAMES]                side by side, alternating, two threads each

NAMES, with commas between, choose checks by words of their names ("flat", "opq 8", "bm25"), benchmarks among train, bm25,
flat and scan.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.pop("OPENBLAS_CORETYPE", None)
os.environ.pop("OPENBLAS_L2_SIZE", None)
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "2"

import bm25s  # noqa: E402
import faiss  # noqa: E402
import numpy as np  # noqa: E402

THREADS = 2
faiss.omp_set_num_threads(THREADS)


class Retort:
    """The example program `search_peer` over a folder of data."""

    def __init__(self, binary, folder, dim):
        self.folder = folder
        self.process = subprocess.Popen(
            [binary, folder, str(dim), str(THREADS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, command):
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"search_peer ended at {command!r}")
        return json.loads(line)["seconds"]

    def lists(self, name, k):
        rows = np.fromfile(f"{self.folder}/{name}.u64", dtype=np.uint64).astype(np.int64).reshape(-1, k)
        scores = np.fromfile(f"{self.folder}/{name}.scores", dtype=np.float32).reshape(-1, k)
        return rows, scores

    def array(self, name, dim):
        return np.fromfile(f"{self.folder}/{name}.f32", dtype=np.float32).reshape(-1, dim)

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def synthetic(rows, dim, seed):
    """Unit vectors of falling variance around some centres, as encoders give them."""
    rng = np.random.default_rng(seed)
    scale = (1 / np.sqrt(1 + np.arange(dim))).astype(np.float32)
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((dim, dim)))[0].astype(np.float32)
    centres = np.random.default_rng(1).standard_normal((64, dim)).astype(np.float32)
    values = rng.standard_normal((rows, dim), dtype=np.float32) + centres[rng.integers(0, 64, rows)]
    values = (values * scale) @ turn
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def words(rows, seed, length=60, vocabulary=30000):
    """Lines of numbers with Zipf's frequencies: no analyser changes a number."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(length // 3, length * 2, rows)
    drawn = 10 + np.minimum(rng.zipf(1.2, lengths.sum()), vocabulary)
    ends = np.cumsum(lengths)
    return [" ".join(map(str, drawn[end - n : end])) for end, n in zip(ends, lengths)]


def save(folder, passages=None, queries=None, docs=None, questions=None):
    for name, array in (("passages", passages), ("queries", queries)):
        if array is not None:
            np.ascontiguousarray(array, dtype=np.float32).tofile(f"{folder}/{name}.f32")
    for name, lines in (("docs", docs), ("questions", questions)):
        if lines is not None:
            with open(f"{folder}/{name}.txt", "w") as file:
                file.write("\n".join(lines) + "\n")


def recall(found, exact):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, exact)])


def tokens(lines):
    return bm25s.tokenize(lines, stopwords=None, show_progress=False)


def parity(binary, vectors, questions, only):
    failures = []
    wanted = lambda name: not only or any(part in name for part in only)

    def check(name, holds, text):
        print(f"{'ok  ' if holds else 'FAIL'} {name}: {text}", flush=True)
        if not holds:
            failures.append(name)

    passages = np.load(vectors) if vectors else synthetic(20000, 384, 2)
    queries = (np.load(questions) if questions else synthetic(1000, 384, 3))[:1000]
    dim, k = passages.shape[1], 10
    with tempfile.TemporaryDirectory() as folder:
        docs, asked = words(3000, 4), words(200, 5, length=8)
        save(folder, passages, queries, docs, asked)
        retort = Retort(binary, folder, dim)
        flat = faiss.IndexFlatIP(dim)
        flat.add(passages)
        their_scores, theirs = flat.search(queries, k)
        if wanted("flat"):
            retort(f"flat {k}")
            ours, _ = retort.lists("flat", k)
            exact = lambda rows: np.einsum("qkd,qd->qk", passages[rows].astype(np.float64), queries.astype(np.float64))
            # A place may differ only where both passages score alike.
            gap = np.abs(exact(ours) - exact(theirs))[ours != theirs]
            worst = gap.max() if len(gap) else 0.0
            equal = (ours == theirs).mean()
            check("flat", worst < 2e-6, f"{equal:.4%} of places equal, else scores within {worst:.1e}")

        def against(name, factory, *commands, seeds=1):
            """Recall beside faiss, the mean of several trainings of each: k-means starts on drawn rows, and the draw
            alone moves recall by half a point. faiss draws other rows when it gets the rows in another order."""
            if not wanted(name):
                return
            own, peer = [], []
            for seed in range(1, seeds + 1):
                index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
                index.train(passages[np.random.default_rng(seed).permutation(len(passages))])
                index.add(passages)
                peer.append(recall(index.search(queries, k)[1], theirs))
                for command in commands:
                    retort(command.format(seed=seed))
                own.append(recall(retort.lists(commands[-1].split()[0], k)[0], theirs))
            spread = f", means of {seeds}, deviations {np.std(own):.4f} and {np.std(peer):.4f}" if seeds > 1 else ""
            check(name, np.mean(own) >= np.mean(peer) - 0.005, f"recall@10 {np.mean(own):.4f}, faiss {np.mean(peer):.4f}{spread}")

        rest = ("encode", f"codes {k}")
        against("pca 64", "PCA64,Flat", f"pca {k} 64")
        against("pq 32", "PQ32", "pq-train 32 {seed}", *rest, seeds=6)
        against("pq 16", "PQ16", "pq-train 16 {seed}", *rest, seeds=6)
        against("pca 128, pq 16", "PCA128,PQ16", "pca-pq-train 128 16 {seed}", *rest, seeds=6)
        against("opq 32", "OPQ32,PQ32", "opq-train 32 {seed}", *rest, seeds=3)
        against("opq 8", "OPQ8,PQ8", "opq-train 8 {seed}", *rest, seeds=3)
        against("residual 8", "RQ8x8", "residual-train 8 {seed}", *rest, seeds=3)
        against("int8", "SQ8", "int8-train", *rest)

        if wanted("bm25"):
            peer = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
            peer.index(tokens(docs), show_progress=False)
            _, scores = peer.retrieve(tokens(asked), k=k, show_progress=False)
            retort("bm25-index")
            retort(f"bm25-search {k}")
            own = retort.lists("bm25-search", k)[1]
            # bm25s fills short lists up with passages that share no term.
            own = np.where(np.isfinite(own), own, 0)
            worst = np.abs(own - scores).max()
            check("bm25", worst < 1e-4, f"scores within {worst:.1e} of {scores.max():.1f}")
        retort.end()
    sys.exit(f"differ: {', '.join(failures)}" if failures else 0)


def timed(act):
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def bench(binary, count, only):
    wanted = lambda name: not only or name in only
    dim, k, rounds = 384, 100, 3
    passages, queries = synthetic(count, dim, 2), synthetic(1000, dim, 3)
    train = passages[:20000]
    docs, asked = words(20000, 4), words(1000, 5, length=8)

    def compare(name, ours, theirs, rounds=rounds):
        pairs = [(ours(), timed(theirs)) for _ in range(rounds)]
        own, peer = (statistics.median(side) for side in zip(*pairs))
        print(f"| {name} | {own:.3f} | {peer:.3f} | {peer / own:.2f} |", flush=True)

    print(f"faiss {faiss.__version__} ({faiss.get_compile_options().strip()}), {THREADS} threads each, medians of {rounds}")
    print("| what | Retort, s | peer, s | peer / Retort |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        save(folder, train, queries, docs, asked)
        retort = Retort(binary, folder, dim)
        if wanted("train"):
            bench_training(compare, retort, train, dim)
        if wanted("bm25"):
            bm25 = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
            index = lambda: bm25.index(tokens(docs), show_progress=False)
            compare("BM25 indexing, 20,000 documents", lambda: retort("bm25-index"), index)
            search = lambda: bm25.retrieve(tokens(asked), k=k, n_threads=THREADS, show_progress=False)
            compare("BM25 search, 1,000 questions", lambda: retort(f"bm25-search {k}"), search)
        retort.end()
        if not wanted("flat") and not wanted("scan"):
            return
        save(folder, passages)
        retort = Retort(binary, folder, dim)
        name = f"1,000 questions over {count:,} x 384"
        if wanted("flat"):
            flat = faiss.IndexFlatIP(dim)
            flat.add(passages)
            compare(f"flat search, {name}", lambda: retort(f"flat {k}"), lambda: flat.search(queries, k))
        if wanted("scan"):
            pq = faiss.index_factory(dim, "PQ32", faiss.METRIC_INNER_PRODUCT)
            pq.train(train)
            pq.add(passages)
            retort("pq-train 32")
            retort("encode")
            compare(f"PQ scan of 32 bytes, {name}", lambda: retort(f"codes {k}"), lambda: pq.search(queries, k))
        retort.end()


def bench_training(compare, retort, train, dim):
    """Training, and how near what is trained comes to the vectors."""
    pq = faiss.index_factory(dim, "PQ32", faiss.METRIC_INNER_PRODUCT)
    compare("PQ32 training, 20,000 x 384", lambda: retort("pq-train 32"), lambda: pq.train(train))
    opq = faiss.OPQMatrix(dim, 32)
    compare("OPQ32 training, 20,000 x 384", lambda: retort("opq-train 32"), lambda: opq.train(train), 1)
    retort("encode")
    retort("decode")
    own = ((retort.array("decoded", dim) - retort.array("mapped", dim)) ** 2).sum(1).mean()
    turned = opq.apply(train)
    pq.train(turned)
    peer = ((pq.sa_decode(pq.sa_encode(turned)) - turned) ** 2).sum(1).mean()
    print(f"| squared error of those OPQ codes | {own:.4f} | {peer:.4f} | {peer / own:.2f} |", flush=True)


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("mode", choices=["parity", "bench"])
    options.add_argument("binary")
    options.add_argument("vectors", nargs="*")
    options.add_argument("--passages", type=int, default=200_000)
    options.add_argument("--only", type=lambda names: names.split(","), default=[])
    given = options.parse_args()
    if given.mode == "parity":
        parity(given.binary, *(given.vectors or (None, None)), given.only)
    else:
        bench(given.binary, given.passages, given.only)

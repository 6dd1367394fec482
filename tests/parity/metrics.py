"""Expected metric values from ir_measures, the oracle of worker/src/metrics.

    metrics.py values QRELS RUN            print "query metric value" lines and the means (query "all")
    metrics.py golden SOURCE FIXTURES      cut the fixtures and their expected values from a folder with the
                                           TREC DL 2019 runs and qrels
    metrics.py random FOLDER [COUNT]       random runs and qrels with their expected values, for a parity check
"""

import gzip
import random
import sys
from pathlib import Path

import ir_measures

# Our names and ir_measures'. A reciprocal rank with a cutoff comes from another provider than the rest, one
# that breaks ties by the lowest document id instead of the highest.
METRICS = {
    "ndcg@10": "nDCG@10", "ndcg": "nDCG", "mrr": "RR", "mrr@10": "RR@10", "mrr(rel=2)@10": "RR(rel=2)@10",
    "mrr(rel=2)": "RR(rel=2)", "recall@100": "R@100", "recall(rel=2)@1000": "R(rel=2)@1000",
    "map": "AP", "map(rel=2)": "AP(rel=2)", "map@10": "AP@10", "p@10": "P@10", "p(rel=2)@30": "P(rel=2)@30",
    "success@1": "Success@1", "success@20": "Success@20", "success(rel=2)@5": "Success(rel=2)@5",
}  # fmt: skip
GOLDEN_QUERIES = 6
GOLDEN_DEPTH = 200


def read(path):
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt") as lines:
        return lines.read().splitlines()


def values(qrels_path, run_path):
    qrels = [ir_measures.Qrel(q, d, int(g)) for q, _, d, g in (line.split() for line in read(qrels_path))]
    run = [ir_measures.ScoredDoc(c[0], c[2], float(c[4])) for c in (line.split() for line in read(run_path))]
    measures = {ir_measures.parse_measure(theirs): ours for ours, theirs in METRICS.items()}
    results = ir_measures.calc(list(measures), qrels, run)
    lines = sorted((m.query_id, measures[m.measure], m.value) for m in results.per_query)
    lines += sorted(("all", measures[measure], value) for measure, value in results.aggregated.items())
    return [f"{query} {metric} {value!r}" for query, metric, value in lines]


def write(path, lines):
    data = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def golden(source, fixtures):
    qrels = read(source / "dl19.qrels.txt.gz")
    queries = sorted({line.split()[0] for line in qrels})[:GOLDEN_QUERIES]
    # The last query keeps its judgements and loses its list: it counts as zero.
    searched = set(queries[:-1])
    write(fixtures / "dl19.qrels.gz", [line for line in qrels if line.split()[0] in queries])
    for name in ("ance", "bm25"):
        kept, depth = [], {}
        for line in read(source / f"dl19.{name}.run.gz"):
            query = line.split()[0]
            depth[query] = depth.get(query, 0) + 1
            if query in searched and depth[query] <= GOLDEN_DEPTH:
                kept.append(line)
        write(fixtures / f"dl19.{name}.run.gz", kept)
        write(fixtures / f"dl19.{name}.expected.txt",
              values(fixtures / "dl19.qrels.gz", fixtures / f"dl19.{name}.run.gz"))  # fmt: skip


def random_pair(folder, seed):
    """Documents unjudged, graded below 0, unranked; queries unsearched, unjudged or without relevant ones."""
    rng = random.Random(seed)
    qrels, run = [], []
    for query in range(rng.randint(1, 8)):
        docs = [f"d{i}" for i in range(rng.randint(1, 60))]
        grades = rng.choice([[0, 1], [0, 0, 0, 1, 2, 3], [-1, 0, 1], [0]])
        if rng.random() < 0.9:
            qrels += [f"q{query} 0 {d} {rng.choice(grades)}" for d in rng.sample(docs, rng.randint(1, len(docs)))]
        if rng.random() < 0.9:
            scores = rng.sample(range(-1000, 1000), len(docs))
            kept = rng.sample(list(zip(docs, scores)), rng.randint(1, len(docs)))
            run += [f"q{query} Q0 {d} 1 {s / 8} x" for d, s in kept]
    if not any(int(line.split()[3]) > 0 for line in qrels):
        qrels.append("q99 0 d0 1")
    run = run or ["q98 Q0 d0 1 1.0 x"]
    write(folder / f"{seed}.qrels", qrels)
    write(folder / f"{seed}.run", run)
    write(folder / f"{seed}.expected.txt", values(folder / f"{seed}.qrels", folder / f"{seed}.run"))


def main(command, *arguments):
    if command == "values":
        print("\n".join(values(Path(arguments[0]), Path(arguments[1]))))
    elif command == "golden":
        golden(Path(arguments[0]), Path(arguments[1]))
    elif command == "random":
        folder = Path(arguments[0])
        folder.mkdir(parents=True, exist_ok=True)
        for seed in range(int(arguments[1]) if len(arguments) > 1 else 20):
            random_pair(folder, seed)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) > 1 else sys.exit(__doc__)

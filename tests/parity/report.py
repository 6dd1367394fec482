"""Compares the metrics of a report with ir_measures on the runs and judgements that it exports.

    python tests/parity/report.py STORE/jobs/ID/report
"""

import gzip
import json
import sys
from pathlib import Path

import ir_measures

NAMES = {"mrr": "RR", "ndcg": "nDCG", "recall": "R", "success": "Success", "map": "AP", "p": "P"}
TOLERANCE = 1e-6


def lines(path):
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt") as file:
        return file.read().splitlines()


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def read_qrels(path):
    """TREC's four columns, or BEIR's three with a header."""
    rows = [line.split() for line in lines(path)]
    if rows and len(rows[0]) == 3:
        return [ir_measures.Qrel(query, doc, int(grade)) for query, doc, grade in rows[1:]]
    return [ir_measures.Qrel(query, doc, int(grade)) for query, _, doc, grade in rows]


def read_runs(folder):
    """Ranked lists by tag, whichever files they lie in."""
    runs = {}
    for path in files(folder):
        for query, _, doc, _, score, tag in (line.split() for line in lines(path)):
            runs.setdefault(tag, []).append(ir_measures.ScoredDoc(query, doc, float(score)))
    return runs


def measure(name):
    head, _, cutoff = name.partition("@")
    kind, _, parameters = head.partition("(")
    text = NAMES[kind] + (f"({parameters}" if parameters else "") + (f"@{cutoff}" if cutoff else "")
    return ir_measures.parse_measure(text)


def main(folder):
    report = json.loads((folder / "report.json").read_text())
    qrels = {path.stem: read_qrels(path) for path in files(folder / "qrels")}
    runs = read_runs(folder / "runs")
    compared, wrong = 0, []
    for row in report["rows"]:
        # Where a row has variants, the report shows the one that is best on dev.
        tag = "-".join(filter(None, [row["name"], row.get("variant")]))
        if tag not in runs:
            sys.exit(f"{folder}: runs/ has no run {tag!r}, only {', '.join(sorted(runs))}")
        largest = 0.0
        for name, metrics in row["metrics"].items():
            judged = {qrel.query_id for qrel in qrels[name]}
            run = [hit for hit in runs[tag] if hit.query_id in judged]
            # Answers are not in the judgements: ir_measures cannot know DPR's top-k accuracy.
            judged_metrics = {name: value for name, value in metrics.items() if not name.startswith("accuracy")}
            measures = {measure(metric): value for metric, value in judged_metrics.items() if value is not None}
            values = ir_measures.calc_aggregate(list(measures), qrels[name], run)
            largest = max([largest] + [abs(values[which] - value) for which, value in measures.items()])
            compared += len(measures)
        print(f"{tag:>24}  largest difference {largest:.1e}")
        if largest > TOLERANCE:
            wrong.append(tag)
    if wrong or not compared:
        sys.exit(f"{folder}: figures differ from ir_measures in {', '.join(wrong) or 'nothing compared'}")
    print(f"{compared} figures compared")


if __name__ == "__main__":
    main(Path(sys.argv[1])) if len(sys.argv) == 2 else sys.exit(__doc__)

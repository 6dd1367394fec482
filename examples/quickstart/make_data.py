#!/usr/bin/env python3
"""Cuts the quickstart's data set out of a BEIR directory that holds SQuAD v1.1 dev.

usage: make_data.py WIKI_DIR OUT_DIR [--test-questions 1500] [--seed 13]

Passages are those whose id starts with "sqd-", questions those whose
metadata.source is "squad". The split by article is the source's own; only the
test questions are sampled. The output is a function of input, count and seed:
the gzip headers carry neither time nor name.
"""

import argparse
import gzip
import json
import pathlib
import random

PASSAGE_PREFIX = "sqd-"
QUESTION_SOURCE = "squad"
SOURCE_SPLITS = {"train": "train", "dev": "dev-squad", "test": "test-squad"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wiki", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--test-questions", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=13)
    arguments = parser.parse_args()

    passages = [
        {key: row[key] for key in ("_id", "title", "text")}
        for row in read_jsonl(arguments.wiki / "corpus.jsonl.gz")
        if row["_id"].startswith(PASSAGE_PREFIX)
    ]
    questions = {
        row["_id"]: row
        for row in read_jsonl(arguments.wiki / "queries.jsonl.gz")
        if row["metadata"]["source"] == QUESTION_SOURCE
    }
    passage_ids = {passage["_id"] for passage in passages}
    splits = {
        split: [
            (question, passage)
            for question, passage in read_positives(
                arguments.wiki / "qrels" / f"{source}.tsv"
            )
            if question in questions and passage in passage_ids
        ]
        for split, source in SOURCE_SPLITS.items()
    }
    splits["test"] = sample_questions(
        splits["test"], arguments.test_questions, arguments.seed
    )

    used = {question for positives in splits.values() for question, _ in positives}
    write_jsonl(arguments.out / "corpus.jsonl.gz", passages)
    write_jsonl(
        arguments.out / "queries.jsonl.gz",
        (
            {
                "_id": identity,
                "text": row["text"],
                "metadata": {"answers": row["metadata"]["answers"]},
            }
            for identity, row in questions.items()
            if identity in used
        ),
    )
    (arguments.out / "qrels").mkdir(parents=True, exist_ok=True)
    for split, positives in splits.items():
        with open(arguments.out / "qrels" / f"{split}.tsv", "w", newline="\n") as out:
            out.write("query-id\tcorpus-id\tscore\n")
            out.writelines(f"{q}\t{p}\t1\n" for q, p in positives)
        print(f"{split}: {len({q for q, _ in positives})} questions")
    print(f"corpus: {len(passages)} passages")


def sample_questions(
    positives: list[tuple[str, str]], count: int, seed: int
) -> list[tuple[str, str]]:
    """Keeps `count` random questions, in their order in the source."""
    questions = sorted({question for question, _ in positives})
    kept = set(random.Random(seed).sample(questions, count))
    return [positive for positive in positives if positive[0] in kept]


def read_jsonl(path: pathlib.Path):
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def read_positives(path: pathlib.Path) -> list[tuple[str, str]]:
    with open(path, encoding="utf-8") as lines:
        next(lines)  # the header row
        rows = (line.rstrip("\n").split("\t") for line in lines)
        return [(question, passage) for question, passage, score in rows if int(score) > 0]


def write_jsonl(path: pathlib.Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with (
        open(path, "wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=9, fileobj=raw, mtime=0) as packed,
    ):
        packed.write(text.encode("utf-8"))


if __name__ == "__main__":
    main()

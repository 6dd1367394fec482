"""Writes the reference that Retort's encoder is compared with: PyTorch and transformers on 50 texts.

    python tests/parity/encoder.py --model DIR --out reference.json
    RETORT_MINILM=DIR RETORT_PARITY=reference.json cargo test -p retort-worker --lib parity -- --ignored

DIR is a Hugging Face directory of a BERT encoder with mean pooling, such as all-MiniLM-L6-v2.
"""

import argparse
import json
import random

import torch

# CPU-only builds of PyTorch lack a CUDA query that transformers makes; there is no stream to capture.
if not torch.cuda.is_available():
    torch.cuda.is_current_stream_capturing = lambda: False

from transformers import AutoModel, AutoTokenizer  # noqa: E402

MAX_LENGTH = 400

EDGES = [
    "",
    " ",
    ".",
    "a",
    "\n\t\n",
    "[CLS] [SEP] [MASK] [PAD]",
    "Zażółć gęślą jaźń",
    "東京都は日本の首都です。",
    "Ελληνική Δημοκρατία; שלום עולם; مرحبا بالعالم",
    "🙂🙃 👩‍👩‍👧‍👦 cafe\u0301 ＦＵＬＬ ｗｉｄｔｈ",
    "x" * 300,
    "\u0000\ufffd\u200b zero widths \u00ad soft hyphen",
    "1,234.56 $ 7e-9 (3rd) don't well-known U.S.A.",
]


def texts():
    """Edge cases, then texts of 1 to about 600 words, so that some are cut."""
    random.seed(20)
    words = (
        "dense retriever passage query vector teacher student distillation negative index cluster worker "
        "gradient museum river capital born century the of and in was to a is for on Paris 1987 photosynthesis"
    ).split()
    lengths = [1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 600]
    made = [" ".join(random.choices(words, k=lengths[i % len(lengths)])) for i in range(50 - len(EDGES))]
    return EDGES + made


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModel.from_pretrained(arguments.model, attn_implementation="eager").eval()
    cases = texts()
    batch = tokenizer(cases, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1).float()
    vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
    ids = [
        [int(token) for token, real in zip(row, kept) if real]
        for row, kept in zip(batch["input_ids"], batch["attention_mask"])
    ]
    with open(arguments.out, "w") as file:
        json.dump({"max_length": MAX_LENGTH, "texts": cases, "ids": ids, "vectors": vectors.tolist()}, file)


if __name__ == "__main__":
    main()

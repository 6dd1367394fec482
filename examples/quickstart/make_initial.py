#!/usr/bin/env python3
"""Makes the compact teacher's initial model out of all-MiniLM-L6-v2.

usage: make_initial.py MODEL_DIR BEIR_DIR OUT_DIR [--pieces 6000] [--layers 0,2,5]

Reads a Hugging Face BERT directory and writes a sentence-transformers directory
with fewer word pieces, positions and layers. The pieces kept are the special
tokens, every single character (alone and as a continuation) that the texts need,
and the pieces most frequent in the BEIR directory's passages, titles and train
questions. Questions of other splits are never counted.
"""

import argparse
import collections
import copy
import gzip
import json
import pathlib
import re

import numpy
import safetensors.numpy
import tokenizers

SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUATION = "##"
LAYER = re.compile(r"^encoder\.layer\.(\d+)\.")
WORD_EMBEDDINGS = "embeddings.word_embeddings.weight"
POSITION_EMBEDDINGS = "embeddings.position_embeddings.weight"
# The pooled output is not used, and position ids are a constant.
UNUSED = re.compile(r"^pooler\.|position_ids$")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("beir", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--pieces", type=int, default=6000)
    parser.add_argument("--layers", default="0,2,5", help="source layers to keep")
    parser.add_argument("--positions", type=int, default=256)
    arguments = parser.parse_args()
    layers = [int(layer) for layer in arguments.layers.split(",")]

    tokenizer = json.loads((arguments.model / "tokenizer.json").read_text("utf-8"))
    config = json.loads((arguments.model / "config.json").read_text("utf-8"))
    weights = safetensors.numpy.load_file(arguments.model / "model.safetensors")
    texts = list(statistics_texts(arguments.beir))

    kept_ids = choose_pieces(tokenizer, texts, arguments.pieces)
    small_tokenizer = prune_tokenizer(tokenizer, kept_ids)
    small_weights = prune_weights(weights, kept_ids, layers, arguments.positions)
    config |= {
        "vocab_size": len(kept_ids),
        "num_hidden_layers": len(layers),
        "max_position_embeddings": arguments.positions,
    }
    config.pop("_name_or_path", None)
    config.pop("gradient_checkpointing", None)
    write_model(arguments.out, config, small_tokenizer, small_weights)
    report(arguments.out, small_weights, tokenizer, small_tokenizer, texts)


def statistics_texts(beir: pathlib.Path):
    """Passages with their titles, and the questions of the train split only."""
    for row in read_jsonl(beir / "corpus.jsonl.gz"):
        yield f"{row.get('title', '')} {row['text']}".strip()
    with open(beir / "qrels" / "train.tsv", encoding="utf-8") as lines:
        next(lines)  # the header row
        train = {line.split("\t")[0] for line in lines}
    for row in read_jsonl(beir / "queries.jsonl.gz"):
        if row["_id"] in train:
            yield row["text"]


def read_jsonl(path: pathlib.Path):
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def choose_pieces(tokenizer: dict, texts: list[str], count: int) -> list[int]:
    """Source ids of the kept pieces, ascending but for [PAD], which comes first."""
    vocabulary = tokenizer["model"]["vocab"]
    piece_of_id = {identity: piece for piece, identity in vocabulary.items()}
    frequency = collections.Counter()
    for encoding in load_tokenizer(tokenizer).encode_batch(
        texts, add_special_tokens=False
    ):
        frequency.update(encoding.ids)

    characters = {
        character
        for identity in frequency
        for character in piece_of_id[identity].removeprefix(CONTINUATION)
    }
    kept = [vocabulary[piece] for piece in SPECIAL_PIECES]
    kept += sorted(
        vocabulary[piece]
        for character in characters
        for piece in (character, CONTINUATION + character)
        if piece in vocabulary
    )
    if len(set(kept)) > count:
        raise SystemExit(f"--pieces {count} is less than the {len(kept)} pieces always kept")
    # Ties go to the lower id, which BERT gives to the commoner piece.
    by_frequency = sorted(frequency, key=lambda identity: (-frequency[identity], identity))
    kept = list(dict.fromkeys(kept + by_frequency))[:count]
    pad = vocabulary["[PAD]"]
    return [pad, *sorted(identity for identity in kept if identity != pad)]


def load_tokenizer(tokenizer: dict) -> tokenizers.Tokenizer:
    loaded = tokenizers.Tokenizer.from_str(json.dumps(tokenizer))
    loaded.no_truncation()
    loaded.no_padding()
    return loaded


def prune_tokenizer(tokenizer: dict, kept_ids: list[int]) -> dict:
    """The same tokenizer over the kept pieces, without padding or truncation."""
    piece_of_id = {identity: piece for piece, identity in tokenizer["model"]["vocab"].items()}
    vocabulary = {piece_of_id[old]: new for new, old in enumerate(kept_ids)}
    small = copy.deepcopy(tokenizer)
    small["truncation"] = None
    small["padding"] = None
    small["model"]["vocab"] = vocabulary
    for token in small["added_tokens"]:
        token["id"] = vocabulary[token["content"]]
    for token in small["post_processor"]["special_tokens"].values():
        token["ids"] = [vocabulary[piece] for piece in token["tokens"]]
    return small


def prune_weights(
    weights: dict[str, numpy.ndarray],
    kept_ids: list[int],
    layers: list[int],
    positions: int,
) -> dict[str, numpy.ndarray]:
    """f32 weights; source layer `layers[i]` becomes layer i."""
    small = {}
    for name, tensor in weights.items():
        name = name.removeprefix("bert.")
        if UNUSED.search(name):
            continue
        if name == WORD_EMBEDDINGS:
            tensor = tensor[kept_ids]
        elif name == POSITION_EMBEDDINGS:
            tensor = tensor[:positions]
        elif match := LAYER.match(name):
            source_layer = int(match[1])
            if source_layer not in layers:
                continue
            name = f"encoder.layer.{layers.index(source_layer)}.{name[match.end():]}"
        small[name] = numpy.ascontiguousarray(tensor, dtype=numpy.float32)
    return small


def write_model(
    out: pathlib.Path,
    config: dict,
    tokenizer: dict,
    weights: dict[str, numpy.ndarray],
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    positions = config["max_position_embeddings"]
    write_json(out / "config.json", config)
    # Compact: the tokenizer counts towards the model's size.
    (out / "tokenizer.json").write_text(
        json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")), "utf-8"
    )
    (out / "vocab.txt").write_text(
        "".join(f"{piece}\n" for piece in tokenizer["model"]["vocab"]), "utf-8"
    )
    special = {f"{piece[1:-1].lower()}_token": piece for piece in SPECIAL_PIECES}
    write_json(out / "special_tokens_map.json", special)
    write_json(
        out / "tokenizer_config.json",
        special
        | {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": True,
            "strip_accents": None,
            "tokenize_chinese_chars": True,
            "model_max_length": positions,
        },
    )
    module = "sentence_transformers.models."
    write_json(
        out / "modules.json",
        [
            {"idx": 0, "name": "0", "path": "", "type": module + "Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": module + "Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": module + "Normalize"},
        ],
    )
    write_json(
        out / "sentence_bert_config.json",
        {"max_seq_length": positions, "do_lower_case": False},
    )
    (out / "1_Pooling").mkdir(exist_ok=True)
    write_json(
        out / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": config["hidden_size"],
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    )
    safetensors.numpy.save_file(
        weights, out / "model.safetensors", metadata={"format": "pt"}
    )


def write_json(path: pathlib.Path, value) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


def report(
    out: pathlib.Path,
    weights: dict[str, numpy.ndarray],
    tokenizer: dict,
    small_tokenizer: dict,
    texts: list[str],
) -> None:
    parameters = sum(tensor.size for tensor in weights.values())
    header_bytes = (out / "model.safetensors").stat().st_size - 4 * parameters
    weights_bytes = 2 * parameters + header_bytes
    tokenizer_bytes = (out / "tokenizer.json").stat().st_size
    lengths = [
        sum(len(encoding.ids) for encoding in load_tokenizer(each).encode_batch(texts))
        for each in (tokenizer, small_tokenizer)
    ]
    print(f"pieces             {len(small_tokenizer['model']['vocab'])}")
    print(f"parameters         {parameters}")
    print(f"weights as f16     {weights_bytes} bytes")
    print(f"tokenizer.json     {tokenizer_bytes} bytes")
    print(f"together           {weights_bytes + tokenizer_bytes} bytes")
    print(f"tokens per text    {lengths[0] / len(texts):.2f} -> {lengths[1] / len(texts):.2f}")


if __name__ == "__main__":
    main()

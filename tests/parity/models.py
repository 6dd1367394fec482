"""Random-weight checkpoints of every architecture, written by transformers and sentence-transformers, with the vectors
that those give; and the check of what Retort exports from them.

    python tests/parity/models.py write DIR     writes DIR/NAME/model and DIR/NAME/reference.json
    RETORT_MODELS=DIR cargo test -p retort-worker --lib architectures -- --ignored
    python tests/parity/models.py check DIR     loads DIR/NAME/export in sentence-transformers

The Rust test compares vectors and writes DIR/NAME/export and DIR/NAME/ours.json. Everything is offline: tokenizers are
trained on the texts themselves.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch

# CPU-only builds of PyTorch lack a CUDA query that transformers makes; there is no stream to capture.
if not torch.cuda.is_available():
    torch.cuda.is_current_stream_capturing = lambda: False

import transformers as hf  # noqa: E402
from sentence_transformers import SentenceTransformer  # noqa: E402
from sentence_transformers.sentence_transformer.modules import Pooling  # noqa: E402
from sentence_transformers.base.modules import Dense, Normalize, Transformer  # noqa: E402
from sentence_transformers.sentence_transformer.modules.layer_norm import LayerNorm  # noqa: E402
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402

from encoder import texts  # noqa: E402

MAX_LENGTH = 64
BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
SIZES = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=80)


def cases():
    return [text for text in texts() if "\x00" not in text][:49] + ["one text more"]


def word_piece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(cases(), trainers.WordPieceTrainer(vocab_size=400, special_tokens=BERT_SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.decoder = decoders.WordPiece()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=512, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"])


def byte_pair():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=ROBERTA_SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(cases(), trainer)
    return roberta_like(tokenizer)


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=ROBERTA_SPECIAL, unk_token="<unk>")
    tokenizer.train_from_iterator(cases(), trainer)
    return roberta_like(tokenizer)


def roberta_like(tokenizer):
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=512, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        unk_token="<unk>", cls_token="<s>", sep_token="</s>", mask_token="<mask>")


def lively(model):
    """Larger weights than a fresh model's, so that attention is not flat and biases count."""
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            norm = "norm" in name.lower() and name.endswith("weight")
            parameter.copy_(1 + 0.2 * noise if norm else 0.12 * noise)
    return model.eval()


def bert(tokenizer, cls=hf.BertModel, **more):
    return lively(cls(hf.BertConfig(vocab_size=len(tokenizer), max_position_embeddings=96, **SIZES, **more)))


def roberta(config, cls, tokenizer, **more):
    positions = dict(max_position_embeddings=98, type_vocab_size=1, layer_norm_eps=1e-5)
    ids = dict(pad_token_id=1, bos_token_id=0, eos_token_id=2)
    return lively(cls(config(vocab_size=len(tokenizer), **positions, **ids, **SIZES, **more)))


def pooled(model, tokenizer, pooling):
    batch = tokenizer(cases(), padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
    with torch.no_grad():
        if pooling == "dpr":
            return model(batch["input_ids"], batch["attention_mask"]).pooler_output
        states = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    if pooling == "cls":
        return states[:, 0]
    mask = batch["attention_mask"].unsqueeze(-1).float()
    lengths = mask.sum(1)
    if pooling == "max":
        return states.masked_fill(mask == 0, -1e9).max(1).values
    if pooling == "last_token":
        return states[torch.arange(len(states)), lengths[:, 0].long() - 1]
    if pooling == "weighted_mean":
        mask = mask * torch.arange(1, mask.shape[1] + 1).reshape(1, -1, 1)
    if pooling == "mean_sqrt_len":
        return (states * mask).sum(1) / lengths.sqrt()
    return (states * mask).sum(1) / mask.sum(1)


def refer(folder, vectors, **facts):
    facts.setdefault("pooling", "mean")
    facts.setdefault("normalize", False)
    reference = {"max_length": MAX_LENGTH, "texts": cases(), "vectors": vectors.tolist(), **facts}
    (folder / "reference.json").write_text(json.dumps(reference))


def plain(root, name, model, tokenizer, pooling="mean", **how):
    folder = root / name
    shutil.rmtree(folder, ignore_errors=True)
    vectors = pooled(model, tokenizer, pooling)
    model.save_pretrained(folder / "model", **how)
    tokenizer.save_pretrained(folder / "model")
    refer(folder, vectors, pooling="cls" if pooling == "dpr" else pooling)
    return folder


def write(root):
    pieces, pairs, grams = word_piece(), byte_pair(), unigram()
    model = bert(pieces)
    plain(root, "bert", model, pieces)
    for pooling in ["cls", "max", "mean_sqrt_len", "weighted_mean", "last_token"]:
        plain(root, f"bert-{pooling}", model, pieces, pooling)
    folder = plain(root, "bert-shards", model, pieces, max_shard_size="40KB")
    assert (folder / "model/model.safetensors.index.json").exists()
    folder = plain(root, "bert-vocab", model, pieces)
    (folder / "model/tokenizer.json").unlink()
    vocabulary = sorted(pieces.get_vocab().items(), key=lambda entry: entry[1])
    (folder / "model/vocab.txt").write_text("".join(f"{token}\n" for token, _ in vocabulary))
    for name, kind in [("bert-f16", torch.float16), ("bert-bf16", torch.bfloat16)]:
        # The reference is what 32-bit arithmetic gives with the stored, rounded weights.
        rounded = bert(pieces)
        rounded.load_state_dict({key: value.to(kind).float() for key, value in model.state_dict().items()})
        folder = plain(root, name, rounded, pieces)
        stored = bert(pieces).to(kind)
        stored.load_state_dict({key: value.to(kind) for key, value in model.state_dict().items()})
        stored.save_pretrained(folder / "model")
    distil = hf.DistilBertConfig(vocab_size=len(pieces), max_position_embeddings=96, dim=48, n_layers=2, n_heads=4,
                                 hidden_dim=80)
    plain(root, "distilbert", lively(hf.DistilBertModel(distil)), pieces)
    plain(root, "roberta", roberta(hf.RobertaConfig, hf.RobertaModel, pairs), pairs)
    plain(root, "xlm-roberta", roberta(hf.XLMRobertaConfig, hf.XLMRobertaModel, grams), grams)
    mpnet = hf.MPNetConfig(vocab_size=len(pairs), max_position_embeddings=98, pad_token_id=1, layer_norm_eps=1e-5, **SIZES)
    plain(root, "mpnet", lively(hf.MPNetModel(mpnet)), pairs)
    for side, cls in [("question", hf.DPRQuestionEncoder), ("context", hf.DPRContextEncoder)]:
        config = hf.DPRConfig(vocab_size=len(pieces), max_position_embeddings=96, projection_dim=24, **SIZES)
        plain(root, f"dpr-{side}", lively(cls(config)), pieces, "dpr")
    modules(root, model, pieces)
    ance(root, pairs)
    cross(root, "cross-bert", bert(pieces, hf.BertForSequenceClassification, num_labels=1), pieces)
    classifier = roberta(hf.RobertaConfig, hf.RobertaForSequenceClassification, pairs, num_labels=1)
    cross(root, "cross-roberta", classifier, pairs)


def modules(root, model, tokenizer):
    """A sentence-transformers folder with every kind of module."""
    folder = root / "modules"
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder / "hf")
    tokenizer.save_pretrained(folder / "hf")
    transformer = Transformer(str(folder / "hf"), max_seq_length=MAX_LENGTH)
    torch.manual_seed(3)
    dense = Dense(48, 20, activation_function=torch.nn.Tanh())
    norm = LayerNorm(20)
    with torch.no_grad():
        norm.norm.weight.uniform_(0.5, 1.5)
        norm.norm.bias.uniform_(-0.5, 0.5)
    last = Dense(20, 12, bias=False, activation_function=torch.nn.Identity())
    chain = SentenceTransformer(
        modules=[transformer, Pooling(48, pooling_mode="cls"), dense, norm, last, Normalize()],
        prompts={"query": "q: ", "document": "d: "}, device="cpu")
    chain.save(str(folder / "model"))
    shutil.rmtree(folder / "hf")
    refer(folder, torch.tensor(chain.encode(cases(), prompt="")), pooling="cls", normalize=True)


def ance(root, tokenizer):
    """ANCE: RoBERTa's first token through a linear layer and a layer norm, in one file."""
    folder = root / "ance"
    shutil.rmtree(folder, ignore_errors=True)
    model = roberta(hf.RobertaConfig, hf.RobertaModel, tokenizer)
    head, norm = lively(torch.nn.Linear(48, 48)), torch.nn.LayerNorm(48)
    vectors = norm(head(pooled(model, tokenizer, "cls"))).detach()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    from safetensors.torch import save_file

    state = {f"roberta.{key}": value.contiguous() for key, value in model.state_dict().items()}
    state |= {f"embeddingHead.{key}": value for key, value in head.state_dict().items()}
    state |= {f"norm.{key}": value for key, value in norm.state_dict().items()}
    save_file(state, folder / "model/model.safetensors", metadata={"format": "pt"})
    refer(folder, vectors, pooling="cls")


def cross(root, name, model, tokenizer):
    folder = root / name
    shutil.rmtree(folder, ignore_errors=True)
    all_texts = cases()
    pairs = list(zip(all_texts, all_texts[7:] + all_texts[:7]))
    batch = tokenizer([a for a, _ in pairs], [b for _, b in pairs], padding=True, truncation=True,
                      max_length=MAX_LENGTH, return_tensors="pt")
    more = {"token_type_ids": batch["token_type_ids"]} if name == "cross-bert" else {}
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **more).logits[:, 0]
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    reference = {"max_length": MAX_LENGTH, "pairs": pairs, "scores": logits.tolist()}
    (folder / "reference.json").write_text(json.dumps(reference))


def check(root):
    worst, checked = 0.0, 0
    for folder in sorted(root.iterdir()):
        if not (folder / "ours.json").exists():
            continue
        ours = json.loads((folder / "ours.json").read_text())
        model = SentenceTransformer(str(folder / "export"), device="cpu")
        sides = [("vectors", model.encode)]
        if "queries" in ours:
            sides = [("queries", model.encode_query), ("vectors", model.encode_document)]
        for key, encode in sides:
            found = torch.tensor(encode(cases(), convert_to_numpy=True))
            difference = (found - torch.tensor(ours[key])).abs().max().item()
            print(f"{folder.name} {key}: {type(model[0]).__name__}, largest difference {difference:.1e}")
            assert difference < 1e-5, folder.name
            worst, checked = max(worst, difference), checked + 1
    assert checked, "run the Rust test first"
    print(f"{checked} exports agree, largest difference {worst:.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["write", "check"])
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    (write if arguments.verb == "write" else check)(arguments.folder)


if __name__ == "__main__":
    main()

//! A corpus, a teacher and a spec small enough for seconds.
//!
//! Everything is a function of fixed seeds, so that the figures of two jobs can be compared bit for bit. The teacher
//! is random: the tests look at the machinery, not at quality.

use retort_worker::model::{
    Architecture, EncoderConfig, FileDtype, Head, Input, Pooling, TowerConfig, save_encoder,
};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::Path;

/// Passages of the corpus.
pub const PASSAGES: usize = 60;
/// Questions: of the first 20 for training, 10 for dev, 10 for test.
pub const QUESTIONS: usize = 40;
/// Width of the models.
const WIDTH: usize = 16;

const TOPICS: [[&str; 6]; 6] = [
    ["river", "delta", "flood", "bank", "valley", "spring"],
    ["engine", "piston", "valve", "steam", "boiler", "wheel"],
    ["violin", "concert", "opera", "melody", "chorus", "organ"],
    ["planet", "orbit", "comet", "moon", "crater", "galaxy"],
    ["bread", "flour", "yeast", "oven", "crust", "butter"],
    ["castle", "knight", "siege", "tower", "king", "crown"],
];
const COMMON: [&str; 10] = ["the", "of", "and", "was", "in", "near", "old", "large", "first", "after"];
const SYLLABLES: [&str; 8] = ["ka", "do", "mi", "re", "tu", "sol", "ve", "ni"];

/// The name that passage `number` alone holds: the answer to its question.
fn name(number: usize) -> String {
    [number / 8 % 8, number % 8, number % 5].map(|at| SYLLABLES[at]).concat()
}

/// A small generator, the same everywhere.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

fn words(numbers: &mut Numbers, topic: usize, count: usize) -> String {
    let word = |at| {
        let common = at % 3 == 0;
        if common { COMMON[numbers.below(COMMON.len())] } else { TOPICS[topic][numbers.below(6)] }
    };
    (0..count).map(word).collect::<Vec<_>>().join(" ")
}

/// Writes `data/`, `teacher/` and `spec.toml`.
pub fn write(home: &Path) {
    write_data(&home.join("data"));
    write_model(&home.join("teacher"), 1);
    std::fs::write(home.join("spec.toml"), spec(8)).unwrap();
}

fn write_data(folder: &Path) {
    std::fs::create_dir_all(folder.join("qrels")).unwrap();
    let mut numbers = Numbers(1);
    let mut corpus = String::new();
    for number in 0..PASSAGES {
        let topic = number % TOPICS.len();
        let title = words(&mut numbers, topic, 2);
        let length = 6 + numbers.below(12);
        let text = format!("{} {}", words(&mut numbers, topic, length), name(number));
        let passage = json!({ "_id": format!("p{number}"), "title": title, "text": text });
        writeln!(corpus, "{passage}").unwrap();
    }
    std::fs::write(folder.join("corpus.jsonl"), corpus).unwrap();
    let (mut queries, mut sets) = (String::new(), [("train", 0), ("dev", 20), ("test", 30)].map(header));
    for number in 0..QUESTIONS {
        let text = words(&mut numbers, number % TOPICS.len(), 5);
        let answers = json!({ "answers": [name(number)] });
        writeln!(queries, "{}", json!({ "_id": format!("q{number}"), "text": text, "metadata": answers }))
            .unwrap();
        let set = sets.iter_mut().rev().find(|set| number >= set.1).unwrap();
        writeln!(set.2, "q{number}\tp{number}\t1").unwrap();
    }
    std::fs::write(folder.join("queries.jsonl"), queries).unwrap();
    for (name, _, text) in sets {
        std::fs::write(folder.join(format!("qrels/{name}.tsv")), text).unwrap();
    }
}

/// A set's name, its first question, and the beginning of its file.
fn header((name, first): (&str, usize)) -> (&str, usize, String) {
    (name, first, "query-id\tcorpus-id\tscore\n".to_owned())
}

/// Writes a random encoder with its tokenizer; one seed gives one model.
pub fn write_model(folder: &Path, seed: u64) {
    write_encoder(folder, seed, 1.0);
}

/// Writes a random cross-encoder of one label; one seed gives one model.
pub fn write_cross_encoder(folder: &Path, seed: u64) {
    // An encoder that has just been initialised says nearly the same of all pairs.
    write_encoder(folder, seed, 8.0);
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["architectures"] = json!(["BertForSequenceClassification"]);
    config["id2label"] = json!({ "0": "LABEL_0" });
    std::fs::write(path, config.to_string()).unwrap();
    let mut numbers = Numbers(seed);
    let mut draw = |count| (0..count).map(|_| numbers.below(2001) as f32 / 1000.0 - 1.0).collect();
    let (dense, bias, classifier) = (draw(WIDTH * WIDTH), draw(WIDTH), draw(WIDTH));
    add_tensors(
        &folder.join("model.safetensors"),
        &[
            ("bert.pooler.dense.weight", &[WIDTH, WIDTH], dense),
            ("bert.pooler.dense.bias", &[WIDTH], bias),
            ("classifier.weight", &[1, WIDTH], classifier),
            ("classifier.bias", &[1], vec![0.0]),
        ],
    );
}

/// Adds tensors of 32 bits behind those of a safetensors file.
fn add_tensors(path: &Path, tensors: &[(&str, &[usize], Vec<f32>)]) {
    let bytes = std::fs::read(path).unwrap();
    let (length, rest) = bytes.split_first_chunk().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let (mut header, mut data): (Value, _) = (serde_json::from_slice(header).unwrap(), data.to_vec());
    for (name, shape, values) in tensors {
        let begin = data.len();
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        header[name] = json!({ "dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()] });
    }
    let header = header.to_string();
    let length = (header.len() as u64).to_le_bytes();
    std::fs::write(path, [&length[..], header.as_bytes(), &data].concat()).unwrap();
}

/// Writes a random encoder with its tokenizer, its weights `scale` times as large as initial ones.
fn write_encoder(folder: &Path, seed: u64, scale: f32) {
    std::fs::create_dir_all(folder).unwrap();
    let tokens = vocabulary();
    let encoder = EncoderConfig {
        architecture: Architecture::Bert,
        vocabulary_size: tokens.len(),
        hidden_size: WIDTH,
        layers: 2,
        heads: 2,
        intermediate_size: 32,
        max_positions: 64,
        token_types: 2,
        layer_norm_epsilon: 1e-12,
        pad_token_id: 0,
    };
    let input = Input::Tokens { encoder: encoder.clone(), pooling: Pooling::Mean };
    let mut params = TowerConfig { input, head: Head::None }.initial_params(seed);
    params.iter_mut().for_each(|value| *value *= scale);
    save_encoder(folder, &encoder, &params, FileDtype::F32).unwrap();
    std::fs::write(folder.join("tokenizer.json"), tokenizer(&tokens).to_string()).unwrap();
}

fn vocabulary() -> Vec<String> {
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(str::to_owned);
    let letters = ('a'..='z').map(String::from);
    let inner = ('a'..='z').map(|letter| format!("##{letter}"));
    let known = TOPICS.as_flattened().iter().chain(&COMMON).map(|word| (*word).to_owned());
    special.into_iter().chain(letters).chain(inner).chain(known).collect()
}

/// A `tokenizer.json` over these tokens.
pub fn tokenizer(tokens: &[String]) -> Value {
    let vocabulary: serde_json::Map<_, _> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "decoder": null,
        "normalizer": {
            "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
            "lowercase": true,
        },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": { "type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2] },
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary,
        },
    })
}

/// The spec; `steps` are those of the last phase.
pub fn spec(steps: u32) -> String {
    format!(
        r#"name = "tiny"
seed = 1

[corpus]
path = "data"
rows_per_shard = 32

[sets]
train = ["train"]
dev = ["dev"]
test = ["test"]

[teacher]
model = "teacher"
query_max_tokens = 16
passage_max_tokens = 32
batch_tokens = 256

[mining]
depth = 20
per_query = 4
ratio = 0.0

[baselines]
pca = [4]

[evaluate]
depth = 20
metrics = ["mrr@10", "ndcg@10", "recall@20", "success@20"]

[[student]]
name = "head-8"
kind = "head"
dim = 8

[[student.phase]]
data = "queries"
steps = 6
batch = 8
microbatches = 2
negatives = 2
learning_rate = 1e-2
checkpoint_every = 2
loss = [{{ kind = "kl" }}, {{ kind = "info_nce", weight = 0.5 }}]

[[student]]
name = "encoder-8"
kind = "encoder"
layers = [0]
dim = 8
init = "head-8"

[[student.phase]]
data = "texts"
signal = "head-8"
steps = 4
batch = 8
learning_rate = 1e-3
checkpoint_every = 2
loss = [{{ kind = "embedding_cosine" }}]

[[student.phase]]
data = "queries"
signal = "head-8"
steps = {steps}
batch = 8
negatives = 2
learning_rate = 1e-3
checkpoint_every = 2
loss = [{{ kind = "margin_mse" }}, {{ kind = "info_nce", scope = "listed" }}]
"#
    )
}

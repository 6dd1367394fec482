//! Where passages, questions and judgements come from.
//!
//! - [`CorpusSpec`]: the keys under `[corpus]`
//! - [`FileList`], [`FileFormat`]: single files, their formats named where content does not tell
//! - [`CorpusPreset`]: well-known data sets with their files, sets, metrics and rule for answers

use super::JobSpec;
use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;

/// Where passages, questions and judgements come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorpusSpec {
    /// A well-known data set: gives layout, sets, metrics and the rule for answers where the spec is silent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<CorpusPreset>,
    /// Layout of the folder.
    #[serde(default)]
    pub format: CorpusFormat,
    /// The folder, relative to the spec, or a URL.
    pub path: String,
    /// Files of passages, instead of the layout's.
    #[serde(default, skip_serializing_if = "FileList::is_empty")]
    pub passages: FileList,
    /// Files of questions, instead of the layout's.
    #[serde(default, skip_serializing_if = "FileList::is_empty")]
    pub queries: FileList,
    /// Files of a set by its name, instead of the layout's: judgements, questions with answers, triples and such.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sets: BTreeMap<String, FileList>,
    /// How accepted answers are looked for in passages; as text without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<AnswerRule>,
    /// Passages in a shard, the unit of embedding and search.
    #[serde(default = "default_rows_per_shard")]
    pub rows_per_shard: u32,
    /// Malformed records to count and skip before the job fails.
    #[serde(default)]
    pub max_bad_records: u64,
    /// Sentences drawn from the passages, which stand as questions that need no label.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub sentences: u32,
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

fn default_rows_per_shard() -> u32 {
    1024
}

/// Layout of a folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CorpusFormat {
    /// The first layout whose passages are there.
    #[default]
    Auto,
    /// corpus.jsonl and queries.jsonl; judgements in qrels/SET.tsv.
    Beir,
    /// collection.tsv, queries.tsv or queries.SET.tsv, qrels.SET.tsv.
    MsMarco,
    /// psgs_w100.tsv; a set is a retriever file SET.json or questions with answers SET.qas.csv.
    Dpr,
    /// corpus.jsonl where there is one; a set is SET.jsonl.
    Tevatron,
    /// A set is SET.jsonl with query, pos and neg; passages are the sets' own texts.
    FlagEmbedding,
    /// A set is SET.jsonl with triplets or scored lists; passages are the sets' own texts.
    SentenceTransformers,
}

/// What a file's records look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileFormat {
    /// Id, tab, text: MS MARCO's collection and queries.
    Tsv,
    /// Id, text and title with tabs and CSV's quotes: DPR's psgs_w100.tsv.
    Psgs,
    /// JSON objects with an id, a text and perhaps a title: BEIR and Tevatron corpora, BEIR queries.
    Jsonl,
    /// Question, tab, Python list of answers: DPR's qas files.
    Qas,
    /// Question id, (unused,) passage id, grade: BEIR, MS MARCO, TREC.
    Qrels,
    /// Question id, positive id, negative id: MS MARCO's qidpidtriples.
    IdTriples,
    /// Question, positive and negative as text.
    TextTriples,
    /// Positive's score, negative's score, question id, positive id, negative id: files of margin-MSE teachers.
    ScoredTriples,
    /// DPR's retriever JSON: question, answers, positive_ctxs, negative_ctxs, hard_negative_ctxs.
    Dpr,
    /// Tevatron's training rows, with document ids or with passages inline.
    Tevatron,
    /// FlagEmbedding's rows: query, pos, neg and perhaps their scores.
    FlagEmbedding,
    /// sentence-transformers' triplets: anchor, positive, negative.
    Triplets,
    /// A query with passages and a score or label of each.
    ScoredLists,
}

impl FileFormat {
    /// Every format.
    pub const ALL: [FileFormat; 13] = [
        FileFormat::Tsv,
        FileFormat::Psgs,
        FileFormat::Jsonl,
        FileFormat::Qas,
        FileFormat::Qrels,
        FileFormat::IdTriples,
        FileFormat::TextTriples,
        FileFormat::ScoredTriples,
        FileFormat::Dpr,
        FileFormat::Tevatron,
        FileFormat::FlagEmbedding,
        FileFormat::Triplets,
        FileFormat::ScoredLists,
    ];

    /// Its name in specs and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            FileFormat::Tsv => "tsv",
            FileFormat::Psgs => "psgs",
            FileFormat::Jsonl => "jsonl",
            FileFormat::Qas => "qas",
            FileFormat::Qrels => "qrels",
            FileFormat::IdTriples => "id_triples",
            FileFormat::TextTriples => "text_triples",
            FileFormat::ScoredTriples => "scored_triples",
            FileFormat::Dpr => "dpr",
            FileFormat::Tevatron => "tevatron",
            FileFormat::FlagEmbedding => "flag_embedding",
            FileFormat::Triplets => "triplets",
            FileFormat::ScoredLists => "scored_lists",
        }
    }
}

impl fmt::Display for FileFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How accepted answers are looked for in passages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerRule {
    /// As a run of tokens (Karpukhin et al. 2020).
    #[default]
    Text,
    /// As a regular expression, case-insensitive: CuratedTREC.
    Regex,
}

/// A file, a folder, a glob or a URL, with its format where content does not tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileRef {
    /// Relative to `corpus.path`.
    pub path: String,
    /// The format; recognised by content without it.
    pub format: Option<FileFormat>,
}

/// One or several [`FileRef`]s: `"a.tsv"`, `{ path = "a.tsv", format = "tsv" }`, or a list of these.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileList(pub Vec<FileRef>);

impl FileList {
    /// Whether nothing is listed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for FileRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Table<'a> {
            path: &'a str,
            format: FileFormat,
        }
        match self.format {
            None => serializer.serialize_str(&self.path),
            Some(format) => Table { path: &self.path, format }.serialize(serializer),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileTable {
    path: String,
    format: Option<FileFormat>,
}

/// A visitor instead of an untagged enum, whose errors would not say which key is wrong.
struct FileVisitor;

impl<'de> Visitor<'de> for FileVisitor {
    type Value = FileRef;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a path or { path = …, format = … }")
    }

    fn visit_str<E: de::Error>(self, path: &str) -> Result<FileRef, E> {
        Ok(FileRef { path: path.to_owned(), format: None })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<FileRef, A::Error> {
        let FileTable { path, format } = FileTable::deserialize(de::value::MapAccessDeserializer::new(map))?;
        Ok(FileRef { path, format })
    }
}

impl<'de> Deserialize<'de> for FileRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FileVisitor)
    }
}

impl Serialize for FileList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

struct ListVisitor;

impl<'de> Visitor<'de> for ListVisitor {
    type Value = FileList;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a path, { path = …, format = … } or a list of these")
    }

    fn visit_str<E: de::Error>(self, path: &str) -> Result<FileList, E> {
        FileVisitor.visit_str(path).map(|file| FileList(vec![file]))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<FileList, A::Error> {
        FileVisitor.visit_map(map).map(|file| FileList(vec![file]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<FileList, A::Error> {
        let mut files = Vec::new();
        while let Some(file) = seq.next_element()? {
            files.push(file);
        }
        Ok(FileList(files))
    }
}

impl<'de> Deserialize<'de> for FileList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ListVisitor)
    }
}

/// A well-known data set in the layout in which it is distributed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CorpusPreset {
    /// MS MARCO passage ranking; judged on dev-small (Nguyen et al. 2016).
    #[serde(rename = "msmarco-passage")]
    MsMarcoPassage,
    /// Natural Questions in DPR's form (Karpukhin et al. 2020).
    #[serde(rename = "nq")]
    Nq,
    /// TriviaQA in DPR's form.
    #[serde(rename = "triviaqa")]
    TriviaQa,
    /// WebQuestions in DPR's form.
    #[serde(rename = "webquestions")]
    WebQuestions,
    /// CuratedTREC in DPR's form; its answers are regular expressions.
    #[serde(rename = "curatedtrec")]
    CuratedTrec,
    /// SQuAD 1.1 in DPR's form.
    #[serde(rename = "squad1")]
    Squad1,
}

impl CorpusPreset {
    /// Its name in DPR's files and in the names under which DPR's own script saves them.
    fn dpr_names(self) -> Option<(&'static str, &'static str)> {
        match self {
            CorpusPreset::MsMarcoPassage => None,
            CorpusPreset::Nq => Some(("nq", "nq")),
            CorpusPreset::TriviaQa => Some(("trivia", "trivia")),
            CorpusPreset::WebQuestions => Some(("webquestions", "webq")),
            CorpusPreset::CuratedTrec => Some(("curatedtrec", "curatedtrec")),
            CorpusPreset::Squad1 => Some(("squad1", "squad1")),
        }
    }

    /// The files a set may be, the first that exists counts.
    pub(super) fn set_files(self, set: &str) -> Vec<(String, FileFormat)> {
        let Some((published, saved)) = self.dpr_names() else {
            let names: &[&str] = match set {
                "dev" => &["qrels.dev.small.tsv", "qrels.dev.tsv"],
                "train" => &["qrels.train.tsv"],
                _ => return Vec::new(),
            };
            return names.iter().map(|name| ((*name).to_owned(), FileFormat::Qrels)).collect();
        };
        let mut files = Vec::new();
        if set != "test" {
            for name in [
                format!("biencoder-{published}-{set}.json"),
                format!("{saved}-{set}.json"),
                format!("retriever/{saved}-{set}.json"),
                format!("data/retriever/{saved}-{set}.json"),
            ] {
                files.push((name, FileFormat::Dpr));
            }
        }
        if set != "train" {
            let mut questions = Vec::new();
            for name in [
                format!("{published}-{set}.qa.csv"),
                format!("{saved}-{set}.qa.csv"),
                format!("{saved}-{set}.qas.csv"),
                format!("retriever/qas/{saved}-{set}.csv"),
                format!("data/retriever/qas/{saved}-{set}.csv"),
            ] {
                questions.push((name, FileFormat::Qas));
            }
            // Where questions with answers exist, accuracy is measured on them as published.
            questions.append(&mut files);
            files = questions;
        }
        files
    }

    fn format(self) -> CorpusFormat {
        if self.dpr_names().is_some() { CorpusFormat::Dpr } else { CorpusFormat::MsMarco }
    }

    /// Fills what the spec leaves open.
    fn fill(self, spec: &mut JobSpec) {
        if spec.corpus.format == CorpusFormat::Auto {
            spec.corpus.format = self.format();
        }
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        if spec.sets == Default::default() {
            spec.sets.train = names(&["train"]);
            match self {
                CorpusPreset::MsMarcoPassage => spec.sets.test = names(&["dev"]),
                CorpusPreset::Squad1 => {
                    spec.sets.dev = names(&["dev"]);
                    spec.sets.test = names(&["test"]);
                }
                _ => {
                    spec.sets.dev = names(&["dev"]);
                    spec.sets.test = names(&["test"]);
                }
            }
        }
        if self == CorpusPreset::CuratedTrec {
            spec.corpus.answers.get_or_insert(AnswerRule::Regex);
        }
        if spec.evaluate == Default::default() {
            if self == CorpusPreset::MsMarcoPassage {
                spec.evaluate.depth = 1000;
                spec.evaluate.metrics = names(&["mrr@10", "recall@1000", "recall@100", "ndcg@10"]);
            } else {
                spec.evaluate.metrics = names(&["accuracy@20", "accuracy@100", "accuracy@5", "accuracy@1"]);
            }
        }
    }
}

/// Fills what a preset gives and the spec leaves open. Filling twice changes nothing.
pub(super) fn fill_preset(spec: &mut JobSpec) {
    if let Some(preset) = spec.corpus.preset {
        preset.fill(spec);
    }
}

/// Where a layout keeps its files: of each list the first that exists counts, plain, as .gz or as .zst.
pub(super) struct Layout {
    pub passages: Vec<(String, FileFormat)>,
    pub queries: Vec<(String, FileFormat)>,
    /// Questions of a single set.
    pub set_queries: Vec<(String, FileFormat)>,
    pub set: Vec<(String, FileFormat)>,
    /// Whether the sets' own texts are the passages where there are no others.
    pub inline: bool,
}

impl Layout {
    /// The layout of a format for a set; `auto` is resolved before.
    pub fn of(format: CorpusFormat, preset: Option<CorpusPreset>, set: &str) -> Self {
        let own = |names: &[&str], format| -> Vec<(String, FileFormat)> {
            names.iter().map(|name| (name.replace("{set}", set), format)).collect()
        };
        let mut layout = Self {
            passages: Vec::new(),
            queries: Vec::new(),
            set_queries: Vec::new(),
            set: Vec::new(),
            inline: false,
        };
        match format {
            CorpusFormat::Auto | CorpusFormat::Beir => {
                layout.passages = own(&["corpus.jsonl"], FileFormat::Jsonl);
                layout.queries = own(&["queries.jsonl"], FileFormat::Jsonl);
                layout.set = own(&["qrels/{set}.tsv"], FileFormat::Qrels);
            }
            CorpusFormat::MsMarco => {
                layout.passages = own(&["collection.tsv"], FileFormat::Tsv);
                layout.queries = own(&["queries.tsv"], FileFormat::Tsv);
                layout.set_queries = own(&["queries.{set}.tsv", "queries.{set}.small.tsv"], FileFormat::Tsv);
                layout.set = own(&["qrels.{set}.tsv", "qrels/{set}.tsv"], FileFormat::Qrels);
                layout.set.extend(own(&["qidpidtriples.{set}.tsv"], FileFormat::IdTriples));
            }
            CorpusFormat::Dpr => {
                let names = [
                    "psgs_w100.tsv",
                    "wikipedia_split/psgs_w100.tsv",
                    "data/wikipedia_split/psgs_w100.tsv",
                    "psgs.tsv",
                ];
                layout.passages = own(&names, FileFormat::Psgs);
                layout.set = own(&["{set}.json", "retriever/{set}.json"], FileFormat::Dpr);
                let questions = ["{set}.qas.csv", "{set}.qa.csv", "{set}.qas.tsv", "{set}.csv"];
                layout.set.extend(own(&questions, FileFormat::Qas));
            }
            CorpusFormat::Tevatron => {
                layout.passages = own(&["corpus.jsonl"], FileFormat::Jsonl);
                layout.set = own(&["{set}.jsonl"], FileFormat::Tevatron);
                layout.inline = true;
            }
            CorpusFormat::FlagEmbedding => {
                layout.set = own(&["{set}.jsonl"], FileFormat::FlagEmbedding);
                layout.inline = true;
            }
            CorpusFormat::SentenceTransformers => {
                layout.set = own(&["{set}.jsonl"], FileFormat::Triplets);
                layout.inline = true;
            }
        }
        if let Some(preset) = preset {
            let mut set = preset.set_files(set);
            set.append(&mut layout.set);
            layout.set = set;
        }
        layout
    }

    /// The layouts that `auto` tries, in order.
    pub const TRIED: [CorpusFormat; 3] = [CorpusFormat::Beir, CorpusFormat::MsMarco, CorpusFormat::Dpr];
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let read = toml::from_str::<CorpusSpec>(&format!("path = \"data\"\n{text}"));
        let said = match read {
            Ok(spec) => serde_json::to_string(&spec).unwrap(),
            Err(error) => error.message().to_owned(),
        };
        assert!(said.contains(expected), "{text:?}: {said} lacks {expected:?}");
    }

    #[test]
    fn files_are_paths_tables_or_lists() {
        check("passages = \"a.tsv\"", "\"passages\":[\"a.tsv\"]");
        check("passages = { path = \"a\", format = \"psgs\" }", "[{\"path\":\"a\",\"format\":\"psgs\"}]");
        check("passages = [\"a\", { path = \"b\" }]", "\"passages\":[\"a\",\"b\"]");
        check("[sets]\ndev = \"dev.qas.csv\"", "\"sets\":{\"dev\":[\"dev.qas.csv\"]}");
        check("passages = 3", "a path, { path = …, format = … } or a list of these");
        check("passages = { path = \"a\", fromat = \"psgs\" }", "unknown field `fromat`");
        check("passages = { path = \"a\", format = \"csv\" }", "unknown variant `csv`");
        check("preset = \"nq\"", "\"preset\":\"nq\"");
    }

    #[test]
    fn lists_survive_json() {
        let text = "path = \"x\"\npassages = [\"a\", { path = \"b\", format = \"tsv\" }]";
        let spec: CorpusSpec = toml::from_str(text).unwrap();
        let json = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<CorpusSpec>(&json).unwrap(), spec);
        for format in FileFormat::ALL {
            assert_eq!(serde_json::to_value(format).unwrap(), format.name());
        }
    }

    #[test]
    fn a_preset_fills_what_is_open_and_nothing_else() {
        let text = "name = \"a\"\n[corpus]\npath = \"d\"\npreset = \"curatedtrec\"\n[teacher]\nmodel = \"m\"";
        let spec = super::super::parse(text, "a.toml", &[]).unwrap();
        assert_eq!((spec.corpus.format, spec.corpus.answers), (CorpusFormat::Dpr, Some(AnswerRule::Regex)));
        assert_eq!(
            (spec.sets.test.join(","), spec.evaluate.metrics[0].as_str()),
            ("test".into(), "accuracy@20")
        );
        let sets =
            [("evaluate.depth", "50"), ("evaluate.metrics", "[\"mrr@10\"]"), ("sets.test", "[\"own\"]")];
        let sets = sets.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let spec = super::super::parse(text, "a.toml", &sets).unwrap();
        assert_eq!(
            (spec.sets.test.join(","), spec.evaluate.metrics.join(",")),
            ("own".into(), "mrr@10".into())
        );
    }
}

//! Records that are JSON objects.

use super::record::{Candidate, Example, Passage, Question, Record, Role};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// An id, which some files write as a number.
#[derive(Deserialize)]
#[serde(untagged, expecting = "an id is a string or a whole number")]
enum Id {
    Text(String),
    Number(i64),
}

impl Id {
    fn text(self) -> String {
        match self {
            Id::Text(text) => text,
            Id::Number(number) => number.to_string(),
        }
    }
}

/// Parses one record. Each is parsed alone, so that the parser's own line number would only mislead.
fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|error| {
        let text = error.to_string();
        let text = text.replace(" at line 1 column ", " at column ");
        if text.contains("expected a sequence") {
            format!("{text}: a list must stand there, even of one: [\"…\"]")
        } else {
            text
        }
    })
}

#[derive(Deserialize)]
struct Object {
    #[serde(alias = "id", alias = "docid", alias = "document_id", alias = "query_id")]
    _id: Option<Id>,
    #[serde(default)]
    title: Option<String>,
    #[serde(
        alias = "document_text",
        alias = "contents",
        alias = "query",
        alias = "query_text",
        alias = "question"
    )]
    text: String,
    #[serde(default, alias = "answer")]
    answers: Option<Vec<String>>,
    #[serde(default)]
    metadata: Option<Metadata>,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    answers: Option<Vec<String>>,
}

/// A passage or a question with an id, as BEIR and Tevatron write them.
pub fn object(bytes: &[u8], role: Role) -> Result<Record, String> {
    let Object { _id, title, text, answers, metadata } = read(bytes)?;
    let answers = answers.or(metadata.and_then(|metadata| metadata.answers)).unwrap_or_default();
    let id = _id.map(Id::text);
    if role == Role::Passages {
        let id = id.ok_or("missing field `_id`")?;
        return Ok(Record::Passage(Passage { id, title: title.unwrap_or_default(), text }));
    }
    if role == Role::Questions && id.is_none() {
        return Err("missing field `_id`".to_owned());
    }
    Ok(Record::Question(Question { id, text: Some(text), answers }))
}

#[derive(Deserialize)]
struct DprRow {
    question: String,
    #[serde(default)]
    answers: Vec<String>,
    positive_ctxs: Vec<DprContext>,
    #[serde(default)]
    negative_ctxs: Vec<DprContext>,
    #[serde(default)]
    hard_negative_ctxs: Vec<DprContext>,
}

#[derive(Deserialize)]
struct DprContext {
    #[serde(default)]
    title: Option<String>,
    text: String,
    #[serde(default, alias = "psg_id", alias = "id")]
    passage_id: Option<Id>,
}

/// DPR's retriever JSON. Its scores are BM25's and no teacher's; hard negatives come before the others.
pub fn dpr(bytes: &[u8]) -> Result<Record, String> {
    let DprRow { question, answers, positive_ctxs, negative_ctxs, hard_negative_ctxs } = read(bytes)?;
    let candidate = |context: DprContext| Candidate {
        id: context.passage_id.map(Id::text),
        title: context.title.unwrap_or_default(),
        text: Some(context.text),
        score: None,
    };
    Ok(Record::Example(Box::new(Example {
        question: Question { id: None, text: Some(question.trim().to_owned()), answers },
        merges: false,
        positives: positive_ctxs.into_iter().map(candidate).collect(),
        negatives: hard_negative_ctxs.into_iter().chain(negative_ctxs).map(candidate).collect(),
    })))
}

#[derive(Deserialize)]
struct TevatronRow {
    query_id: Option<Id>,
    #[serde(alias = "query")]
    query_text: String,
    #[serde(default, alias = "answer")]
    answers: Option<Vec<String>>,
    #[serde(default)]
    positive_document_ids: Option<Vec<Id>>,
    #[serde(default)]
    negative_document_ids: Option<Vec<Id>>,
    #[serde(default)]
    positive_passages: Vec<Document>,
    #[serde(default)]
    negative_passages: Vec<Document>,
}

#[derive(Deserialize)]
struct Document {
    #[serde(default, alias = "_id", alias = "id")]
    docid: Option<Id>,
    #[serde(default)]
    title: Option<String>,
    #[serde(alias = "document_text", alias = "contents")]
    text: String,
}

impl From<Document> for Candidate {
    fn from(document: Document) -> Self {
        Candidate {
            id: document.docid.map(Id::text),
            title: document.title.unwrap_or_default(),
            text: Some(document.text),
            score: None,
        }
    }
}

/// Tevatron's rows: document ids, or passages inline in its older form.
pub fn tevatron(bytes: &[u8]) -> Result<Record, String> {
    let row: TevatronRow = read(bytes)?;
    let ids = |ids: Option<Vec<Id>>| {
        let candidate = |id: Id| Candidate { id: Some(id.text()), ..Candidate::default() };
        ids.unwrap_or_default().into_iter().map(candidate)
    };
    let inline = |documents: Vec<Document>| documents.into_iter().map(Candidate::from);
    Ok(Record::Example(Box::new(Example {
        question: Question {
            id: row.query_id.map(Id::text),
            text: Some(row.query_text),
            answers: row.answers.unwrap_or_default(),
        },
        merges: true,
        positives: ids(row.positive_document_ids).chain(inline(row.positive_passages)).collect(),
        negatives: ids(row.negative_document_ids).chain(inline(row.negative_passages)).collect(),
    })))
}

#[derive(Deserialize)]
struct FlagRow {
    query: String,
    pos: Vec<String>,
    #[serde(default)]
    neg: Vec<String>,
    #[serde(default)]
    pos_scores: Option<Vec<f64>>,
    #[serde(default)]
    neg_scores: Option<Vec<f64>>,
}

/// FlagEmbedding's rows.
pub fn flag_embedding(bytes: &[u8]) -> Result<Record, String> {
    let FlagRow { query, pos, neg, pos_scores, neg_scores } = read(bytes)?;
    Ok(Record::Example(Box::new(Example {
        question: Question { text: Some(query), ..Question::default() },
        merges: true,
        positives: scored("pos", pos, pos_scores)?,
        negatives: scored("neg", neg, neg_scores)?,
    })))
}

fn scored(name: &str, texts: Vec<String>, scores: Option<Vec<f64>>) -> Result<Vec<Candidate>, String> {
    // Files without a teacher's scores carry empty lists.
    let scores = scores.filter(|scores| !scores.is_empty());
    if let Some(scores) = scores.as_ref().filter(|scores| scores.len() != texts.len()) {
        return Err(format!("{} scores stand beside {} texts of {name:?}", scores.len(), texts.len()));
    }
    let score = |at: usize| scores.as_ref().map(|scores| scores[at]);
    let candidate = |(at, text)| Candidate { text: Some(text), score: score(at), ..Candidate::default() };
    Ok(texts.into_iter().enumerate().map(candidate).collect())
}

/// sentence-transformers' triplets: an object with anchor, positive and negatives, or a list of texts.
pub fn triplet(bytes: &[u8]) -> Result<Record, String> {
    let (query, positive, negatives) = if bytes.trim_ascii_start().first() == Some(&b'[') {
        let mut texts = read::<Vec<String>>(bytes)?.into_iter();
        let (Some(query), Some(positive)) = (texts.next(), texts.next()) else {
            return Err("a list of at least a question and a positive is expected".to_owned());
        };
        (query, positive, texts.collect())
    } else {
        named_triplet(read(bytes)?)?
    };
    let candidate = |text| Candidate { text: Some(text), ..Candidate::default() };
    Ok(Record::Example(Box::new(Example {
        question: Question { text: Some(query), ..Question::default() },
        merges: true,
        positives: vec![candidate(positive)],
        negatives: negatives.into_iter().map(candidate).collect(),
    })))
}

/// The columns of a triplet by name: "negative", or "negative_1" and so on in the order of the file.
fn named_triplet(
    row: serde_json::Map<String, serde_json::Value>,
) -> Result<(String, String, Vec<String>), String> {
    let (mut query, mut positive, mut negatives) = (None, None, Vec::new());
    for (key, value) in row {
        let is_query = ["anchor", "query", "question", "sentence"].contains(&key.as_str());
        let is_negative = key == "negative" || key.starts_with("negative_");
        if !is_query && !is_negative && key != "positive" {
            continue;
        }
        let serde_json::Value::String(text) = value else {
            return Err(format!("{key:?} must be a string, as triplets have one text in each column"));
        };
        match () {
            () if is_query => query = Some(text),
            () if is_negative => negatives.push((negative_number(&key), text)),
            () => positive = Some(text),
        }
    }
    negatives.sort();
    let query = query.ok_or("missing field `anchor`")?;
    let positive = positive.ok_or("missing field `positive`")?;
    Ok((query, positive, negatives.into_iter().map(|(_, text)| text).collect()))
}

fn negative_number(key: &str) -> u64 {
    key.rsplit('_').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[derive(Deserialize)]
struct ScoredRow {
    #[serde(default, alias = "_id")]
    query_id: Option<Id>,
    #[serde(alias = "query_text", alias = "anchor", alias = "question")]
    query: String,
    #[serde(alias = "documents", alias = "docs")]
    passages: Vec<TextOrDocument>,
    #[serde(default)]
    scores: Option<Vec<f64>>,
    #[serde(default)]
    labels: Option<Vec<f64>>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a passage is a string or an object with docid, title and text")]
enum TextOrDocument {
    Text(String),
    Document(Document),
}

/// A query with passages and a score or a label of each. Labels above 0 mark positives; without labels the passage
/// with the best score is the positive.
pub fn scored_list(bytes: &[u8]) -> Result<Record, String> {
    let ScoredRow { query_id, query, passages, scores, labels } = read(bytes)?;
    if passages.is_empty() {
        return Err("no passage is listed".to_owned());
    }
    let count = passages.len();
    for (name, values) in [("scores", &scores), ("labels", &labels)] {
        if let Some(values) = values.as_ref().filter(|values| values.len() != count) {
            return Err(format!("{} {name} stand beside {count} passages", values.len()));
        }
    }
    let mut best = 0;
    let is_positive: Vec<bool> = match (&labels, &scores) {
        (Some(labels), _) => labels.iter().map(|label| *label > 0.0).collect(),
        (None, Some(scores)) => {
            for (at, score) in scores.iter().enumerate() {
                best = if *score > scores[best] { at } else { best };
            }
            (0..count).map(|at| at == best).collect()
        }
        (None, None) => return Err("missing field `scores` or `labels`".to_owned()),
    };
    let (mut positives, mut negatives) = (Vec::new(), Vec::new());
    for (at, passage) in passages.into_iter().enumerate() {
        let mut candidate = match passage {
            TextOrDocument::Text(text) => Candidate { text: Some(text), ..Candidate::default() },
            TextOrDocument::Document(document) => Candidate::from(document),
        };
        candidate.score = scores.as_ref().map(|scores| scores[at]);
        if is_positive[at] { positives.push(candidate) } else { negatives.push(candidate) }
    }
    Ok(Record::Example(Box::new(Example {
        question: Question { id: query_id.map(Id::text), text: Some(query), ..Question::default() },
        merges: true,
        positives,
        negatives,
    })))
}

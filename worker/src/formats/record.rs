//! What files hold, whatever their format.

use retort_common::ids::Digest;

/// Longest id: it goes into runs, where it must not hold white space either.
pub const ID_BYTES: usize = 512;
/// Hexadecimal digits of a text's digest in an id made of it: 80 bits.
const DIGEST_DIGITS: usize = 20;

/// What a file is read for, where its format leaves that open: both a collection and its queries are id, tab, text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Passages of the corpus.
    Passages,
    /// Questions with their ids.
    Questions,
    /// A set: judgements, questions with answers, training examples.
    Set,
}

/// One record of a file.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A passage of the corpus.
    Passage(Passage),
    /// A question.
    Question(Question),
    /// A judgement.
    Judgement {
        /// The question's id.
        query: String,
        /// The passage's id.
        passage: String,
        /// Above 0 is relevant.
        grade: i64,
    },
    /// A question with passages that answer it and passages that don't.
    Example(Box<Example>),
}

/// A passage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Passage {
    /// Its id in the corpus.
    pub id: String,
    /// Its title; empty where there is none.
    pub title: String,
    /// Its body.
    pub text: String,
}

/// A question.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Question {
    /// Its id; DPR's questions have none.
    pub id: Option<String>,
    /// Its text; files of ids have none.
    pub text: Option<String>,
    /// Accepted answers.
    pub answers: Vec<String>,
}

/// A question with passages that answer it and passages that don't.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Example {
    /// The question.
    pub question: Question,
    /// Whether the same question in another record is the same question: DPR counts every record for itself.
    pub merges: bool,
    /// Passages that answer it.
    pub positives: Vec<Candidate>,
    /// Passages that don't.
    pub negatives: Vec<Candidate>,
}

/// A passage of an example: by id, by text or both.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Candidate {
    /// Its id in the corpus.
    pub id: Option<String>,
    /// Its title; empty where there is none.
    pub title: String,
    /// Its body, where the file brings it.
    pub text: Option<String>,
    /// A teacher's score of question and passage.
    pub score: Option<f64>,
}

impl Candidate {
    /// The passage, where the file brings its text; one without an id is named by its text.
    pub fn passage(&self) -> Option<Passage> {
        let text = self.text.clone()?;
        let id = self.id.clone().unwrap_or_else(|| passage_id(&self.title, &text));
        Some(Passage { id, title: self.title.clone(), text })
    }
}

/// The id of a passage that is known by its text only.
pub fn passage_id(title: &str, text: &str) -> String {
    let hex = Digest::of(format!("{title}\0{text}").as_bytes()).to_string();
    format!("t-{}", &hex[..DIGEST_DIGITS])
}

/// The id of a question that is known by its text only.
pub fn question_id(text: &str) -> String {
    let hex = Digest::of(text.as_bytes()).to_string();
    format!("q-{}", &hex[..DIGEST_DIGITS])
}

/// Refuses an id that no run could hold.
pub fn check_id(what: &str, id: &str) -> Result<(), String> {
    if id.is_empty() || id.len() > ID_BYTES || id.chars().any(char::is_whitespace) {
        let shown: String = id.chars().take(80).collect();
        return Err(format!("{what} {shown:?} must have 1 to {ID_BYTES} bytes and no white space"));
    }
    Ok(())
}

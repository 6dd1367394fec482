//! What the files of all sets say, by number instead of by id, so that many judgements take little memory.

use super::super::bench::{TaskError, Workbench};
use super::{BadRecords, for_each_record};
use crate::formats::{Candidate, Example, Question, Record, Role, question_id};
use retort_common::spec::inputs::DataFile;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Negatives of a question that are kept; files of triples repeat questions without end.
const GIVEN_PER_QUESTION: usize = 256;

/// 128 bits that stand for a passage: by its id, or by its text where it has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PassageKey(u128);

impl PassageKey {
    /// A passage's key by id.
    pub fn of_id(id: &str) -> Self {
        Self::of(0, id)
    }

    /// A passage's key by what a model reads of it.
    pub fn of_text(text: &str) -> Self {
        Self::of(1, text)
    }

    fn of(kind: u8, text: &str) -> Self {
        let half = |salt: u8| {
            let mut hasher = DefaultHasher::new();
            (salt, kind, text).hash(&mut hasher);
            u128::from(hasher.finish())
        };
        Self(half(0) << 64 | half(1))
    }

    fn of_candidate(candidate: &Candidate) -> Self {
        match (&candidate.id, &candidate.text) {
            (Some(id), _) => Self::of_id(id),
            (None, Some(text)) if candidate.title.is_empty() => Self::of_text(text),
            (None, text) => Self::of_text(&format!("{} {}", candidate.title, text.as_deref().unwrap_or(""))),
        }
    }
}

/// A line of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Which of the files, in the order of the sets.
    pub file: u32,
    /// Its line.
    pub line: u64,
}

/// A question that some set asks.
pub struct Asked {
    /// Its id.
    pub id: String,
    /// Where it was first met.
    pub place: Place,
    /// Its text, where the set's file brings it.
    pub text: Option<String>,
    /// Accepted answers that the set's file brings.
    pub answers: Vec<String>,
}

/// That a passage answers a question.
#[derive(Clone, Copy)]
pub struct Judged {
    /// Above 0 is relevant.
    pub grade: i64,
    /// Where it was first said.
    pub place: Place,
    /// Whether it was said by judgements, which say everything once.
    pub once: bool,
    /// A teacher's score.
    pub score: Option<f64>,
}

/// A passage that does not answer a question.
#[derive(Clone, Copy)]
pub struct Given {
    /// The passage's number.
    pub passage: u32,
    /// A teacher's score.
    pub score: Option<f64>,
    /// Where it was said.
    pub place: Place,
}

/// What the files of all sets say.
#[derive(Default)]
pub struct Gathered<'a> {
    /// The files in the order of the sets.
    pub files: Vec<&'a DataFile>,
    /// The sets' names.
    pub sets: Vec<&'a str>,
    /// The questions by number.
    pub asked: Vec<Asked>,
    numbers: HashMap<String, u32>,
    /// Passages by key.
    pub passages: HashMap<PassageKey, u32>,
    /// Whether some passage is known by its text only.
    pub by_text: bool,
    /// Which sets ask which questions.
    pub members: BTreeSet<(u32, u32)>,
    /// By set, question and passage.
    pub judged: BTreeMap<(u32, u32, u32), Judged>,
    /// Negatives by question.
    pub given: BTreeMap<u32, Vec<Given>>,
    /// Negatives beyond those that are kept.
    pub left_out: u64,
}

impl<'a> Gathered<'a> {
    /// Reads the files of all sets.
    pub fn read(
        bench: &Workbench<'_>,
        sets: &'a BTreeMap<String, Vec<DataFile>>,
        bad: &mut BadRecords,
    ) -> Result<Self, TaskError> {
        let mut gathered = Self::default();
        for (name, files) in sets {
            let set = gathered.sets.len() as u32;
            gathered.sets.push(name);
            let mut records = 0;
            for data in files {
                let file = gathered.files.len() as u32;
                gathered.files.push(data);
                for_each_record(bench, data, Role::Set, bad, |line, record, bad| {
                    records += 1;
                    let outcome = gathered.add(set, Place { file, line }, record, records);
                    outcome.or_else(|reason| bad.add(data, line, &reason))
                })?;
                bench.go_on()?;
            }
            if records == 0 {
                let urls: Vec<_> = files.iter().map(|data| data.file.url.as_str()).collect();
                let message =
                    format!("{}: set {name:?} holds no judgements and no questions", urls.join(", "));
                return Err(TaskError::Input(message));
            }
        }
        Ok(gathered)
    }

    /// The number of the question with this id.
    pub fn number(&self, id: &str) -> Option<u32> {
        self.numbers.get(id).copied()
    }

    fn add(&mut self, set: u32, place: Place, record: Record, count: u64) -> Result<(), String> {
        match record {
            Record::Judgement { query, passage, grade } => {
                let question =
                    self.ask(place, Question { id: Some(query.clone()), ..Question::default() })?;
                self.members.insert((set, question));
                let key = (set, question, self.passage(PassageKey::of_id(&passage)));
                match self.judged.entry(key) {
                    Entry::Occupied(entry) if entry.get().once => {
                        return Err(format!("question {query:?} judges passage {passage:?} twice"));
                    }
                    Entry::Occupied(_) => {}
                    Entry::Vacant(entry) => {
                        entry.insert(Judged { grade, place, once: true, score: None });
                    }
                }
            }
            Record::Question(question) => {
                if question.answers.is_empty() {
                    return Err("the question has neither judgements nor answers".to_owned());
                }
                let question = self.ask_new(set, place, question, count)?;
                self.members.insert((set, question));
            }
            Record::Example(example) => self.example(set, place, *example, count)?,
            Record::Passage(_) => return Err("a passage stands where a set is expected".to_owned()),
        }
        Ok(())
    }

    fn example(&mut self, set: u32, place: Place, example: Example, count: u64) -> Result<(), String> {
        let Example { question, merges, positives, negatives } = example;
        if positives.is_empty() && question.answers.is_empty() {
            return Err("the question has neither positives nor answers".to_owned());
        }
        let question =
            if merges { self.ask(place, question)? } else { self.ask_new(set, place, question, count)? };
        self.members.insert((set, question));
        for positive in &positives {
            let key = (set, question, self.candidate(positive));
            let judged = Judged { grade: 1, place, once: false, score: positive.score };
            let known = self.judged.entry(key).or_insert(judged);
            known.score = known.score.or(positive.score);
        }
        for negative in &negatives {
            let passage = self.candidate(negative);
            let given = self.given.entry(question).or_default();
            if let Some(known) = given.iter_mut().find(|other| other.passage == passage) {
                known.score = known.score.or(negative.score);
                continue;
            }
            if given.len() == GIVEN_PER_QUESTION {
                self.left_out += 1;
                continue;
            }
            given.push(Given { passage, score: negative.score, place });
        }
        Ok(())
    }

    /// The number of a question; one without an id is named by its text.
    fn ask(&mut self, place: Place, question: Question) -> Result<u32, String> {
        let Question { id, text, answers } = question;
        let id = match (id, &text) {
            (Some(id), _) => id,
            (None, Some(text)) => question_id(text),
            (None, None) => return Err("the question has neither id nor text".to_owned()),
        };
        if let Some(number) = self.numbers.get(&id) {
            let asked = &mut self.asked[*number as usize];
            match (&asked.text, text) {
                (Some(own), Some(text)) if *own != text => {
                    return Err(format!("question {id:?} has another text here than before"));
                }
                (None, text) => asked.text = text,
                _ => {}
            }
            if asked.answers.is_empty() {
                asked.answers = answers;
            }
            return Ok(*number);
        }
        let number = self.asked.len() as u32;
        self.numbers.insert(id.clone(), number);
        self.asked.push(Asked { id, place, text, answers });
        Ok(number)
    }

    /// The number of a question that counts for itself whatever its text, named by its place in the set.
    fn ask_new(&mut self, set: u32, place: Place, mut question: Question, count: u64) -> Result<u32, String> {
        let id = question.id.take().unwrap_or_else(|| format!("{}-{count}", self.sets[set as usize]));
        if self.numbers.contains_key(&id) {
            return Err(format!("question {id:?} stands in the sets twice"));
        }
        question.id = Some(id);
        self.ask(place, question)
    }

    fn candidate(&mut self, candidate: &Candidate) -> u32 {
        self.by_text |= candidate.id.is_none();
        self.passage(PassageKey::of_candidate(candidate))
    }

    fn passage(&mut self, key: PassageKey) -> u32 {
        let next = self.passages.len() as u32;
        *self.passages.entry(key).or_insert(next)
    }
}

/// The id, or the beginning of the text, of the passage with a key that a line names: told only where it is missing.
pub fn describe(bench: &Workbench<'_>, data: &DataFile, line: u64, key: PassageKey) -> String {
    let mut found = None;
    let mut look = |candidate: &Candidate| {
        if PassageKey::of_candidate(candidate) == key {
            let text = candidate.id.as_ref().or(candidate.text.as_ref());
            found = text.map(|text| text.chars().take(60).collect::<String>());
        }
    };
    let mut ignored = BadRecords::new(u64::MAX);
    // The file was read and verified a moment ago; if it fails now, the line alone has to do.
    let _ = for_each_record(bench, data, Role::Set, &mut ignored, |at, record, _| {
        match record {
            _ if at < line => return Ok(()),
            _ if at > line => return Err(TaskError::Stopped),
            Record::Judgement { passage, .. } => {
                look(&Candidate { id: Some(passage), ..Candidate::default() })
            }
            Record::Example(example) => {
                example.positives.iter().chain(&example.negatives).for_each(&mut look)
            }
            _ => {}
        }
        Ok(())
    });
    found.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_score_of_a_pair_counts_whichever_record_brings_it() {
        let candidate =
            |id: &str, score| Candidate { id: Some(id.to_owned()), score, ..Candidate::default() };
        let example = |positive, negative| Example {
            question: Question { id: Some("q".to_owned()), ..Question::default() },
            merges: true,
            positives: vec![candidate("right", positive)],
            negatives: vec![candidate("wrong", negative)],
        };
        let mut gathered = Gathered { sets: vec!["train"], ..Gathered::default() };
        for (line, (positive, negative)) in
            [(None, Some(1.0)), (Some(5.0), Some(2.0)), (Some(6.0), None)].into_iter().enumerate()
        {
            let place = Place { file: 0, line: line as u64 };
            let record = Record::Example(Box::new(example(positive, negative)));
            gathered.add(0, place, record, line as u64 + 1).unwrap();
        }
        let judged: Vec<_> =
            gathered.judged.values().map(|judged| (judged.place.line, judged.score)).collect();
        assert_eq!(judged, [(0, Some(5.0))]);
        let given: Vec<_> = gathered.given[&0].iter().map(|given| (given.place.line, given.score)).collect();
        assert_eq!(given, [(0, Some(1.0))]);
    }
}

//! What a data set holds and what is wrong with it: counts, lengths, duplicates, ids that lead nowhere.

use super::read::read_source;
use super::recognise::{Layout, SAMPLE_BYTES, recognise, role_of};
use super::record::{Candidate, Example, Question, Record, Role, question_id};
use super::source::Source;
use retort_common::spec::FileFormat;
use retort_common::store::Location;
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use tokio::runtime::Handle;

/// Examples told of each kind of problem in a file.
const EXAMPLES: usize = 5;
/// Endings of files that hold data, without those of compression.
const DATA_ENDINGS: [&str; 6] = [".tsv", ".csv", ".json", ".jsonl", ".qrels", ".txt"];

/// A file to check.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Where it lies.
    pub location: Location,
    /// What it serves for; guessed without it.
    pub role: Option<Role>,
    /// Its format; recognised without it.
    pub format: Option<FileFormat>,
    /// Whether the user named it, rather than a folder it lies in.
    pub named: bool,
}

/// What was found.
#[derive(Debug, Default, Serialize)]
pub struct DatasetReport {
    /// The files in the order in which they were read: passages, questions, sets.
    pub files: Vec<FileReport>,
    /// Files that hold no data, and why.
    pub skipped: Vec<String>,
    /// What is wrong: a job over these files would fail or mislead.
    pub problems: Vec<String>,
    /// What is remarkable and may be meant.
    pub notices: Vec<String>,
}

/// What a file holds.
#[derive(Debug, Default, Serialize)]
pub struct FileReport {
    /// Where it lies.
    pub file: String,
    /// What it is.
    pub format: String,
    /// What it serves for: passages, queries or a set.
    pub role: &'static str,
    /// Its size as it lies there.
    pub bytes: u64,
    /// Records that can be read.
    pub records: u64,
    /// Records that cannot.
    pub bad_records: u64,
    /// Passages, with those of training rows.
    pub passages: u64,
    /// Different questions.
    pub questions: u64,
    /// Questions with accepted answers.
    pub with_answers: u64,
    /// Pairs of a question and a passage that answers it.
    pub positives: u64,
    /// Pairs of a question and a passage that does not.
    pub negatives: u64,
    /// Pairs with a teacher's score.
    pub scores: u64,
    /// Passages or questions whose text stands in the data set before.
    pub repeated_texts: u64,
    /// Lengths of the texts.
    pub characters: Lengths,
}

/// Lengths of texts in characters.
#[derive(Debug, Default, Serialize)]
pub struct Lengths {
    /// Texts.
    pub texts: u64,
    /// The shortest.
    pub least: u64,
    /// The mean; 0 without texts.
    pub mean: f64,
    /// The longest.
    pub most: u64,
    #[serde(skip)]
    sum: u64,
}

impl Lengths {
    fn add(&mut self, text: &str) {
        let length = text.chars().count() as u64;
        self.least = if self.texts == 0 { length } else { self.least.min(length) };
        self.most = self.most.max(length);
        self.texts += 1;
        self.sum += length;
        self.mean = self.sum as f64 / self.texts as f64;
    }
}

/// Reads every subject and sets them against each other: passages first, then questions, then sets.
pub fn check(subjects: Vec<Subject>, threads: usize, runtime: &Handle) -> DatasetReport {
    let mut checker = Checker::default();
    let mut known = Vec::new();
    for subject in subjects {
        match classify(&subject, runtime) {
            Ok((role, layout)) => known.push((role, layout, subject)),
            Err(reason) if subject.named || holds_data(&subject.location) => {
                checker.report.problems.push(format!("{}: {reason}", subject.location));
            }
            Err(reason) => checker.report.skipped.push(format!("{}: {reason}", subject.location)),
        }
    }
    known.sort_by_key(|(role, _, _)| *role as u8);
    checker.has_passages = known.iter().any(|(role, _, _)| *role == Role::Passages);
    for (role, layout, subject) in known {
        checker.file(role, &layout, &subject, threads, runtime);
    }
    checker.finish()
}

fn holds_data(location: &Location) -> bool {
    let name = location.to_string().to_lowercase();
    let name = name.trim_end_matches(".gz").trim_end_matches(".zst");
    DATA_ENDINGS[..4].iter().any(|ending| name.ends_with(ending))
}

fn classify(subject: &Subject, runtime: &Handle) -> Result<(Role, Layout), String> {
    let source = Source::open(&subject.location, runtime).map_err(|error| error.to_string())?;
    let source = source.ok_or("does not exist; correct the path")?;
    let mut sample = Vec::new();
    source
        .take(SAMPLE_BYTES as u64)
        .read_to_end(&mut sample)
        .map_err(|error| format!("{error}; a compressed file may be damaged or truncated: fetch it again"))?;
    let sample = sample.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&sample);
    let role = match subject.role {
        Some(role) => role,
        None => role_of(sample, subject.format, &subject.location.to_string())?,
    };
    Ok((role, recognise(sample, subject.format, role)?))
}

/// What is known of a question over all sets.
#[derive(Default)]
struct AskedQuestion {
    set: u32,
    positive: bool,
    answers: bool,
}

#[derive(Default)]
struct Checker {
    report: DatasetReport,
    has_passages: bool,
    passage_ids: HashSet<u64>,
    passage_texts: HashSet<u64>,
    question_ids: HashSet<u64>,
    question_texts: HashSet<u64>,
    /// Questions of files of questions, or none of these are checked.
    has_questions: bool,
    asked: HashMap<u64, AskedQuestion>,
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// Problems of one file, counted by kind, with the first few told.
#[derive(Default)]
struct Problems {
    kinds: Vec<(&'static str, u64, Vec<String>)>,
}

impl Problems {
    fn add(&mut self, kind: &'static str, example: impl FnOnce() -> String) {
        let at = self.kinds.iter().position(|(own, _, _)| *own == kind).unwrap_or_else(|| {
            self.kinds.push((kind, 0, Vec::new()));
            self.kinds.len() - 1
        });
        let (_, count, examples) = &mut self.kinds[at];
        *count += 1;
        if examples.len() < EXAMPLES {
            examples.push(example());
        }
    }

    fn tell(self, file: &str, to: &mut Vec<String>) {
        for (kind, count, examples) in self.kinds {
            let shown = examples.join("; ");
            let more = if count > examples.len() as u64 { "; …" } else { "" };
            to.push(format!("{file}: {count} {kind}: {shown}{more}"));
        }
    }
}

impl Checker {
    fn file(&mut self, role: Role, layout: &Layout, subject: &Subject, threads: usize, runtime: &Handle) {
        let name = subject.location.to_string();
        let mut own = FileReport {
            file: name.clone(),
            format: layout.format.to_string(),
            role: match role {
                Role::Passages => "passages",
                Role::Questions => "queries",
                Role::Set => "set",
            },
            ..FileReport::default()
        };
        let mut problems = Problems::default();
        let (set, mut met) = (self.report.files.len() as u32, HashSet::new());
        self.has_questions |= role == Role::Questions;
        let source = Source::open(&subject.location, runtime).ok().flatten();
        let outcome = source.map(|source| {
            read_source(&name, source, Some(layout.format), role, threads, |_, line, record| {
                match record {
                    Ok(record) => {
                        own.records += 1;
                        let place = Place { role, line, set };
                        self.record(&place, record, &mut own, &mut met, &mut problems);
                    }
                    Err(reason) => {
                        own.bad_records += 1;
                        problems.add("bad records", || format!("line {line}: {reason}"));
                    }
                }
                Ok::<(), String>(())
            })
        });
        own.questions = met.len() as u64;
        match outcome {
            Some(Ok(summary)) => own.bytes = summary.bytes,
            Some(Err(error)) => self.report.problems.push(error.to_string()),
            None => self.report.problems.push(format!("{name}: could not be opened a second time")),
        }
        if own.records == 0 && own.bad_records == 0 {
            self.report.problems.push(format!("{name}: holds no records"));
        }
        problems.tell(&name, &mut self.report.problems);
        if role == Role::Set {
            self.without_positives(set, &name);
        }
        if own.repeated_texts > 0 {
            let what = if role == Role::Passages { "passages" } else { "questions" };
            self.report
                .notices
                .push(format!("{name}: the text of {} {what} stands before", own.repeated_texts));
        }
        self.report.files.push(own);
    }

    fn record(
        &mut self,
        place: &Place,
        record: Record,
        own: &mut FileReport,
        met: &mut HashSet<u64>,
        problems: &mut Problems,
    ) {
        match record {
            Record::Passage(passage) => {
                own.passages += 1;
                own.characters.add(&passage.text);
                if !self.passage_ids.insert(hash(&passage.id)) {
                    problems.add("ids that stand before", || place.tell(&passage.id));
                }
                let text = model_text(&passage.title, &passage.text);
                own.repeated_texts += u64::from(!self.passage_texts.insert(hash(&text)));
            }
            Record::Question(question) => {
                let text = question.text.clone().unwrap_or_default();
                own.characters.add(&text);
                own.with_answers += u64::from(!question.answers.is_empty());
                if place.role == Role::Questions {
                    let id = question.id.clone().unwrap_or_default();
                    met.insert(hash(&id));
                    own.repeated_texts += u64::from(!self.question_texts.insert(hash(&text)));
                    if !self.question_ids.insert(hash(&id)) {
                        problems.add("ids that stand before", || place.tell(&id));
                    }
                } else {
                    self.ask(place, &question, false, own, met, problems);
                }
            }
            Record::Judgement { query, passage, grade } => {
                let question = Question { id: Some(query.clone()), ..Question::default() };
                self.ask(place, &question, grade > 0, own, met, problems);
                own.positives += u64::from(grade > 0);
                own.negatives += u64::from(grade <= 0);
                let candidate = Candidate { id: Some(passage.clone()), ..Candidate::default() };
                self.find(place, &candidate, problems);
                if !met.insert(hash(&format!("{query}\0{passage}"))) {
                    problems
                        .add("judgements that stand before", || place.tell(&format!("{query} {passage}")));
                }
            }
            Record::Example(example) if place.role == Role::Passages => {
                for passage in
                    example.positives.iter().chain(&example.negatives).filter_map(Candidate::passage)
                {
                    if self.passage_ids.insert(hash(&passage.id)) {
                        own.passages += 1;
                        own.characters.add(&passage.text);
                        self.passage_texts.insert(hash(&model_text(&passage.title, &passage.text)));
                    }
                }
            }
            Record::Example(example) => self.example(place, &example, own, met, problems),
        }
    }

    fn example(
        &mut self,
        place: &Place,
        example: &Example,
        own: &mut FileReport,
        met: &mut HashSet<u64>,
        problems: &mut Problems,
    ) {
        if let Some(text) = &example.question.text {
            own.characters.add(text);
        }
        own.with_answers += u64::from(!example.question.answers.is_empty());
        own.positives += example.positives.len() as u64;
        own.negatives += example.negatives.len() as u64;
        self.ask(place, &example.question, !example.positives.is_empty(), own, met, problems);
        for candidate in example.positives.iter().chain(&example.negatives) {
            own.scores += u64::from(candidate.score.is_some());
            self.find(place, candidate, problems);
        }
    }

    /// A set asks a question.
    fn ask(
        &mut self,
        place: &Place,
        question: &Question,
        positive: bool,
        own: &mut FileReport,
        met: &mut HashSet<u64>,
        problems: &mut Problems,
    ) {
        let key = match (&question.id, &question.text) {
            (Some(id), _) => id.clone(),
            (None, Some(text)) => question_id(text),
            (None, None) => String::new(),
        };
        if question.text.is_none() && self.has_questions && !self.question_ids.contains(&hash(&key)) {
            problems.add("unknown questions", || place.tell(&key));
        }
        let repeated = !met.insert(hash(&key));
        // Files without ids count every record for itself.
        own.repeated_texts +=
            u64::from(repeated && question.id.is_none() && own.negatives == 0 && own.scores == 0);
        let asked = self.asked.entry(hash(&format!("{}\0{key}", place.set))).or_default();
        asked.set = place.set;
        asked.positive |= positive;
        asked.answers |= !question.answers.is_empty();
    }

    fn find(&mut self, place: &Place, candidate: &Candidate, problems: &mut Problems) {
        if !self.has_passages {
            return;
        }
        let known = match (&candidate.id, &candidate.text) {
            (Some(id), _) => self.passage_ids.contains(&hash(id)),
            (None, Some(text)) => self.passage_texts.contains(&hash(&model_text(&candidate.title, text))),
            (None, None) => true,
        };
        if !known {
            let text = candidate.id.as_ref().or(candidate.text.as_ref()).cloned().unwrap_or_default();
            problems.add("unknown passages", || place.tell(&text));
        }
    }

    fn without_positives(&mut self, set: u32, name: &str) {
        let own = self.asked.values().filter(|asked| asked.set == set);
        let count = own.clone().filter(|asked| !asked.positive && !asked.answers).count();
        if count > 0 {
            self.report
                .problems
                .push(format!("{name}: {count} questions have neither positives nor answers"));
        }
        let answers_only = own.filter(|asked| !asked.positive && asked.answers).count();
        if answers_only > 0 {
            let what = "questions are judged by their answers alone";
            self.report.notices.push(format!("{name}: {answers_only} {what}"));
        }
    }

    fn finish(mut self) -> DatasetReport {
        let sets = self.report.files.iter().any(|file| file.role == "set");
        if sets && !self.has_passages {
            let text = "no file of passages is among these; ids of passages were not checked".to_owned();
            self.report.notices.push(text);
        }
        if self.report.files.is_empty() && self.report.problems.is_empty() {
            self.report.problems.push("none of these files holds data of a known format".to_owned());
        }
        self.report
    }
}

/// Where a record stands.
struct Place {
    role: Role,
    line: u64,
    set: u32,
}

impl Place {
    fn tell(&self, what: &str) -> String {
        let short: String = what.chars().take(60).collect();
        format!("line {}: {short:?}", self.line)
    }
}

fn model_text(title: &str, text: &str) -> String {
    if title.is_empty() { text.to_owned() } else { format!("{title} {text}") }
}

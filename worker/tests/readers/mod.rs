//! Genuine records of the data sets that presets name, as they are distributed, and what damage does to every format.
//!
//! Questions and answers: Natural Questions (CC BY-SA 3.0), TriviaQA (Apache 2.0), WebQuestions (CC BY 4.0), CuratedTREC
//! (TREC QA, NIST), SQuAD 1.1 (CC BY-SA 4.0), all in the form of DPR's downloads; passages: Wikipedia (CC BY-SA 3.0).

/// The fuzz targets' own code: one line in each target chooses the format.
#[path = "../../../fuzz/src/lib.rs"]
mod fuzz;

use proptest::prelude::*;
use retort_common::spec::FileFormat;
use retort_worker::formats::source::Source;
use retort_worker::formats::{Record, Role, read_source};
use retort_worker::metrics::answers::{Answer, AnswerText};
use std::io::Cursor;

/// First and last questions of nq-test, trivia-test, webquestions-test, curatedtrec-test and squad1-test.
const QUESTIONS: [(&str, &str); 5] = [
    (
        "nq",
        "who got the first nobel prize in physics\t['Wilhelm Conrad Röntgen']\n\
         when did computer become widespread in homes and schools\t['1980s']\n",
    ),
    (
        "triviaqa",
        "Who was the man behind The Chipmunks?\t['David Seville']\n\
         In what outdoor sport, sanctioned by the NHPA, do you score 3 points for a ringer, 2 for a leaner, and the \
         closet scores a point?\t['Horseshoe pit', 'Horseshoes (game)', 'Horseshoes', 'Horseshoe Pitching', 'Horse \
         shoes', 'Horseshoe pitching', 'Horseshoe throwing']\n",
    ),
    (
        "webquestions",
        "what does jamaican people speak?\t['Jamaican Creole English Language', 'Jamaican English']\n\
         when was father chris riley born?\t['1967']\n",
    ),
    (
        "curatedtrec",
        "How tall is Mount McKinley?\t['20\\\\s?,?\\\\s?(32|40)0\\\\s?-?\\\\s?f(ee|oo)t|6,194-meter|20,?237\\\\s*\
         f(oo|ee)?t|20,?073\\\\s*f(oo|ee)?t|6,?168\\\\s*m|6,118\\\\s*m|6\\\\,194 m|20\\\\,322 feet']\n\
         What state is the geographic center of the lower 48 states?\t['Kansas']\n",
    ),
    (
        "squad1",
        "Which NFL team represented the AFC at Super Bowl 50?\t['Denver Broncos', 'Denver Broncos', 'Denver Broncos']\n\
         What is the seldom used force unit equal to one thousand newtons?\t[\"sthène\", 'sthène', \"sthène\"]\n",
    ),
];

/// A record of biencoder-nq-dev.json, its passages shortened.
const TRAINING: &str = r#"[
    {
        "dataset": "nq_dev_psgs_w100",
        "question": "who sings does he love me with reba",
        "answers": [
            "Linda Davis"
        ],
        "positive_ctxs": [
            {
                "title": "Does He Love You",
                "text": "Does He Love You \"Does He Love You\" is a song written by Sandy Knox and Billy Stritch, and recorded as a duet by American country music artists Reba McEntire and Linda Davis.",
                "score": 13.394315,
                "title_score": 0,
                "passage_id": "11828866"
            },
            {
                "title": "Red Sandy Spika dress of Reba McEntire",
                "text": "Red Sandy Spika dress of Reba McEntire American recording artist Reba McEntire wore a sheer red dress to the 1993 Country Music Association Awards ceremony on September 29, 1993.",
                "score": 12.924647,
                "title_score": 0,
                "passage_id": "15632586"
            }
        ],
        "negative_ctxs": [
            {
                "title": "Pragmatic Sanction of 1549",
                "text": "one heir, Charles effectively united the Netherlands as one entity.",
                "score": 0,
                "title_score": 0,
                "passage_id": "2271902"
            }
        ],
        "hard_negative_ctxs": []
    }
]"#;

/// A line of psgs_w100.tsv, shortened.
const PASSAGES: &str = "id\ttext\ttitle\n11828866\t\"Does He Love You \"\"Does He Love You\"\" is a song written by Sandy \
                        Knox and Billy Stritch, and recorded as a duet by American country music artists Reba McEntire and \
                        Linda Davis.\"\tDoes He Love You\n";

/// The other formats, a record or two each.
const OTHERS: [(FileFormat, &str); 12] = [
    (FileFormat::Tsv, "7\ta passage\r\n8\t\"quoted\" text\n"),
    (
        FileFormat::Jsonl,
        "{\"_id\": \"a\", \"title\": null, \"text\": \"x\", \"metadata\": {\"answers\": [\"y\"]}}\n",
    ),
    (FileFormat::Qrels, "query-id\tcorpus-id\tscore\na\tb\t1\n"),
    (FileFormat::Qrels, "19335 Q0 1017759 0\n19335 Q0 1729 2\n"),
    (FileFormat::IdTriples, "1\t234\t567\n2\t3\t4\n"),
    (FileFormat::TextTriples, "what is it\tthis is\tthat was\n"),
    (FileFormat::ScoredTriples, "11.5\t-3e-1\t1\t234\t567\n"),
    (
        FileFormat::Tevatron,
        r#"{"query_id": "q", "query": "x", "positive_passages": [{"docid": "1", "title": "t", "text": "y"}], "negative_passages": []}"#,
    ),
    (
        FileFormat::FlagEmbedding,
        r#"{"query": "x", "pos": ["a"], "neg": ["b", "c"], "pos_scores": [0.5], "neg_scores": [0.25, 0.125]}"#,
    ),
    (FileFormat::Triplets, r#"{"anchor": "x", "positive": "a", "negative_2": "c", "negative_1": "b"}"#),
    (
        FileFormat::ScoredLists,
        r#"{"query": "x", "passages": ["a", {"docid": "7", "text": "b"}], "scores": [0.5, 2.0]}"#,
    ),
    (FileFormat::ScoredLists, "{\"query\": \"x\", \"docs\": [\"a\", \"b\"], \"labels\": [0, 1]}\n"),
];

fn samples() -> Vec<(FileFormat, &'static str)> {
    let questions = QUESTIONS.iter().map(|(_, text)| (FileFormat::Qas, *text));
    questions.chain([(FileFormat::Dpr, TRAINING), (FileFormat::Psgs, PASSAGES)]).chain(OTHERS).collect()
}

/// The format that bytes are taken for and their records, bad ones as the reason; none where reading ends early.
fn records(
    bytes: &[u8],
    format: Option<FileFormat>,
    role: Role,
) -> Option<(FileFormat, Vec<Result<Record, String>>)> {
    let source = Source::over(Box::new(Cursor::new(bytes.to_vec()))).ok()?;
    let mut found = Vec::new();
    let outcome = read_source("FILE", source, format, role, 1, |_, _, record| {
        found.push(record);
        Ok::<(), String>(())
    });
    outcome.ok().map(|summary| (summary.layout.format, found))
}

fn role_of(format: FileFormat) -> Role {
    match format {
        FileFormat::Psgs | FileFormat::Tsv | FileFormat::Jsonl => Role::Passages,
        _ => Role::Set,
    }
}

#[test]
fn questions_of_five_sets_are_read_as_distributed() {
    // A passage that answers the first question, by the set's own rule, and one that does not.
    let passages = [
        ("In 1901 Wilhelm Conrad Röntgen received the prize.", "Conrad Röntgen"),
        ("The group of David Seville, in 1958", "Seville, David"),
        ("They speak Jamaican English there", "Jamaican"),
        ("Denali is 20,320 feet high", "It is 20,000 feet high"),
        ("The Denver Broncos won", "Broncos of Denver"),
    ];
    for ((set, text), (holds, lacks)) in QUESTIONS.into_iter().zip(passages) {
        let (format, found) = records(text.as_bytes(), None, Role::Set).unwrap();
        assert_eq!((format, found.len()), (FileFormat::Qas, 2), "{set}");
        let answers: Vec<_> = found
            .into_iter()
            .map(|record| match record {
                Ok(Record::Question(question)) => question.answers,
                other => panic!("{set}: {other:?}"),
            })
            .collect();
        let make = if set == "curatedtrec" { Answer::pattern } else { Answer::text };
        let first: Vec<Answer> = answers[0].iter().map(|answer| make(answer)).collect();
        assert!(AnswerText::new(holds).has_any(&first), "{set}: {:?}", answers[0]);
        assert!(!AnswerText::new(lacks).has_any(&first), "{set}: {:?}", answers[0]);
    }
}

#[test]
fn training_records_and_passages_agree_on_ids_and_texts() {
    let (format, found) = records(TRAINING.as_bytes(), None, Role::Set).unwrap();
    assert_eq!(format, FileFormat::Dpr);
    let [Ok(Record::Example(example))] = &found[..] else { panic!("{found:?}") };
    assert_eq!(example.question.answers, ["Linda Davis"]);
    assert_eq!((example.positives.len(), example.negatives.len()), (2, 1));
    assert_eq!(example.negatives[0].id.as_deref(), Some("2271902"));
    let (format, found) = records(PASSAGES.as_bytes(), None, Role::Passages).unwrap();
    assert_eq!(format, FileFormat::Psgs);
    let [Ok(Record::Passage(passage))] = &found[..] else { panic!("{found:?}") };
    let positive = &example.positives[0];
    assert_eq!(positive.id.as_ref(), Some(&passage.id));
    assert_eq!((positive.text.as_ref(), &positive.title), (Some(&passage.text), &passage.title));
}

#[test]
fn samples_are_recognised_and_whole() {
    for (format, text) in samples() {
        let (found, records) = records(text.as_bytes(), None, role_of(format)).unwrap();
        assert_eq!(found, format, "{text:?}");
        assert!(!records.is_empty() && records.iter().all(Result::is_ok), "{text:?}: {records:?}");
    }
}

/// A change to a file: what is done, where (as a share of its length), and with which byte.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Flip(f64, u8),
    Insert(f64, u8),
    Cut(f64),
    Remove(f64, f64),
    Repeat(f64, f64),
}

impl Damage {
    fn apply(self, bytes: &mut Vec<u8>) {
        let at = |share: f64, bytes: &[u8]| (share * bytes.len() as f64) as usize;
        let range = |a: f64, b: f64, bytes: &[u8]| at(a.min(b), bytes)..at(a.max(b), bytes);
        match self {
            Damage::Flip(share, mask) => {
                let at = at(share, bytes);
                bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= mask);
            }
            Damage::Insert(share, byte) => bytes.insert(at(share, bytes), byte),
            Damage::Cut(share) => bytes.truncate(at(share, bytes)),
            Damage::Remove(a, b) => drop(bytes.drain(range(a, b, bytes))),
            Damage::Repeat(a, b) => bytes.extend_from_within(range(a, b, bytes)),
        }
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    let share = || 0.0f64..1.0;
    // Bytes that mean something to some format come as often as all others.
    let byte =
        || prop_oneof![any::<u8>(), prop::sample::select(b"\t\n\r\"'[]{}:,\\ \x1f\x8b\xff\x000".to_vec())];
    prop_oneof![
        (share(), byte()).prop_map(|(at, byte)| Damage::Flip(at, byte)),
        (share(), byte()).prop_map(|(at, byte)| Damage::Insert(at, byte)),
        share().prop_map(Damage::Cut),
        (share(), share()).prop_map(|(a, b)| Damage::Remove(a, b)),
        (share(), share()).prop_map(|(a, b)| Damage::Repeat(a, b)),
    ]
}

/// Every fuzz target over a sample of its format with some damage: a panic, a hang or memory beyond bounds ends the test.
fn no_damage_panics(cases: u32) {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) };
    let all = samples();
    let inputs = (0..all.len(), prop::collection::vec(damage(), 1..6), any::<bool>());
    let outcome =
        proptest::test_runner::TestRunner::new(config).run(&inputs, |(sample, damages, compressed)| {
            let (format, text) = all[sample];
            let mut bytes = text.as_bytes().to_vec();
            if compressed {
                let level = ruzstd::encoding::CompressionLevel::Fastest;
                bytes = ruzstd::encoding::compress_to_vec(bytes.as_slice(), level);
            }
            damages.iter().for_each(|damage| damage.apply(&mut bytes));
            fuzz::read(Some(format), &bytes);
            fuzz::read(None, &bytes);
            Ok(())
        });
    outcome.unwrap();
}

#[test]
fn damaged_samples_never_panic() {
    no_damage_panics(500);
}

/// Minutes instead of a second: `cargo test --release damaged -- --ignored`.
#[test]
#[ignore = "takes minutes"]
fn many_damaged_samples_never_panic() {
    no_damage_panics(200_000);
}

//! Every format read from bytes, and every damage named with file and line.

use super::source::Source;
use super::{Record, Role, passage_id, question_id, read_source};
use proptest::prelude::*;
use retort_common::spec::FileFormat;
use std::io::{Cursor, Write};

/// The records of some bytes, each as one line, and what is wrong with others.
fn records(
    bytes: &[u8],
    format: Option<FileFormat>,
    role: Role,
) -> Result<(FileFormat, Vec<String>), String> {
    let mut lines = Vec::new();
    let source = Source::over(Box::new(Cursor::new(bytes.to_vec()))).map_err(|error| error.to_string())?;
    let outcome = read_source("FILE", source, format, role, 2, |_, line, record| {
        lines.push(match record {
            Ok(record) => show(&record),
            Err(reason) => format!("FILE:{line}: {reason}"),
        });
        Ok::<(), String>(())
    });
    match outcome {
        Ok(summary) => Ok((summary.layout.format, lines)),
        Err(error) => Err(format!("{} | {error}", lines.join(" | "))),
    }
}

fn show(record: &Record) -> String {
    match record {
        Record::Passage(passage) => format!("P {} [{}] {}", passage.id, passage.title, passage.text),
        Record::Question(question) => {
            let (id, text) = (question.id.as_deref().unwrap_or("-"), question.text.as_deref().unwrap_or("-"));
            format!("Q {id} {text} {:?}", question.answers)
        }
        Record::Judgement { query, passage, grade } => format!("J {query} {passage} {grade}"),
        Record::Example(example) => {
            let question = &example.question;
            let name = question.id.as_deref().or(question.text.as_deref()).unwrap_or("-");
            let list = |candidates: &[super::Candidate]| {
                let one = |candidate: &super::Candidate| {
                    let name =
                        candidate.id.as_deref().or(candidate.text.as_deref()).unwrap_or("-").to_owned();
                    candidate.score.map_or(name.clone(), |score| format!("{name}={score}"))
                };
                candidates.iter().map(one).collect::<Vec<_>>().join(",")
            };
            format!("E {name} +{} -{}", list(&example.positives), list(&example.negatives))
        }
    }
}

/// One file, its role, the format it is recognised as, and its records.
#[track_caller]
fn check(text: &str, role: Role, format: FileFormat, expected: &[&str]) {
    let (found, lines) = records(text.as_bytes(), None, role).unwrap();
    assert_eq!(found, format, "{text:?}");
    assert_eq!(lines, expected, "{text:?}");
    // Compression changes nothing.
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(text.as_bytes()).unwrap();
    let zstd =
        ruzstd::encoding::compress_to_vec(text.as_bytes(), ruzstd::encoding::CompressionLevel::Fastest);
    for bytes in [gzip.finish().unwrap(), zstd] {
        assert_eq!(records(&bytes, None, role).unwrap(), (format, lines.clone()), "{text:?}");
    }
}

#[test]
fn every_format_is_recognised_and_read() {
    use FileFormat as F;
    let set = Role::Set;
    check(
        "7\ta passage\n8\t\"quoted\" text\n",
        Role::Passages,
        F::Tsv,
        &["P 7 [] a passage", "P 8 [] \"quoted\" text"],
    );
    check("7\twhat is it\n", Role::Questions, F::Tsv, &["Q 7 what is it []"]);
    check("7\t0\t9\t1\n8 0 9 1\n", set, F::Qrels, &["J 7 9 1", "J 8 9 1"]);
    check("19335 Q0 1017759 0\n19335 Q0 1729 2\n", set, F::Qrels, &["J 19335 1017759 0", "J 19335 1729 2"]);
    check("query-id\tcorpus-id\tscore\na\tb\t1\n", set, F::Qrels, &["J a b 1"]);
    check("a\tb\t1\nc\td\t2\n", set, F::Qrels, &["J a b 1", "J c d 2"]);
    check("1\t234\t567\n", set, F::IdTriples, &["E 1 +234 -567"]);
    check("what is it\tthis is\tthat was\n", set, F::TextTriples, &["E what is it +this is -that was"]);
    check("11.5\t-3e-1\t1\t234\t567\n", set, F::ScoredTriples, &["E 1 +234=11.5 -567=-0.3"]);
    check("id\ttext\ttitle\n1\t\"a \"\"b\"\"\"\tt\n", Role::Passages, F::Psgs, &["P 1 [t] a \"b\""]);
    check("title\tid\ttext\nt\t1\ta\n", Role::Passages, F::Psgs, &["P 1 [t] a"]);
    check("who?\t['a', \"b's\"]\n", set, F::Qas, &["Q - who? [\"a\", \"b's\"]"]);
    let dpr = r#"[{"question": "who?", "answers": ["a"],
 "positive_ctxs": [{"title": "t", "text": "x", "score": 1000, "passage_id": "4"}],
 "negative_ctxs": [{"title": "t", "text": "z", "psg_id": 6}],
 "hard_negative_ctxs": [{"title": "t", "text": "y", "passage_id": "5"}]}]"#;
    check(dpr, set, F::Dpr, &["E who? +4 -5,6"]);
    check("{\"_id\": \"a\", \"title\": null, \"text\": \"x\"}\n", Role::Passages, F::Jsonl, &["P a [] x"]);
    check("{\"docid\": 3, \"document_text\": \"x\"}\n", Role::Passages, F::Jsonl, &["P 3 [] x"]);
    let beir = "{\"_id\": \"a\", \"text\": \"x\", \"metadata\": {\"answers\": [\"y\"]}}\n";
    check(beir, Role::Questions, F::Jsonl, &["Q a x [\"y\"]"]);
    let new = r#"{"query_id": "q", "query_text": "x", "positive_document_ids": ["1"], "negative_document_ids": [2]}"#;
    check(new, set, F::Tevatron, &["E q +1 -2"]);
    let old =
        r#"{"query_id": "q", "query": "x", "positive_passages": [{"docid": "1", "title": "t", "text": "y"}],
"negative_passages": []}"#
            .replace('\n', " ");
    check(&old, set, F::Tevatron, &["E q +1 -"]);
    let flag = r#"{"query": "x", "pos": ["a"], "neg": ["b", "c"], "pos_scores": [0.5], "neg_scores": [0.25, 0.125]}"#;
    check(flag, set, F::FlagEmbedding, &["E x +a=0.5 -b=0.25,c=0.125"]);
    let triplet = r#"{"anchor": "x", "positive": "a", "negative_2": "c", "negative_1": "b"}"#;
    check(triplet, set, F::Triplets, &["E x +a -b,c"]);
    check("[\"x\", \"a\", \"b\"]\n", set, F::Triplets, &["E x +a -b"]);
    let labels = r#"{"query": "x", "docs": ["a", "b"], "labels": [0, 1]}"#;
    check(labels, set, F::ScoredLists, &["E x +b -a"]);
    let lists = r#"{"query": "x", "passages": ["a", {"docid": "7", "text": "b"}], "scores": [0.5, 2.0]}"#;
    check(lists, set, F::ScoredLists, &["E x +7=2 -a=0.5"]);
}

#[test]
fn genuine_lines_of_squad_in_dprs_form() {
    // From SQuAD 1.1's dev set (CC BY-SA 4.0).
    let psgs = "id\ttext\ttitle\n1\t\"The crisis had a major impact on international relations and created a rift within \
                NATO. The embargo caused an oil crisis, or \"\"shock\"\", with many effects.\"\t1973 oil crisis\n";
    let (_, lines) = records(psgs.as_bytes(), None, Role::Passages).unwrap();
    assert!(
        lines[0].starts_with("P 1 [1973 oil crisis] The crisis") && lines[0].contains("or \"shock\", with")
    );
    let qas = "What does it mean when currencies are left to \"float?\"\t['to \"float\" (rise and fall according to \
               market demand)', '(rise and fall according to market demand']\n\
               Who was defeated?\t[\"Nixon's\", 'oil producers\\' real income']\n";
    let (_, lines) = records(qas.as_bytes(), None, Role::Set).unwrap();
    assert!(
        lines[0]
            .starts_with("Q - What does it mean when currencies are left to \"float?\" [\"to \\\"float\\\"")
    );
    assert!(lines[1].contains("\"Nixon's\", \"oil producers' real income\""), "{}", lines[1]);
}

/// Damages: bytes, format, role, and what must be said.
#[track_caller]
fn refuse(bytes: &[u8], format: FileFormat, role: Role, expected: &[&str]) {
    let found = records(bytes, Some(format), role);
    let said = match &found {
        Ok((_, lines)) => lines.join(" | "),
        Err(error) => error.clone(),
    };
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]);
    for word in expected {
        assert!(said.contains(word), "{shown:?}: {said:?} lacks {word:?}");
    }
}

#[test]
fn damages_are_named_with_file_and_line() {
    use FileFormat as F;
    let (passages, questions, set) = (Role::Passages, Role::Questions, Role::Set);
    // Truncated compression.
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    (0..9999).for_each(|id| gzip.write_all(format!("{id}\ttext {id}\n").as_bytes()).unwrap());
    let gzip = gzip.finish().unwrap();
    refuse(&gzip[..gzip.len() / 2], F::Tsv, passages, &["FILE:", "damaged or truncated"]);
    refuse(b"\x1f\x8b\x08 and nothing that follows", F::Tsv, passages, &["FILE:1", "damaged or truncated"]);
    let zstd =
        ruzstd::encoding::compress_to_vec(&b"1\ttext\n"[..], ruzstd::encoding::CompressionLevel::Fastest);
    refuse(&zstd[..zstd.len() - 3], F::Tsv, passages, &["FILE:", "damaged or truncated"]);
    // Columns.
    refuse(b"1\ta\n2\n3\tb\tc\n", F::Tsv, passages, &["FILE:2: 1 column instead of 2", "FILE:3: 3 columns"]);
    refuse(
        b"id\ttext\ttitle\n1\ta\n",
        F::Psgs,
        passages,
        &["FILE:2: 2 columns instead of 3: id, text and title"],
    );
    refuse(b"who?\n", F::Qas, set, &["FILE:1: 1 column instead of 2"]);
    refuse(b"who?\tyes\n", F::Qas, set, &["FILE:1", "no list of strings"]);
    refuse(b"a\tb\tc\n1\t2\tx\n", F::Qrels, set, &["FILE:2: grade \"x\" is no whole number"]);
    refuse(b"query-id\tcorpus-id\tscore\nq p 1\n", F::Qrels, set, &["FILE:2: 3 columns without tabs"]);
    refuse(b"1\t2\n", F::IdTriples, set, &["FILE:1: 2 columns instead of 3"]);
    refuse(
        b"1\tx\t3\t4\t5\nnan\t1\t3\t4\t5\n",
        F::ScoredTriples,
        set,
        &["FILE:1: score \"x\"", "FILE:2: a score is not"],
    );
    // Encodings and line ends.
    refuse(b"1\ta\n2\t\xff\n3\tb\n", F::Tsv, passages, &["FILE:2: is not UTF-8 from byte 3 on", "P 3 [] b"]);
    refuse(b"\xef\xbb\xbf1\ta\r\n2\tb\n", F::Tsv, passages, &["P 1 [] a | P 2 [] b"]);
    refuse(b"{\"_id\":\"1\",\"text\":\"\xff\"}", F::Jsonl, passages, &["FILE:1", "unicode"]);
    // Quotes.
    refuse(b"1\t\"a\n2\tb\n", F::Tsv, passages, &["P 1 [] \"a | P 2 [] b"]);
    refuse(
        b"id\ttext\ttitle\n1\t\"a\tt\n2\tb\tt\n",
        F::Psgs,
        passages,
        &["FILE:2", "quote that nothing closes"],
    );
    // Empty texts, ids that no run can hold.
    refuse(b"1\t\n2\t \n", F::Tsv, passages, &["FILE:1: the passage has no text", "FILE:2"]);
    refuse(b"1\t\n", F::Tsv, questions, &["FILE:1: the question has no text"]);
    refuse(b"a b\tx\n\ty\n", F::Tsv, passages, &["FILE:1: the passage's id \"a b\" must have", "FILE:2"]);
    // JSON.
    refuse(
        b"{\"_id\":\"1\"}\n{\"_id\":\n",
        F::Jsonl,
        passages,
        &["FILE:1: missing field `text`", "FILE:2: EOF"],
    );
    let string = br#"{"query": "x", "pos": "a", "neg": []}"#;
    refuse(string, F::FlagEmbedding, set, &["FILE:1", "expected a sequence", "a list must stand there"]);
    let short = br#"{"query": "x", "pos": ["a"], "neg": ["b"], "neg_scores": [1, 2]}"#;
    refuse(short, F::FlagEmbedding, set, &["FILE:1: 2 scores stand beside 1 texts of \"neg\""]);
    let listed = br#"{"anchor": "x", "positive": ["a"], "negative": "b"}"#;
    refuse(listed, F::Triplets, set, &["FILE:1: \"positive\" must be a string"]);
    refuse(b"[\"x\"]", F::Triplets, set, &["FILE:1", "at least a question and a positive"]);
    refuse(
        br#"{"query":"x","docs":["a"],"scores":[1,2]}"#,
        F::ScoredLists,
        set,
        &["2 scores stand beside 1 passages"],
    );
    let dpr = br#"[{"question":"a","answers":[],"positive_ctxs":[]}, {"question":"b","answers":"x","positive_ctxs":[]},
{"question":"c"}"#;
    refuse(
        dpr,
        F::Dpr,
        set,
        &["FILE:1", "a list must stand there", "missing field `positive_ctxs`", "cut short"],
    );
}

#[test]
fn files_that_cannot_serve_are_refused_by_what_they_are() {
    let check = |text: &str, role, expected: &str| {
        let error = records(text.as_bytes(), None, role).unwrap_err();
        assert!(error.contains(expected), "{text:?}: {error}");
    };
    check("", Role::Passages, "is empty");
    check("1 Q0 a 1 2.5 me\n", Role::Set, "holds a TREC run");
    check("1\ttext\n", Role::Set, "holds tsv, which cannot serve as a set");
    check("1\t0\t2\t1\n", Role::Passages, "holds qrels, which cannot serve as passages");
    check("[{\"question\": \"x\", \"answers\": [], \"ctxs\": []}]", Role::Set, "retriever's results");
    check("{\"a\": 1}\n", Role::Passages, "none of the keys");
    check("a,b\n", Role::Passages, "1 column instead of 2");
    check("1\t2\t3\t4\t5\t6\t7\n", Role::Set, "7 columns, which no known format has");
}

#[test]
fn lines_of_a_hundred_megabytes_are_named_and_skipped() {
    let mut text = b"1\ta\n2\t".to_vec();
    text.resize(100 << 20, b'x');
    text.extend(b"\n3\tb\n");
    refuse(
        &text,
        FileFormat::Tsv,
        Role::Passages,
        &["P 1 [] a | FILE:2: the line is longer than 16 MiB | P 3 [] b"],
    );
}

#[test]
fn texts_without_ids_are_named_by_their_digest() {
    assert_eq!(passage_id("", "a"), passage_id("", "a"));
    assert_ne!(passage_id("a", "b"), passage_id("", "a b"));
    assert!(question_id("a").starts_with("q-") && question_id("a").len() == 22);
}

proptest! {
    /// Arbitrary bytes, and bytes that look like records, never panic and never hang in any reader.
    #[test]
    fn no_reader_panics(bytes: Vec<u8>, text in "[\\[\\]{}\"',:\\\\\t\n a1]{0,60}", from in 0usize..13) {
        let format = FileFormat::ALL[from];
        for role in [Role::Passages, Role::Questions, Role::Set] {
            for bytes in [bytes.as_slice(), text.as_bytes()] {
                let _ = records(bytes, Some(format), role);
                let _ = records(bytes, None, role);
            }
        }
    }

    /// Columns in quotes come back as they were.
    #[test]
    fn passages_survive_csv(text in "[a\"\t\r\n ]{1,12}x", title in "[\"a\t]{0,6}") {
        let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
        let file = format!("id\ttext\ttitle\n7\t{}\t{}\n", quoted(&text), quoted(&title));
        let (_, lines) = records(file.as_bytes(), Some(FileFormat::Psgs), Role::Passages).unwrap();
        prop_assert_eq!(lines, [format!("P 7 [{title}] {text}")]);
    }
}

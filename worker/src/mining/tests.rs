//! Tables of mining: what each filter drops, what is chosen, and what the audit says.

use super::*;

fn spec() -> MiningSpec {
    serde_json::from_str(r#"{"rank_to":100,"per_query":2}"#).unwrap()
}

fn candidates(list: &[(u64, f64)]) -> Vec<Candidate> {
    list.iter().map(|(row, score)| Candidate { row: *row, score: Some(*score) }).collect()
}

fn run(spec: &MiningSpec, lists: &[&[Candidate]], hooks: &Hooks) -> (Vec<u64>, Audit) {
    let positive = Candidate { row: 1, score: Some(10.0) };
    let query = Query { row: 77, positive, known_positives: &[1, 2], lists };
    let mut audit = Audit::new(spec.suspicious_cases);
    let negatives = mine(spec, &query, hooks, &mut audit).unwrap();
    let filters = audit.filters;
    let dropped = filters.repeated + filters.known_positive + filters.duplicate_text + filters.unscored;
    let dropped = dropped + filters.ceiling + filters.margin + filters.ratio + filters.answer;
    let dropped = dropped + filters.cross_encoder;
    assert_eq!(filters.considered, dropped + filters.passed, "every candidate has one fate");
    (negatives.iter().map(|n| n.row).collect(), audit)
}

#[test]
fn each_filter_drops_and_counts() {
    let list = candidates(&[(2, 11.0), (5, 9.8), (6, 9.2), (7, 8.0), (8, 4.0), (9, 3.0)]);
    let digest = |row: u64| u128::from(if row == 8 { 7 } else { row });
    let answer = |_: u64, row: u64| row == 5;
    // What is at the bound stays.
    let relevance = |_: u64, row: u64| match row {
        6 | 8 => 0.9,
        9 => 0.1,
        _ => 0.01,
    };
    let hooks = Hooks { digest: Some(&digest), has_answer: Some(&answer), relevance: Some(&relevance) };
    type Count = fn(&FilterCounts) -> u64;
    let table: [(&str, MiningSpec, &[u64], Count, u64); 10] = [
        ("known positives", spec(), &[5, 6], |f| f.known_positive, 1),
        ("window", MiningSpec { rank_from: 2, rank_to: 4, ..spec() }, &[6, 7], |f| f.considered, 2),
        ("margin", MiningSpec { margin: Some(0.5), ..spec() }, &[6, 7], |f| f.margin, 1),
        ("ratio", MiningSpec { ratio: Some(0.9), ..spec() }, &[7, 8], |f| f.ratio, 2),
        ("ceiling", MiningSpec { ceiling: Some(3.5), ..spec() }, &[9], |f| f.ceiling, 4),
        (
            "texts",
            MiningSpec { rank_from: 3, drop_duplicate_texts: true, ..spec() },
            &[7, 9],
            |f| f.duplicate_text,
            1,
        ),
        ("answers", MiningSpec { drop_answers: true, ..spec() }, &[6, 7], |f| f.answer, 1),
        (
            "cross-encoder",
            MiningSpec { below: Some(0.1), per_query: 5, ..spec() },
            &[5, 7, 9],
            |f| f.cross_encoder,
            2,
        ),
        ("all pass", MiningSpec { per_query: 5, ..spec() }, &[5, 6, 7, 8, 9], |f| f.passed, 5),
        ("beyond the list", MiningSpec { rank_from: 50, ..spec() }, &[], |f| f.considered, 0),
    ];
    for (name, spec, want, count, counted) in table {
        let (got, audit) = run(&spec, &[&list], &hooks);
        assert_eq!(got, want, "{name}");
        assert_eq!(count(&audit.filters), counted, "{name}: {:?}", audit.filters);
        assert_eq!(audit.missing, (spec.per_query - want.len()) as u64, "{name}");
    }
}

#[test]
fn sources_take_turns_and_share_scores() {
    let dense = candidates(&[(5, 9.0), (6, 8.0)]);
    let lexical = [8u64, 5, 9].map(|row| Candidate { row, score: None });
    let (got, audit) = run(&MiningSpec { per_query: 9, ..spec() }, &[&lexical, &dense], &Hooks::default());
    assert_eq!(got, [8, 5, 6, 9]);
    assert_eq!((audit.filters.repeated, audit.short_queries, audit.missing), (1, 1, 5));
    assert_eq!(audit.suspicious.iter().map(|case| case.gap).collect::<Vec<_>>(), [1.0, 2.0]);
    let scored = MiningSpec { margin: Some(0.0), ..spec() };
    let (got, audit) = run(&scored, &[&lexical, &dense], &Hooks::default());
    assert_eq!((got, audit.filters.unscored), (vec![5, 6], 2));
}

#[test]
fn random_sampling_depends_on_rows_alone() {
    let mut list: Vec<Candidate> = (100..160).map(|row| Candidate { row, score: None }).collect();
    let random = MiningSpec { sampling: Sampling::Random, per_query: 6, seed: 4, ..spec() };
    let (first, _) = run(&random, &[&list], &Hooks::default());
    list.reverse();
    assert_eq!(run(&random, &[&list], &Hooks::default()).0, first);
    assert_ne!(run(&MiningSpec { seed: 5, ..random }, &[&list], &Hooks::default()).0, first);
}

#[test]
fn a_second_round_of_filters_goes_on_from_the_first() {
    let list = candidates(&[(5, 9.8), (6, 9.2), (7, 8.0), (8, 4.0), (9, 3.0)]);
    let (first, audit) =
        run(&MiningSpec { margin: Some(0.5), per_query: 3, ..spec() }, &[&list], &Hooks::default());
    assert_eq!(first, [6, 7, 8]);
    let list = candidates(&[(6, 9.2), (7, 8.0), (8, 4.0)]);
    let relevance = |_: u64, row: u64| if row == 7 { 0.2 } else { 0.4 };
    let hooks = Hooks { relevance: Some(&relevance), ..Hooks::default() };
    let (last, second) = run(&MiningSpec { below: Some(0.3), ..spec() }, &[&list], &hooks);
    assert_eq!(last, [7]);
    let both = audit.then(second);
    let filters = both.filters;
    assert_eq!((filters.considered, filters.margin, filters.cross_encoder, filters.passed), (5, 1, 2, 2));
    assert_eq!((both.queries, both.chosen, both.short_queries, both.missing), (1, 1, 1, 1));
    assert_eq!(both.suspicious.iter().map(|case| case.gap).collect::<Vec<_>>(), [2.0]);
    // Audits of before there were cross-encoders have no such count.
    let old = serde_json::to_value(FilterCounts::default()).unwrap();
    assert_eq!(old.get("cross_encoder"), None);
    assert_eq!(serde_json::from_value::<FilterCounts>(old).unwrap(), FilterCounts::default());
}

#[test]
fn audits_merge_in_any_order() {
    let lists = [candidates(&[(5, 9.5), (6, 12.0)]), candidates(&[(7, 3.0)]), candidates(&[])];
    let audits: Vec<Audit> = lists.iter().map(|list| run(&spec(), &[list], &Hooks::default()).1).collect();
    let merged = |order: [usize; 3]| {
        let mut all = Audit::new(2);
        order.iter().for_each(|at| all.merge(&audits[*at]));
        all.suspicious.truncate(2);
        all
    };
    let all = merged([0, 1, 2]);
    assert_eq!(all, merged([2, 1, 0]));
    assert_eq!((all.queries, all.chosen, all.short_queries, all.empty_queries, all.missing), (3, 3, 2, 1, 3));
    assert_eq!(all.suspicious.iter().map(|case| case.gap).collect::<Vec<_>>(), [-2.0, 0.5]);
    let edges = GapHistogram::edges();
    assert_eq!(edges.len() + 1, all.gaps.counts.len());
    // Gaps −2, 0.5 and 7 fall into the bins that end above them.
    for gap in [-2.0, 0.5, 7.0] {
        assert_eq!(all.gaps.counts[edges.partition_point(|edge| *edge <= gap)], 1);
    }
}

#[test]
fn wrong_input_is_refused() {
    let query = |score| Query {
        row: 3,
        positive: Candidate { row: 1, score: Some(score) },
        known_positives: &[1],
        lists: &[],
    };
    let refused = |spec: &MiningSpec, query: &Query| {
        let mut audit = Audit::new(1);
        let error = mine(spec, query, &Hooks::default(), &mut audit).unwrap_err();
        assert_eq!(audit, Audit::new(1));
        error
    };
    let nan = refused(&spec(), &query(f64::NAN));
    assert_eq!(nan, MiningError::NonFiniteScore { query: 3, passage: 1 });
    let answers = MiningSpec { drop_answers: true, ..spec() };
    assert!(refused(&answers, &query(1.0)).to_string().contains("drop_answers"));
    let judged = MiningSpec { below: Some(0.1), ..spec() };
    assert!(refused(&judged, &query(1.0)).to_string().contains("below"));
    let unsorted = Query { known_positives: &[4, 1], ..query(1.0) };
    assert_eq!(refused(&spec(), &unsorted), MiningError::UnsortedPositives { query: 3 });
    // A pair without a score, or with NaN, is neither kept nor dropped.
    let (list, relevance) = (candidates(&[(5, 0.5), (6, 0.4)]), |_: u64, row: u64| match row {
        5 => 0.0,
        _ => f64::NAN,
    });
    let hooks = Hooks { relevance: Some(&relevance), ..Hooks::default() };
    let mut audit = Audit::new(1);
    let error = mine(&judged, &Query { lists: &[&list], ..query(1.0) }, &hooks, &mut audit).unwrap_err();
    assert_eq!((error, audit), (MiningError::NoRelevance { query: 3, passage: 6 }, Audit::new(1)));
}

#[test]
fn specs_are_strict() {
    for (change, lists, want) in [
        (MiningSpec { rank_from: 100, ..spec() }, 1, "are empty"),
        (MiningSpec { per_query: 0, ..spec() }, 1, "at least 1"),
        (MiningSpec { per_query: 101, ..spec() }, 1, "widen the window"),
        (MiningSpec { margin: Some(-1.0), ..spec() }, 1, "margin is -1"),
        (MiningSpec { ratio: Some(f64::NAN), ..spec() }, 1, "ratio is NaN"),
        (MiningSpec { below: Some(f64::NAN), ..spec() }, 1, "below is NaN"),
        (MiningSpec { suspicious_cases: 1 << 20, ..spec() }, 1, "at most 10000"),
    ] {
        let error = change.check(lists).unwrap_err().to_string();
        assert!(error.contains(want), "`{error}` should say `{want}`");
    }
    assert_eq!(MiningSpec { per_query: 101, ..spec() }.check(2), Ok(()));
    assert!(serde_json::from_str::<MiningSpec>(r#"{"rank_to":9,"per_query":1,"margins":1}"#).is_err());
}

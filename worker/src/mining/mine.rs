//! From one query's ranked lists to its hard negatives.

use std::collections::{HashMap, HashSet};

use super::audit::{Audit, FilterCounts, SuspiciousCase};
use super::counter;
use super::spec::{MiningSpec, Sampling};

/// A passage in a ranked list; its place in the list is its rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Row of the passage.
    pub row: u64,
    /// The teacher's score of this query and passage, if known. Scores of another retriever (BM25)
    /// compare with no positive and must not stand here.
    pub score: Option<f64>,
}

/// One query with everything mining needs of it.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// Row of the query.
    pub row: u64,
    /// The positive it is trained with, and the teacher's score of it.
    pub positive: Candidate,
    /// Rows of all passages known to be relevant, ascending.
    pub known_positives: &'a [u64],
    /// Ranked lists, best first, one per source.
    pub lists: &'a [&'a [Candidate]],
}

/// What mining asks of the texts.
#[derive(Clone, Copy, Default)]
pub struct Hooks<'a> {
    /// A digest of a passage's text; needed for `drop_duplicate_texts`.
    pub digest: Option<&'a dyn Fn(u64) -> u128>,
    /// Whether (query row, passage row)'s passage contains an answer; needed for `drop_answers`.
    pub has_answer: Option<&'a dyn Fn(u64, u64) -> bool>,
    /// A cross-encoder's probability that (query row, passage row)'s passage is an answer, NaN where it gave none;
    /// needed for `below`.
    pub relevance: Option<&'a dyn Fn(u64, u64) -> f64>,
}

/// A chosen negative.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Negative {
    /// Row of the passage.
    pub row: u64,
    /// The teacher's score, if known.
    pub score: Option<f64>,
    /// Rank in its list, from 0.
    pub rank: usize,
    /// Number of the list it was first met in.
    pub list: usize,
}

/// A query that cannot be mined.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum MiningError {
    #[error("mining wants {filter} and was given no {hook}: pass the hook or turn the filter off")]
    MissingHook { filter: &'static str, hook: &'static str },
    #[error("score of query row {query} and passage row {passage} is not finite: check the teacher's scores")]
    NonFiniteScore { query: u64, passage: u64 },
    #[error(
        "query row {query} and passage row {passage} have no finite score of the cross-encoder: have all pairs scored"
    )]
    NoRelevance { query: u64, passage: u64 },
    #[error("known positives of query row {query} are not ascending: sort them")]
    UnsortedPositives { query: u64 },
}

/// The negatives of one query, at most `per_query`, and what was done counted in `audit`.
///
/// Lists take turns: rank r of every list comes before rank r+1 of any. The result depends on the spec,
/// the query and the hooks alone. On an error the audit is unchanged.
pub fn mine(
    spec: &MiningSpec,
    query: &Query,
    hooks: &Hooks,
    audit: &mut Audit,
) -> Result<Vec<Negative>, MiningError> {
    let hooks = needed_hooks(spec, hooks)?;
    if !query.known_positives.is_sorted() {
        return Err(MiningError::UnsortedPositives { query: query.row });
    }
    let scores = known_scores(spec, query)?;
    check_relevance(spec, query, &hooks)?;
    let mut filters = FilterCounts::default();
    let mut passed = filter(spec, query, &hooks, &scores, &mut filters);
    if spec.sampling == Sampling::Random {
        passed.sort_by_cached_key(|n| (counter::hash(spec.seed, &[query.row, n.row]), n.row));
    }
    passed.truncate(spec.per_query);
    audit.filters.merge(&filters);
    audit.count_query(spec.per_query, passed.len());
    for negative in &passed {
        if let (Some(positive), Some(score)) = (query.positive.score, negative.score) {
            let Negative { row, rank, list, .. } = *negative;
            audit.count_gap(SuspiciousCase {
                query: query.row,
                positive: query.positive.row,
                negative: row,
                rank,
                list,
                gap: positive - score,
            });
        }
    }
    audit.keep_most_suspicious();
    Ok(passed)
}

/// Candidates that pass all filters, in the order of their ranks.
fn filter(
    spec: &MiningSpec,
    query: &Query,
    hooks: &Hooks,
    scores: &HashMap<u64, f64>,
    counts: &mut FilterCounts,
) -> Vec<Negative> {
    let mut passed = Vec::new();
    let mut met = HashSet::new();
    let mut texts: HashSet<u128> = HashSet::new();
    if let Some(digest) = hooks.digest {
        texts.extend(query.known_positives.iter().chain([&query.positive.row]).map(|row| digest(*row)));
    }
    for (rank, list, row) in in_window(spec, query) {
        counts.considered += 1;
        let score = scores.get(&row).copied();
        // The cheapest filters first; the answer check reads text and comes late, the model's word last.
        let dropped = if !met.insert(row) {
            Some(&mut counts.repeated)
        } else if row == query.positive.row || query.known_positives.binary_search(&row).is_ok() {
            Some(&mut counts.known_positive)
        } else if hooks.digest.is_some_and(|digest| texts.contains(&digest(row))) {
            Some(&mut counts.duplicate_text)
        } else if let Some(counter) = score_filter(spec, query.positive.score, score, counts) {
            Some(counter)
        } else if hooks.has_answer.is_some_and(|has_answer| has_answer(query.row, row)) {
            Some(&mut counts.answer)
        } else if is_relevant(spec, hooks, query.row, row) {
            Some(&mut counts.cross_encoder)
        } else {
            None
        };
        if let Some(counter) = dropped {
            *counter += 1;
            continue;
        }
        counts.passed += 1;
        texts.extend(hooks.digest.map(|digest| digest(row)));
        passed.push(Negative { row, score, rank, list });
    }
    passed
}

/// The counter of the score filter that drops a candidate, if one does.
fn score_filter<'c>(
    spec: &MiningSpec,
    positive: Option<f64>,
    score: Option<f64>,
    counts: &'c mut FilterCounts,
) -> Option<&'c mut u64> {
    let relative = spec.margin.is_some() || spec.ratio.is_some();
    if !relative && spec.ceiling.is_none() {
        return None;
    }
    // What cannot be judged is dropped and counted, not waved through.
    let Some(score) = score else { return Some(&mut counts.unscored) };
    if spec.ceiling.is_some_and(|ceiling| score > ceiling) {
        return Some(&mut counts.ceiling);
    }
    if !relative {
        return None;
    }
    let Some(positive) = positive else { return Some(&mut counts.unscored) };
    if spec.margin.is_some_and(|margin| score > positive - margin) {
        return Some(&mut counts.margin);
    }
    if spec.ratio.is_some_and(|ratio| score > positive - (1.0 - ratio) * positive.abs()) {
        return Some(&mut counts.ratio);
    }
    None
}

/// Whether a cross-encoder takes a candidate for an answer, or is not sure enough that it is none.
fn is_relevant(spec: &MiningSpec, hooks: &Hooks, query: u64, row: u64) -> bool {
    spec.below.zip(hooks.relevance).is_some_and(|(below, relevance)| relevance(query, row) > below)
}

/// What the cross-encoder has not judged is neither kept nor dropped in silence.
fn check_relevance(spec: &MiningSpec, query: &Query, hooks: &Hooks) -> Result<(), MiningError> {
    let Some(relevance) = hooks.relevance else { return Ok(()) };
    let mut candidates = in_window(spec, query).map(|(_, _, row)| row);
    match candidates.find(|row| !relevance(query.row, *row).is_finite()) {
        Some(passage) => Err(MiningError::NoRelevance { query: query.row, passage }),
        None => Ok(()),
    }
}

/// (rank, list, row) of candidates inside the window, lists taking turns.
fn in_window<'a>(
    spec: &MiningSpec,
    query: &Query<'a>,
) -> impl Iterator<Item = (usize, usize, u64)> + use<'a> {
    let lists = query.lists;
    let longest = lists.iter().map(|list| list.len()).max().unwrap_or(0);
    (spec.rank_from..spec.rank_to.min(longest)).flat_map(move |rank| {
        let at_rank = lists.iter().enumerate();
        at_rank.filter_map(move |(list, found)| found.get(rank).map(|candidate| (rank, list, candidate.row)))
    })
}

/// Teacher scores by row: a passage found by two sources is scored if either of them knows its score.
fn known_scores(spec: &MiningSpec, query: &Query) -> Result<HashMap<u64, f64>, MiningError> {
    let mut scores = HashMap::new();
    let candidates = query.lists.iter().flat_map(|list| list.iter().take(spec.rank_to));
    for candidate in candidates.chain([&query.positive]) {
        let Candidate { row, score: Some(score) } = *candidate else { continue };
        if !score.is_finite() {
            return Err(MiningError::NonFiniteScore { query: query.row, passage: row });
        }
        scores.entry(row).or_insert(score);
    }
    Ok(scores)
}

/// The hooks that the spec needs, without those it does not.
fn needed_hooks<'a>(spec: &MiningSpec, hooks: &Hooks<'a>) -> Result<Hooks<'a>, MiningError> {
    let missing = |filter, hook| MiningError::MissingHook { filter, hook };
    let digest = match (spec.drop_duplicate_texts, hooks.digest) {
        (true, None) => return Err(missing("drop_duplicate_texts", "digest")),
        (wanted, digest) => digest.filter(|_| wanted),
    };
    let has_answer = match (spec.drop_answers, hooks.has_answer) {
        (true, None) => return Err(missing("drop_answers", "answer check")),
        (wanted, has_answer) => has_answer.filter(|_| wanted),
    };
    let relevance = match (spec.below, hooks.relevance) {
        (Some(_), None) => return Err(missing("below", "relevance")),
        (below, relevance) => relevance.filter(|_| below.is_some()),
    };
    Ok(Hooks { digest, has_answer, relevance })
}

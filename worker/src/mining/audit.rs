//! What mining did: counts per filter, shortfalls, gaps between positive and negatives, and the cases
//! most likely to be false negatives. Audits of disjoint queries merge into the audit of all of them.

use serde::{Deserialize, Serialize};

/// The audit of some queries.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Audit {
    /// Queries mined.
    pub queries: u64,
    /// Negatives chosen.
    pub chosen: u64,
    /// Queries with fewer negatives than asked for.
    pub short_queries: u64,
    /// Queries without any negative.
    pub empty_queries: u64,
    /// Negatives asked for and not found.
    pub missing: u64,
    /// Candidates inside the rank window, and what became of them.
    pub filters: FilterCounts,
    /// Score of the positive minus score of the negative, over chosen negatives where both are known.
    pub gaps: GapHistogram,
    /// Chosen negatives with the smallest gap, smallest first; as many as the spec asks for.
    pub suspicious: Vec<SuspiciousCase>,
    /// How many cases are kept.
    pub suspicious_limit: usize,
}

/// Candidates inside the rank window by the first filter that dropped them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterCounts {
    /// All candidates inside the window.
    pub considered: u64,
    /// The same passage came from another list before.
    pub repeated: u64,
    /// The passage is known to be relevant.
    pub known_positive: u64,
    /// The text is that of a known positive or of a candidate kept before.
    pub duplicate_text: u64,
    /// A score filter is on and the candidate or its positive has no teacher score.
    pub unscored: u64,
    /// The score is above the ceiling.
    pub ceiling: u64,
    /// The score is within the margin of the positive's.
    pub margin: u64,
    /// The score is above the ratio to the positive's.
    pub ratio: u64,
    /// The text contains an answer.
    pub answer: u64,
    /// A cross-encoder takes it for an answer. Left out where it is 0: audits without one have no such count.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cross_encoder: u64,
    /// Passed all filters; the negatives are chosen among these. A cross-encoder looks at the first of them only.
    pub passed: u64,
}

/// A chosen negative that scores close to, or above, the positive.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SuspiciousCase {
    /// Row of the query.
    pub query: u64,
    /// Row of the positive.
    pub positive: u64,
    /// Row of the negative.
    pub negative: u64,
    /// Rank of the negative in its list, from 0.
    pub rank: usize,
    /// Number of that list.
    pub list: usize,
    /// Score of the positive minus score of the negative.
    pub gap: f64,
}

/// Absolute values of the bin edges; the histogram has them with both signs, and zero. Steps of 1-2-5
/// serve cosines and unnormalised products alike.
pub const GAP_EDGES: [f64; 13] = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0];

/// Counts of score gaps in fixed bins, so that audits merge and jobs compare.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GapHistogram {
    /// Bin i counts gaps in [edge i−1, edge i) of [`GapHistogram::edges`]; the first and last are open.
    pub counts: Vec<u64>,
}

impl Default for GapHistogram {
    fn default() -> Self {
        Self { counts: vec![0; 2 * GAP_EDGES.len() + 2] }
    }
}

impl GapHistogram {
    /// All bin edges, ascending; one fewer than bins.
    pub fn edges() -> Vec<f64> {
        let below = GAP_EDGES.iter().rev().map(|edge| -edge);
        below.chain([0.0]).chain(GAP_EDGES).collect()
    }

    fn add(&mut self, gap: f64) {
        let bin = Self::edges().partition_point(|edge| *edge <= gap);
        self.counts[bin] += 1;
    }
}

impl Audit {
    /// An audit of nothing that lists up to `suspicious_limit` cases.
    pub fn new(suspicious_limit: usize) -> Self {
        Self { suspicious_limit, ..Self::default() }
    }

    /// Adds the audit of other queries. The result does not depend on the order of merging.
    pub fn merge(&mut self, other: &Audit) {
        // Destructured so that a new field cannot be forgotten here.
        let Audit {
            queries,
            chosen,
            short_queries,
            empty_queries,
            missing,
            filters,
            gaps,
            suspicious,
            suspicious_limit,
        } = other;
        self.queries += queries;
        self.chosen += chosen;
        self.short_queries += short_queries;
        self.empty_queries += empty_queries;
        self.missing += missing;
        self.filters.merge(filters);
        self.gaps.counts.iter_mut().zip(&gaps.counts).for_each(|(a, b)| *a += b);
        self.suspicious_limit = self.suspicious_limit.max(*suspicious_limit);
        self.suspicious.extend(suspicious);
        self.keep_most_suspicious();
    }

    /// The audit of filters in two rounds: those of `self` found the candidates that `last` looked at and chose from.
    pub fn then(self, last: Audit) -> Audit {
        let cross_encoder = last.filters.cross_encoder;
        let passed = self.filters.passed.saturating_sub(cross_encoder);
        Audit { filters: FilterCounts { cross_encoder, passed, ..self.filters }, ..last }
    }

    /// Counts one query's outcome: `asked` negatives, of which the cases in `chosen` were found.
    pub(super) fn count_query(&mut self, asked: usize, chosen: usize) {
        self.queries += 1;
        self.chosen += chosen as u64;
        self.short_queries += u64::from(chosen < asked);
        self.empty_queries += u64::from(chosen == 0);
        self.missing += (asked - chosen) as u64;
    }

    /// Counts the gap of a chosen negative.
    pub(super) fn count_gap(&mut self, case: SuspiciousCase) {
        self.gaps.add(case.gap);
        self.suspicious.push(case);
        // Cutting at twice the limit keeps memory bounded and sorts rarely.
        if self.suspicious.len() > 2 * self.suspicious_limit + 64 {
            self.keep_most_suspicious();
        }
    }

    /// Sorts the cases and keeps as many as wanted.
    pub(super) fn keep_most_suspicious(&mut self) {
        let key = |case: &SuspiciousCase| (case.query, case.negative, case.positive);
        self.suspicious.sort_by(|a, b| a.gap.total_cmp(&b.gap).then_with(|| key(a).cmp(&key(b))));
        self.suspicious.truncate(self.suspicious_limit);
    }
}

impl FilterCounts {
    pub(super) fn merge(&mut self, other: &FilterCounts) {
        let FilterCounts {
            considered,
            repeated,
            known_positive,
            duplicate_text,
            unscored,
            ceiling,
            margin,
            ratio,
            answer,
            cross_encoder,
            passed,
        } = *other;
        self.considered += considered;
        self.repeated += repeated;
        self.known_positive += known_positive;
        self.duplicate_text += duplicate_text;
        self.unscored += unscored;
        self.ceiling += ceiling;
        self.margin += margin;
        self.ratio += ratio;
        self.answer += answer;
        self.cross_encoder += cross_encoder;
        self.passed += passed;
    }
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

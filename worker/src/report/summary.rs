//! What the numbers say: the order of the rows, shares of the teacher, and the sentences that a user needs.

use super::data::{Comparison, Kind, ReportData, Row};
use super::format;
use std::cmp::Ordering;

/// The share of the teacher's quality at which a small student is worth naming first.
const GOOD_SHARE: f64 = 0.9;

/// Differences with a larger p-value are called not significant.
const SIGNIFICANT: f64 = 0.05;

/// The rows as reports show them: the teacher, then by kind, larger before smaller.
pub fn ordered(data: &ReportData) -> Vec<&Row> {
    let mut rows: Vec<&Row> = data.rows.iter().collect();
    rows.sort_by(|left, right| {
        left.kind
            .cmp(&right.kind)
            .then_with(|| right.bytes_per_passage.total_cmp(&left.bytes_per_passage))
            .then_with(|| left.name.cmp(&right.name))
    });
    rows
}

/// The teacher's row.
pub fn teacher(data: &ReportData) -> Option<&Row> {
    data.rows.iter().find(|row| row.kind == Kind::Teacher)
}

/// The metric that decides.
pub fn deciding(data: &ReportData) -> Option<&str> {
    data.metrics.first().map(String::as_str)
}

/// A row's deciding metric as a share of the teacher's.
pub fn share(data: &ReportData, row: &Row, set: &str) -> Option<f64> {
    let metric = deciding(data)?;
    let whole = teacher(data)?.metric(set, metric).filter(|&value| value > 0.0)?;
    Some(row.metric(set, metric)? / whole)
}

/// The highest value that a student reaches, for emphasis.
pub fn best_student(data: &ReportData, set: &str, metric: &str) -> Option<f64> {
    let values =
        data.rows.iter().filter(|row| row.kind.is_student()).filter_map(|row| row.metric(set, metric));
    values.max_by(f64::total_cmp)
}

/// How many questions a set has: the largest number that a row averages.
pub fn questions(data: &ReportData, set: &str) -> Option<u64> {
    data.rows.iter().filter_map(|row| row.queries.get(set).copied()).max()
}

/// One sentence for each student, the one to read first at the front: what it keeps of the teacher beside
/// what its baseline keeps.
///
/// The first is the smallest student that keeps nine tenths of the teacher on dev, or else the one that
/// keeps most there; choosing it on test would make its own figures too good.
pub fn sentences(data: &ReportData) -> Vec<String> {
    let mut students: Vec<&Row> = ordered(data).into_iter().filter(|row| row.kind.is_student()).collect();
    if let Some(first) = headline(data, &students) {
        let row = students.remove(first);
        students.insert(0, row);
    }
    students.into_iter().filter_map(|row| sentence(data, row)).collect()
}

/// "head-64 vs pca-64 on test mrr@10: +.031 (p = .0001, 1,500 questions)".
pub fn comparison(comparison: &Comparison) -> String {
    format!(
        "{} vs {} on {} {}: {} ({}, {})",
        comparison.row,
        comparison.baseline,
        comparison.set,
        comparison.metric,
        format::difference(comparison.difference),
        format::p_value(comparison.p_value),
        format::counted(comparison.queries, "question"),
    )
}

fn headline(data: &ReportData, students: &[&Row]) -> Option<usize> {
    let sets = if data.dev.is_empty() { &data.test } else { &data.dev };
    let kept = |row: &Row| -> Option<f64> {
        let shares: Option<Vec<f64>> = sets.iter().map(|set| quality(data, row, set)).collect();
        shares
            .filter(|shares| !shares.is_empty())
            .map(|shares| shares.iter().sum::<f64>() / shares.len() as f64)
    };
    let candidates: Vec<(usize, f64)> =
        students.iter().enumerate().filter_map(|(index, row)| Some((index, kept(row)?))).collect();
    let by_bytes = |index: usize| students[index].bytes_per_passage;
    let good = candidates.iter().filter(|(_, share)| *share >= GOOD_SHARE && teacher(data).is_some()).min_by(
        |left, right| by_bytes(left.0).total_cmp(&by_bytes(right.0)).then(right.1.total_cmp(&left.1)),
    );
    let most = || candidates.iter().max_by(|left, right| left.1.total_cmp(&right.1));
    good.or_else(most).map(|(index, _)| *index)
}

/// The share of the teacher, or the metric itself where there is no teacher.
fn quality(data: &ReportData, row: &Row, set: &str) -> Option<f64> {
    share(data, row, set).or_else(|| row.metric(set, deciding(data)?))
}

fn sentence(data: &ReportData, row: &Row) -> Option<String> {
    let metric = deciding(data)?;
    let sets: Vec<&str> = shown_sets(data).filter(|set| row.metric(set, metric).is_some()).collect();
    if sets.is_empty() {
        return None;
    }
    let against =
        baseline(data, row).filter(|other| sets.iter().all(|set| other.metric(set, metric).is_some()));
    let (mine, theirs) = values(data, row, against, &sets, metric);
    let whole = if sets.iter().all(|set| share(data, row, set).is_some()) {
        format!("keeps {} of the teacher's {metric}", mine[0])
    } else {
        format!("reaches {metric} {}", mine[0])
    };
    let rest = mine.iter().zip(&sets).skip(1).map(|(value, set)| format!("{value} on {set}"));
    let on: Vec<String> = [format!("{whole} on {}", sets[0])].into_iter().chain(rest).collect();
    let mut text = format!("the {}-byte {} {}", format::bytes(row.bytes_per_passage), row.name, joined(&on));
    if let Some(other) = against {
        // Sizes are named where they differ, as the comparison would otherwise look equal.
        let size = if other.bytes_per_passage == row.bytes_per_passage {
            String::new()
        } else {
            format!(" at {} bytes", format::bytes(other.bytes_per_passage))
        };
        let verb = if whole.starts_with("keeps") { "keeps" } else { "reaches" };
        text += &format!(", {}{size} {verb} {}", other.name, joined(&theirs));
        text += &doubts(data, row, other, &sets, metric);
    }
    Some(text)
}

/// Test sets, or dev sets where there are none.
fn shown_sets(data: &ReportData) -> impl Iterator<Item = &str> {
    let sets = if data.test.is_empty() { &data.dev } else { &data.test };
    sets.iter().map(String::as_str)
}

/// Both rows' figures for each set, with a decimal more where whole per cents would look the same.
fn values(
    data: &ReportData,
    row: &Row,
    against: Option<&Row>,
    sets: &[&str],
    metric: &str,
) -> (Vec<String>, Vec<String>) {
    let mut mine = Vec::new();
    let mut theirs = Vec::new();
    for set in sets {
        let share_of = |row: &Row| share(data, row, set);
        let Some(own) = share_of(row) else {
            mine.push(format::metric(row.metric(set, metric)));
            theirs.extend(against.map(|other| format::metric(other.metric(set, metric))));
            continue;
        };
        let other = against.and_then(share_of);
        let looks_equal =
            other.is_some_and(|other| other != own && format::percent(other) == format::percent(own));
        let written = |share: f64| {
            if looks_equal { format!("{:.1} %", share * 100.0) } else { format::percent(share) }
        };
        mine.push(written(own));
        theirs.extend(other.map(written));
    }
    (mine, theirs)
}

/// What a student is measured against: the strongest row that it was tested against, or else the best
/// baseline of the same or fewer bytes.
fn baseline<'a>(data: &'a ReportData, row: &Row) -> Option<&'a Row> {
    let metric = deciding(data)?;
    let set = shown_sets(data).next()?;
    let by_quality = |left: &&Row, right: &&Row| -> Ordering {
        let value = |row: &Row| row.metric(set, metric).unwrap_or(f64::NEG_INFINITY);
        value(left).total_cmp(&value(right))
    };
    let tested = data.rows.iter().filter(|other| {
        other.kind != Kind::Teacher
            && data.comparisons.iter().any(|test| test.row == row.name && test.baseline == other.name)
    });
    tested.max_by(by_quality).or_else(|| {
        let smaller = |other: &&Row| other.bytes_per_passage <= row.bytes_per_passage;
        data.rows.iter().filter(|other| other.kind.is_baseline()).filter(smaller).max_by(by_quality)
    })
}

/// Says where a difference may be chance.
fn doubts(data: &ReportData, row: &Row, other: &Row, sets: &[&str], metric: &str) -> String {
    let weak: Vec<String> = data
        .comparisons
        .iter()
        .filter(|test| test.row == row.name && test.baseline == other.name && test.metric == metric)
        .filter(|test| {
            sets.contains(&test.set.as_str()) && (test.p_value.is_nan() || test.p_value >= SIGNIFICANT)
        })
        .map(|test| format!("{} on {}", format::p_value(test.p_value), test.set))
        .collect();
    if weak.is_empty() { String::new() } else { format!(" (not significant: {})", joined(&weak)) }
}

fn joined(parts: &[String]) -> String {
    match parts {
        [] => String::new(),
        [only] => only.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

//! The audit of the mined negatives on the terminal.

use super::data::{Histogram, NegativesAudit, SuspiciousNegative};
use super::format;
use super::html::negatives::overview;

/// Characters of a text that are shown.
const TEXT_LIMIT: usize = 200;
/// Characters of the longest bar.
const BAR: u64 = 40;

/// Audits as text: what was kept, counts of the filters, gaps of the scores, and up to `cases` suspicious cases each.
pub fn render_negatives(audits: &[NegativesAudit], cases: usize) -> String {
    if audits.is_empty() {
        return "no negatives were mined\n".to_owned();
    }
    audits.iter().map(|audit| one(audit, cases)).collect::<Vec<_>>().join("\n")
}

fn one(audit: &NegativesAudit, cases: usize) -> String {
    let mut out = format!("negatives from {}\n{}\n", format::clean(&audit.source), overview(audit));
    if !audit.filters.is_empty() {
        out += "\nremoved by filter\n";
        let counts: Vec<_> =
            audit.filters.iter().map(|filter| (format::clean(&filter.filter), filter.removed)).collect();
        out += &bars(&counts);
    }
    out += &gaps(&audit.gaps);
    let shown = audit.suspicious.len().min(cases);
    if shown > 0 {
        let all = format::count(audit.suspicious.len() as u64);
        out += &format!("\nmost suspicious negatives ({shown} of {all} recorded), worst first\n");
        out += &audit.suspicious.iter().take(cases).map(case).collect::<String>();
    }
    out
}

fn gaps(histogram: &Histogram) -> String {
    if !histogram.is_drawable() {
        return String::new();
    }
    let bins = histogram.edges.windows(2).zip(&histogram.counts);
    // Bins outside the values say nothing.
    let filled = |count: &u64| *count > 0;
    let first = histogram.counts.iter().position(filled).unwrap_or(0);
    let last = histogram.counts.iter().rposition(filled).unwrap_or(0);
    let rows: Vec<_> = bins
        .skip(first)
        .take(last + 1 - first)
        .map(|(edges, count)| (format!("{:+} to {:+}", edges[0], edges[1]), *count))
        .collect();
    format!("\nteacher's score of the positive less that of the kept negative\n{}", bars(&rows))
}

fn bars(rows: &[(String, u64)]) -> String {
    let widest = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let most = rows.iter().map(|(_, count)| *count).max().unwrap_or(0).max(1);
    let row = |(name, count): &(String, u64)| {
        let length = (u128::from(*count) * u128::from(BAR)).div_ceil(u128::from(most));
        let line =
            format!("  {name:<widest$}  {:>11}  {}", format::count(*count), "#".repeat(length as usize));
        format!("{}\n", line.trim_end())
    };
    rows.iter().map(row).collect()
}

fn case(case: &SuspiciousNegative) -> String {
    let text = |text: &str| format::shorten(&format::clean(text), TEXT_LIMIT);
    format!(
        "  {}  {}\n    positive {}  {}\n    negative {}  {}  {}\n",
        text(&case.query_id),
        text(&case.query),
        format::metric(Some(case.positive_score)),
        text(&case.positive),
        format::metric(Some(case.negative_score)),
        text(&case.negative_id),
        text(&case.negative),
    )
}

#[cfg(test)]
mod tests {
    use super::super::sample::sample;
    use super::*;

    #[test]
    fn an_audit_says_what_was_kept_and_shows_cases() {
        let mut audits = sample().negatives;
        audits[0].suspicious[0].negative.push('\u{1b}');
        let text = render_negatives(&audits, 5);
        for part in [
            "negatives from teacher, bm25",
            "  known positive        4,210  ##",
            "+0 to +0.04",
            "most suspicious negatives (1 of 1 recorded)",
            "    negative .708  p88  Norse settlers",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert!(!text.contains('\u{1b}'));
        assert!(!render_negatives(&audits, 0).contains("suspicious"));
        assert_eq!(render_negatives(&[], 5), "no negatives were mined\n");
    }
}

//! The audit of the mined negatives: what each filter removed, how far the rest lies from the positives,
//! and which cases a person should read.

use super::super::data::{Histogram, NegativesAudit, ReportData};
use super::super::format;
use super::svg::{self, Area, Scale};
use super::tables::bar;
use super::{escape, escape_short};

/// Suspicious cases on the page; the artifact has all of them.
const CASE_LIMIT: usize = 20;

/// Characters of a passage that are shown.
const TEXT_LIMIT: usize = 280;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 260.0;
const AREA: Area = Area { left: 60.0, top: 14.0, right: 612.0, bottom: 208.0 };

/// The section, or nothing where nothing was mined.
pub fn section(data: &ReportData) -> String {
    if data.negatives.is_empty() {
        return String::new();
    }
    let audits: String = data.negatives.iter().map(audit).collect();
    format!(
        "<section aria-labelledby=\"negatives\"><h2 id=\"negatives\">Mined negatives</h2>{audits}</section>"
    )
}

fn audit(audit: &NegativesAudit) -> String {
    format!(
        "<h3>From {}</h3><p>{}</p><div class=\"panels\">{}{}</div>{}",
        escape(&audit.source),
        escape(&overview(audit)),
        filters(audit),
        gaps(&audit.gaps),
        cases(audit),
    )
}

/// How many were kept and how many are missing.
pub fn overview(audit: &NegativesAudit) -> String {
    let found = format!(
        "Of {} for {}, {} were kept as negatives.",
        format::counted(audit.candidates, "candidate"),
        format::counted(audit.questions, "question"),
        format::count(audit.kept)
    );
    let missing = match audit.shortfall.negatives {
        0 => " No question fell short.".to_owned(),
        negatives => format!(
            " {} fell short by {} in all; nothing was filled in.",
            format::counted(audit.shortfall.questions, "question"),
            format::counted(negatives, "negative")
        ),
    };
    found + &missing
}

fn filters(audit: &NegativesAudit) -> String {
    if audit.filters.is_empty() {
        return String::new();
    }
    let most = audit.filters.iter().map(|filter| filter.removed).max().unwrap_or(0).max(1);
    let rows = audit.filters.iter().map(|filter| {
        format!(
            "<tr><th scope=\"row\">{}</th><td class=\"number\">{}</td><td class=\"bar\">{}</td></tr>",
            escape(&filter.filter),
            format::count(filter.removed),
            bar(filter.removed as f64 / most as f64),
        )
    });
    format!(
        "<figure><figcaption>Removed by filter <span class=\"quiet\">candidates</span></figcaption>\
         <div class=\"scroll\"><table class=\"wide\">\
         <thead><tr><th scope=\"col\">filter</th><th scope=\"col\" class=\"number\">removed</th><td class=\"bar\"></td></tr></thead>\
         <tbody>{}</tbody></table></div></figure>",
        rows.collect::<String>()
    )
}

fn gaps(histogram: &Histogram) -> String {
    if !histogram.is_drawable() {
        return String::new();
    }
    let (first, last) = (histogram.edges[0], histogram.edges[histogram.edges.len() - 1]);
    let most = histogram.counts.iter().copied().max().unwrap_or(0);
    let across = Scale::linear(first, last, AREA.left, AREA.right);
    let up = Scale::linear(0.0, most as f64, AREA.bottom, AREA.top);
    let whole = |tick: &f64| tick.fract() == 0.0;
    let ticks: Vec<f64> = up.ticks(4).into_iter().filter(whole).collect();
    let mut out = svg::open(WIDTH, HEIGHT, "histogram of the score gap between positive and negative");
    out += &svg::axis_left(AREA, &up, &ticks, |value| format::count(value as u64));
    for (edges, &count) in histogram.edges.windows(2).zip(&histogram.counts) {
        let (left, right, top) = (across.at(edges[0]), across.at(edges[1]), up.at(count as f64));
        out += &format!(
            "<rect class=\"fill\" x=\"{:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{}</title></rect>",
            left + 0.5,
            (right - left - 1.0).max(0.5),
            AREA.bottom - top,
            escape(&format!(
                "{} with a gap from {} to {}",
                format::counted(count, "negative"),
                svg::short_number(edges[0]),
                svg::short_number(edges[1])
            )),
        );
    }
    out += &svg::axis_bottom(AREA, &across, &across.ticks(7), svg::short_number);
    if first < 0.0 && last > 0.0 {
        out += &svg::line((across.at(0.0), AREA.top), (across.at(0.0), AREA.bottom), "reference r-teacher");
    }
    let middle = (AREA.left + AREA.right) / 2.0;
    out += &svg::text(
        middle,
        HEIGHT - 10.0,
        "middle",
        "axis-title",
        "teacher's score of the positive less that of the negative",
    );
    format!(
        "<figure><figcaption>Score gap <span class=\"quiet\">kept negatives</span></figcaption>\
         <div class=\"scroll\">{out}</svg></div></figure>"
    )
}

fn cases(audit: &NegativesAudit) -> String {
    if audit.suspicious.is_empty() {
        return String::new();
    }
    let items = audit.suspicious.iter().take(CASE_LIMIT).map(|case| {
        format!(
            "<li><p class=\"question\">{} <code>{}</code></p><dl>\
             <div><dt>positive {}</dt><dd>{}</dd></div><div><dt>negative {}</dt><dd>{} <code>{}</code></dd></div></dl></li>",
            escape_short(&case.query, TEXT_LIMIT),
            escape(&case.query_id),
            format::metric(Some(case.positive_score)),
            escape_short(&case.positive, TEXT_LIMIT),
            format::metric(Some(case.negative_score)),
            escape_short(&case.negative, TEXT_LIMIT),
            escape(&case.negative_id),
        )
    });
    let shown = audit.suspicious.len().min(CASE_LIMIT);
    format!(
        "<details><summary>Most suspicious negatives ({} of {})</summary><ol class=\"cases\">{}</ol></details>",
        shown,
        format::count(audit.suspicious.len() as u64),
        items.collect::<String>()
    )
}

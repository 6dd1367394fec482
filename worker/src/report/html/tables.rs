//! The tables of the page: rows by sets and metrics, comparisons, stages.

use super::super::data::{ReportData, Row};
use super::super::{format, summary};
use super::{escape, escape_short, marks};

/// Differences with a smaller p-value are marked.
const SIGNIFICANT: f64 = 0.05;

/// All rows with all sets and metrics.
pub fn results(data: &ReportData) -> String {
    if data.rows.is_empty() {
        return String::new();
    }
    let has_teacher = summary::teacher(data).is_some();
    let sets: Vec<(&str, bool)> = sets(data);
    let mut groups = String::new();
    let mut heads = String::new();
    for &(set, is_test) in &sets {
        let with_share = is_test && has_teacher && !data.metrics.is_empty();
        let columns = data.metrics.len() + usize::from(with_share);
        let count =
            summary::questions(data, set).map(|count| format!(" · {}", format::counted(count, "question")));
        groups += &format!(
            "<th scope=\"colgroup\" colspan=\"{}\" class=\"group\">{}<small>{}{}</small></th>",
            columns.max(1),
            escape(set),
            if is_test { "test" } else { "dev" },
            count.unwrap_or_default(),
        );
        for (index, metric) in data.metrics.iter().enumerate() {
            let class = if index == 0 { "number first" } else { "number" };
            heads += &format!("<th scope=\"col\" class=\"{class}\">{}</th>", escape(metric));
            if index == 0 && with_share {
                heads += "<th scope=\"col\" class=\"number\">of teacher</th>";
            }
        }
    }
    let rows: String =
        summary::ordered(data).into_iter().map(|row| result_row(data, row, &sets, has_teacher)).collect();
    format!(
        "<section aria-labelledby=\"results\"><h2 id=\"results\">Results</h2><div class=\"scroll\"><table>\
         <thead><tr><th rowspan=\"2\" scope=\"col\">name</th><th rowspan=\"2\" scope=\"col\">kind</th>\
         <th rowspan=\"2\" scope=\"col\" class=\"number\">dim</th>\
         <th rowspan=\"2\" scope=\"col\" class=\"number\">bytes per passage</th>{groups}</tr><tr>{heads}</tr></thead>\
         <tbody>{rows}</tbody></table></div>\
         <p class=\"note\">The best student of each column is bold.{}</p></section>",
        if data.dev.is_empty() { "" } else { " Choices were made on the dev sets, never on the test sets." },
    )
}

fn result_row(data: &ReportData, row: &Row, sets: &[(&str, bool)], has_teacher: bool) -> String {
    let variant = row.variant.as_ref().map(|variant| format!(" <small>{}</small>", escape(variant)));
    let mut out = format!(
        "<tr class=\"{}\"><th scope=\"row\"><svg class=\"key\" viewBox=\"0 0 16 16\" aria-hidden=\"true\">{}</svg>{}</th>\
         <td>{}{}</td><td class=\"number\">{}</td><td class=\"number\">{}</td>",
        if row.kind.is_student() { "student" } else { "other" },
        marks::mark(row.kind, 8.0, 8.0),
        escape(&row.name),
        row.kind.name(),
        variant.unwrap_or_default(),
        row.dim.map_or_else(|| format::NOTHING.to_owned(), |dim| dim.to_string()),
        format::bytes(row.bytes_per_passage),
    );
    for &(set, is_test) in sets {
        for (index, metric) in data.metrics.iter().enumerate() {
            let value = row.metric(set, metric);
            let is_best =
                row.kind.is_student() && value.is_some() && value == summary::best_student(data, set, metric);
            let written = format::metric(value);
            let cell = if is_best { format!("<strong>{written}</strong>") } else { written };
            out += &format!("<td class=\"number{}\">{cell}</td>", if index == 0 { " first" } else { "" });
            if index == 0 && is_test && has_teacher {
                let share = summary::share(data, row, set);
                let written = share.map_or_else(|| format::NOTHING.to_owned(), format::percent);
                out += &format!("<td class=\"number quiet\">{written}</td>");
            }
        }
        if data.metrics.is_empty() {
            out += "<td></td>";
        }
    }
    out + "</tr>"
}

/// Test sets, then dev sets, each with whether it is a test set.
fn sets(data: &ReportData) -> Vec<(&str, bool)> {
    let test = data.test.iter().map(|set| (set.as_str(), true));
    test.chain(data.dev.iter().map(|set| (set.as_str(), false))).collect()
}

/// The paired tests.
pub fn comparisons(data: &ReportData) -> String {
    if data.comparisons.is_empty() {
        return String::new();
    }
    let rows = data.comparisons.iter().map(|test| {
        let is_significant = test.p_value < SIGNIFICANT;
        let verdict = match (is_significant, test.difference > 0.0) {
            (true, true) => "<span class=\"good\">▲ better</span>",
            (true, false) => "<span class=\"bad\">▼ worse</span>",
            (false, _) => "<span class=\"quiet\">no clear difference</span>",
        };
        format!(
            "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td>{}</td><td class=\"number\">{}</td>\
             <td class=\"number\">{}</td><td class=\"number\">{}</td><td>{verdict}</td></tr>",
            escape(&test.row),
            escape(&test.baseline),
            escape(&test.set),
            escape(&test.metric),
            format::difference(test.difference),
            escape(&format::p_value(test.p_value)),
            format::count(test.queries),
        )
    });
    format!(
        "<section aria-labelledby=\"comparisons\"><h2 id=\"comparisons\">Comparisons</h2><div class=\"scroll\"><table>\
         <thead><tr><th scope=\"col\">row</th><th scope=\"col\">against</th><th scope=\"col\">set</th>\
         <th scope=\"col\">metric</th><th scope=\"col\" class=\"number\">difference</th>\
         <th scope=\"col\" class=\"number\">p-value</th><th scope=\"col\" class=\"number\">questions</th>\
         <th scope=\"col\">at p &lt; .05</th></tr></thead><tbody>{}</tbody></table></div>\
         <p class=\"note\">Two-sided paired randomisation over the questions of a set.</p></section>",
        rows.collect::<String>()
    )
}

/// What each stage took.
pub fn stages(data: &ReportData) -> String {
    if data.stages.is_empty() {
        return String::new();
    }
    let finite = |seconds: f64| if seconds.is_finite() { seconds.max(0.0) } else { 0.0 };
    let longest =
        data.stages.iter().map(|stage| finite(stage.seconds)).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let rows = data.stages.iter().map(|stage| {
        let cached = match stage.cached {
            0 => format::NOTHING.to_owned(),
            cached if cached >= stage.tasks => "all".to_owned(),
            cached => format::count(cached),
        };
        format!(
            "<tr><th scope=\"row\">{}</th><td class=\"number\">{}</td><td class=\"number\">{cached}</td>\
             <td class=\"number\">{}</td><td class=\"bar\">{}</td></tr>",
            escape(&stage.name),
            format::count(stage.tasks),
            format::seconds(stage.seconds),
            bar(finite(stage.seconds) / longest),
        )
    });
    let tasks: u64 = data.stages.iter().map(|stage| stage.tasks).sum();
    let cached: u64 = data.stages.iter().map(|stage| stage.cached).sum();
    let seconds: f64 = data.stages.iter().map(|stage| finite(stage.seconds)).sum();
    format!(
        "<section aria-labelledby=\"stages\"><h2 id=\"stages\">Stages</h2><div class=\"scroll\"><table class=\"wide\">\
         <thead><tr><th scope=\"col\">stage</th><th scope=\"col\" class=\"number\">tasks</th>\
         <th scope=\"col\" class=\"number\">cached</th><th scope=\"col\" class=\"number\">time</th>\
         <td class=\"bar\"></td></tr></thead><tbody>{}</tbody><tfoot><tr><th scope=\"row\">total</th>\
         <td class=\"number\">{}</td><td class=\"number\">{}</td><td class=\"number\">{}</td><td class=\"bar\"></td></tr>\
         </tfoot></table></div></section>",
        rows.collect::<String>(),
        format::count(tasks),
        format::count(cached),
        format::seconds(seconds),
    )
}

/// A bar of a share of its cell.
pub(super) fn bar(share: f64) -> String {
    format!(
        "<svg viewBox=\"0 0 100 10\" preserveAspectRatio=\"none\" aria-hidden=\"true\">\
         <rect class=\"fill\" width=\"{:.2}\" height=\"10\"/></svg>",
        share.clamp(0.0, 1.0) * 100.0
    )
}

/// Records of the input files that were left out.
pub fn bad_records(data: &ReportData) -> String {
    let bad = &data.bad_records;
    if bad.count == 0 {
        return String::new();
    }
    let items: String = bad
        .reasons
        .iter()
        .map(|reason| format!("<li><code>{}</code></li>", escape_short(reason, 300)))
        .collect();
    let count = format::counted(bad.count, "bad record");
    format!("<section><h2>Input</h2><p>{count} left out.</p><ul>{items}</ul></section>")
}

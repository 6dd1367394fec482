//! The plot of quality against bytes per passage, one panel for each test set.

use super::super::data::{Kind, ReportData, Row};
use super::super::{format, summary};
use super::labels::{self, Label, Taken};
use super::svg::{self, Area, Scale};
use super::{escape, marks};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 440.0;
const AREA: Area = Area { left: 52.0, top: 30.0, right: 612.0, bottom: 388.0 };

/// Labels beyond this length would cover their neighbours; the tooltip and the table have the whole name.
const LABEL_LIMIT: usize = 22;

/// A row that can be drawn.
struct Point<'a> {
    row: &'a Row,
    x: f64,
    y: f64,
}

/// Draws the section, or nothing where no row has a value.
pub fn section(data: &ReportData) -> String {
    let Some(metric) = summary::deciding(data) else { return String::new() };
    let sets = if data.test.is_empty() { &data.dev } else { &data.test };
    let panels: String = sets.iter().filter_map(|set| panel(data, set, metric)).collect();
    if panels.is_empty() {
        return String::new();
    }
    let mut kinds: Vec<Kind> = data.rows.iter().map(|row| row.kind).collect();
    kinds.sort();
    kinds.dedup();
    format!(
        "<section aria-labelledby=\"frontier\"><h2 id=\"frontier\">Quality against bytes per passage</h2>\
         {}<div class=\"panels\">{panels}</div><p class=\"note\">Lines join the best of the students (solid) and \
         of the baselines (dashed) at each size. Higher and further left is better.{}</p></section>",
        marks::legend(&kinds),
        if kinds.contains(&Kind::Bm25) { " BM25's bytes are those of an inverted index." } else { "" },
    )
}

fn panel(data: &ReportData, set: &str, metric: &str) -> Option<String> {
    let rows: Vec<(&Row, f64)> = summary::ordered(data)
        .into_iter()
        .filter(|row| row.bytes_per_passage.is_finite() && row.bytes_per_passage > 0.0)
        .filter_map(|row| Some((row, row.metric(set, metric)?)))
        .collect();
    if rows.is_empty() {
        return None;
    }
    let bytes = bounds(rows.iter().map(|(row, _)| row.bytes_per_passage));
    let values = bounds(rows.iter().map(|(_, value)| *value));
    let margin = ((values.1 - values.0) * 0.08).max(0.005);
    let across = Scale::log(bytes.0 / 1.5, bytes.1 * 1.5, AREA.left, AREA.right);
    let up = Scale::linear(values.0 - margin, values.1 + margin, AREA.bottom, AREA.top);
    let points: Vec<Point<'_>> = rows
        .iter()
        .map(|(row, value)| Point { row, x: across.at(row.bytes_per_passage), y: up.at(*value) })
        .collect();

    let questions =
        summary::questions(data, set).map(|count| format!(", {}", format::counted(count, "question")));
    let title = format!("{set}{}", questions.unwrap_or_default());
    let mut out = svg::open(WIDTH, HEIGHT, &format!("{metric} against bytes per passage on {title}"));
    out += &svg::axis_left(AREA, &up, &up.ticks(6), |value| format::metric(Some(value)));
    out += &svg::axis_bottom(AREA, &across, &across.powers_of_two(), format::bytes);
    out += &svg::text(AREA.left - 44.0, 16.0, "start", "axis-title", metric);
    out += &svg::text(
        (AREA.left + AREA.right) / 2.0,
        HEIGHT - 10.0,
        "middle",
        "axis-title",
        "bytes per passage (log scale)",
    );
    let (lines, taken) = reference_lines(&points, set, metric);
    out += &lines;
    out += &frontier(&points, Kind::is_student, "frontier students");
    out += &frontier(&points, Kind::is_baseline, "frontier baselines");
    // Students are drawn last, over what they are measured against.
    let layers = [
        points.iter().filter(|point| !point.row.kind.is_student()).collect::<Vec<_>>(),
        points.iter().filter(|point| point.row.kind.is_student()).collect(),
    ];
    for point in layers.iter().flatten() {
        out += &format!(
            "<g><title>{}</title>{}</g>",
            escape(&tooltip(data, point.row, set, metric)),
            marks::mark(point.row.kind, point.x, point.y)
        );
    }
    out += &labels::place(&wanted_labels(&points), AREA, taken);
    Some(format!(
        "<figure><figcaption>{}</figcaption><div class=\"scroll\">{out}</svg></div></figure>",
        escape(&title)
    ))
}

/// The teacher's and BM25's levels, and the space that they and all points take.
fn reference_lines(points: &[Point<'_>], set: &str, metric: &str) -> (String, Vec<Taken>) {
    let mut out = String::new();
    let mut taken: Vec<Taken> = points.iter().map(|point| Taken::by_mark(point.x, point.y)).collect();
    for point in points.iter().filter(|point| matches!(point.row.kind, Kind::Teacher | Kind::Bm25)) {
        let class = format!("reference r-{}", point.row.kind.name());
        out += &svg::line((AREA.left, point.y), (AREA.right, point.y), &class);
        let words = format!(
            "{} {}",
            format::shorten(&point.row.name, LABEL_LIMIT),
            format::metric(point.row.metric(set, metric))
        );
        let (x, y) = (AREA.left + 6.0, point.y - 5.0);
        let space = Taken::by_text(x, y, "start", &words);
        out += &svg::text(x, y, "start", "label quiet", &words);
        taken.extend([space, Taken::by_line(AREA, point.y)]);
    }
    (out, taken)
}

/// The line through the rows that no smaller row of the same side equals or beats.
fn frontier(points: &[Point<'_>], belongs: impl Fn(Kind) -> bool, class: &str) -> String {
    let mut side: Vec<&Point<'_>> = points.iter().filter(|point| belongs(point.row.kind)).collect();
    side.sort_by(|left, right| left.x.total_cmp(&right.x).then(left.y.total_cmp(&right.y)));
    let mut best = f64::INFINITY;
    side.retain(|point| {
        let is_better = point.y < best;
        best = best.min(point.y);
        is_better
    });
    svg::path(side.iter().map(|point| Some((point.x, point.y))), class)
}

/// Students first, as they get the best places.
fn wanted_labels(points: &[Point<'_>]) -> Vec<Label> {
    let mut named: Vec<&Point<'_>> =
        points.iter().filter(|point| !matches!(point.row.kind, Kind::Teacher | Kind::Bm25)).collect();
    named.sort_by_key(|point| !point.row.kind.is_student());
    let label = |point: &&Point<'_>| Label {
        x: point.x,
        y: point.y,
        words: format::shorten(&format::clean(&point.row.name), LABEL_LIMIT),
        class: if point.row.kind.is_student() { "label strong" } else { "label" }.to_owned(),
    };
    named.iter().map(label).collect()
}

fn tooltip(data: &ReportData, row: &Row, set: &str, metric: &str) -> String {
    let mut text = format!(
        "{} ({}): {metric} {} at {} bytes",
        row.name,
        row.kind.name(),
        format::metric(row.metric(set, metric)),
        format::bytes(row.bytes_per_passage)
    );
    if let Some(share) = summary::share(data, row, set) {
        text += &format!(", {} of the teacher", format::percent(share));
    }
    text
}

/// The least and the greatest of some finite values.
fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
}

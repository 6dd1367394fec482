//! The table on the terminal: plain text without colour, aligned, at most [`WIDTH`] columns where names allow.

use super::data::{ReportData, Row};
use super::{format, summary};

/// Columns of the terminal that the table tries to stay within.
pub const WIDTH: usize = 118;

/// Longer names are cut, as they would push the numbers off the screen.
const NAME_LIMIT: usize = 32;

/// Blank columns between two cells.
const GAP: usize = 2;

/// Renders the results, the comparisons, what they say, and the stages, with a line feed at the end.
pub fn render_table(data: &ReportData) -> String {
    let mut parts = vec![title(data), results(data)];
    let sentences: Vec<String> = summary::sentences(data).iter().map(|text| wrapped(text)).collect();
    let comparisons: Vec<String> =
        data.comparisons.iter().map(|test| line(&summary::comparison(test))).collect();
    parts.extend([sentences.concat(), comparisons.concat(), bad_records(data), stages(data)]);
    parts.retain(|part| !part.is_empty());
    parts.join("\n")
}

/// What was left out of the input, which may explain the figures.
fn bad_records(data: &ReportData) -> String {
    let bad = &data.bad_records;
    if bad.count == 0 {
        return String::new();
    }
    let reasons: String = bad.reasons.iter().map(|reason| line(&format!("  {reason}"))).collect();
    line(&format!("{} of the input left out", format::counted(bad.count, "bad record"))) + &reasons
}

fn title(data: &ReportData) -> String {
    line(&format!("{} · job {} · spec {}", data.name, data.job, format::shorten(&data.spec_digest, 20)))
}

fn line(text: &str) -> String {
    format!("{}\n", format::clean(text).trim_end())
}

/// A sentence over as many lines as it needs, the later ones set in.
fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in format::clean(text).split_whitespace() {
        let last = lines.len() - 1;
        if !lines[last].trim().is_empty() && lines[last].chars().count() + 1 + word.chars().count() > WIDTH {
            lines.push(format!("  {word}"));
        } else {
            let space = if lines[last].is_empty() { "" } else { " " };
            lines[last] += &format!("{space}{word}");
        }
    }
    lines.join("\n") + "\n"
}

/// A column: what stands above it in two lines, and its cells.
struct Column {
    group: String,
    head: String,
    left: bool,
    cells: Vec<String>,
}

impl Column {
    fn new(group: &str, head: &str, left: bool, cells: Vec<String>) -> Self {
        let tidy = |text: &str| format::shorten(&format::clean(text), NAME_LIMIT);
        Self {
            group: tidy(group),
            head: tidy(head),
            left,
            cells: cells.iter().map(|cell| tidy(cell)).collect(),
        }
    }

    fn width(&self) -> usize {
        self.cells.iter().chain([&self.head]).map(|cell| cell.chars().count()).max().unwrap_or(0)
    }

    fn pad(&self, text: &str, width: usize) -> String {
        if self.left { format!("{text:<width$}") } else { format!("{text:>width$}") }
    }
}

fn results(data: &ReportData) -> String {
    let rows = summary::ordered(data);
    if rows.is_empty() {
        return line("no results");
    }
    let mut columns = vec![
        Column::new("", "name", true, cells(&rows, |row| row.name.clone())),
        Column::new("", "kind", true, cells(&rows, kind)),
        Column::new("", "dim", false, cells(&rows, dimensions)),
        Column::new("", "bytes/passage", false, cells(&rows, |row| format::bytes(row.bytes_per_passage))),
    ];
    // Further metrics are shown as long as they fit: the deciding one of every set is always there.
    for shown in (1..=data.metrics.len().max(1)).rev() {
        let measured = measured(data, &rows, shown);
        let total = total_width(&columns) + GAP + total_width(&measured);
        if total <= WIDTH || shown == 1 {
            columns.extend(measured);
            break;
        }
    }
    draw(&columns)
}

fn cells(rows: &[&Row], cell: impl Fn(&Row) -> String) -> Vec<String> {
    rows.iter().map(|row| cell(row)).collect()
}

fn kind(row: &Row) -> String {
    match &row.variant {
        Some(variant) => format!("{}, {variant}", row.kind.name()),
        None => row.kind.name().to_owned(),
    }
}

fn dimensions(row: &Row) -> String {
    row.dim.map_or_else(|| format::NOTHING.to_owned(), |dim| dim.to_string())
}

/// The metric columns: test sets with `shown` metrics and the share of the teacher, then dev sets with the
/// deciding metric.
fn measured(data: &ReportData, rows: &[&Row], shown: usize) -> Vec<Column> {
    let mut columns = Vec::new();
    let mut push = |set: &str, metrics: &[String], with_share: bool| {
        for (index, metric) in metrics.iter().enumerate() {
            let values = cells(rows, |row| format::metric(row.metric(set, metric)));
            columns.push(Column::new(set, metric, false, values));
            if index == 0 && with_share {
                let shares = cells(rows, |row| {
                    summary::share(data, row, set).map_or_else(|| format::NOTHING.to_owned(), format::percent)
                });
                columns.push(Column::new(set, "of teacher", false, shares));
            }
        }
    };
    let has_teacher = summary::teacher(data).is_some();
    for set in &data.test {
        push(set, &data.metrics[..shown.min(data.metrics.len())], has_teacher);
    }
    for set in &data.dev {
        push(set, &data.metrics[..data.metrics.len().min(1)], false);
    }
    columns
}

/// Neighbouring columns of the same group, as (name, columns).
fn groups(columns: &[Column]) -> Vec<(&str, &[Column])> {
    let same = |left: &Column, right: &Column| left.group == right.group;
    columns.chunk_by(same).map(|group| (group[0].group.as_str(), group)).collect()
}

/// The width of neighbouring columns with the gaps between them, at least that of their group's name.
fn group_width(name: &str, group: &[Column]) -> usize {
    let cells: usize = group.iter().map(Column::width).sum();
    (cells + GAP * (group.len() - 1)).max(name.chars().count())
}

fn total_width(columns: &[Column]) -> usize {
    let groups = groups(columns);
    groups.iter().map(|(name, group)| group_width(name, group)).sum::<usize>()
        + GAP * groups.len().saturating_sub(1)
}

fn draw(columns: &[Column]) -> String {
    let groups = groups(columns);
    let gap = " ".repeat(GAP);
    // A group's name may be wider than its columns: the first of them takes what is missing.
    let widths: Vec<Vec<usize>> = groups
        .iter()
        .map(|(name, group)| {
            let mut widths: Vec<usize> = group.iter().map(Column::width).collect();
            widths[0] += group_width(name, group) - (widths.iter().sum::<usize>() + GAP * (group.len() - 1));
            widths
        })
        .collect();
    let row = |cell: &dyn Fn(&Column) -> String| -> String {
        let parts = groups.iter().zip(&widths).flat_map(|((_, group), widths)| {
            group.iter().zip(widths).map(|(column, width)| column.pad(&cell(column), *width))
        });
        line(&parts.collect::<Vec<_>>().join(&gap))
    };
    let mut text = String::new();
    if groups.iter().any(|(name, _)| !name.is_empty()) {
        let names = groups.iter().map(|(name, group)| centred(name, group_width(name, group)));
        text += &line(&names.collect::<Vec<_>>().join(&gap));
    }
    text += &row(&|column| column.head.clone());
    let rules =
        widths.iter().map(|widths| "─".repeat(widths.iter().sum::<usize>() + GAP * (widths.len() - 1)));
    text += &line(&rules.collect::<Vec<_>>().join(&gap));
    let height = columns.first().map_or(0, |column| column.cells.len());
    for index in 0..height {
        text += &row(&|column| column.cells[index].clone());
    }
    text
}

fn centred(name: &str, width: usize) -> String {
    if name.is_empty() { " ".repeat(width) } else { format!("{name:^width$}") }
}

fn stages(data: &ReportData) -> String {
    if data.stages.is_empty() {
        return String::new();
    }
    let column = |head: &str, left: bool, cell: &dyn Fn(&super::StageTime) -> String, sum: String| {
        let mut cells: Vec<String> = data.stages.iter().map(cell).collect();
        cells.push(sum);
        Column::new("", head, left, cells)
    };
    let tasks: u64 = data.stages.iter().map(|stage| stage.tasks).sum();
    let cached: u64 = data.stages.iter().map(|stage| stage.cached).sum();
    let seconds: f64 =
        data.stages.iter().map(|stage| stage.seconds).filter(|seconds| seconds.is_finite()).sum();
    let written = |seconds: f64| {
        if seconds.is_finite() { format!("{seconds:.1}") } else { format::NOTHING.to_owned() }
    };
    draw(&[
        column("stage", true, &|stage| stage.name.clone(), "total".to_owned()),
        column("tasks", false, &|stage| format::count(stage.tasks), format::count(tasks)),
        column("cached", false, &|stage| format::count(stage.cached), format::count(cached)),
        column("seconds", false, &|stage| written(stage.seconds), written(seconds)),
    ])
}

//! The loss curves: for each student a drawing per phase, with the learning rate and the gradient's norm
//! below it.

use super::super::StepPoint;
use super::super::data::{Phase, ReportData};
use super::super::format;
use super::svg::{self, Area, Scale};
use super::{escape, escape_short};

/// At most this many points of a curve reach the page.
pub const POINT_LIMIT: usize = 400;

/// Terms beyond these stay out of the drawing: there are as many colours.
const TERM_LIMIT: usize = 4;

/// A loss that falls by more than this factor is drawn on a logarithmic scale.
const LOG_RATIO: f64 = 15.0;

const WIDTH: f64 = 640.0;
const LOSS: Area = Area { left: 60.0, top: 14.0, right: 612.0, bottom: 226.0 };
const STRIP_HEIGHT: f64 = 40.0;
const STRIP_GAP: f64 = 30.0;

/// A curve as (step, value), without a value where it was not finite.
type Series = Vec<(f64, Option<f64>)>;

/// Draws the section, or nothing where nothing was trained.
pub fn section(data: &ReportData) -> String {
    let mut out = String::new();
    for training in &data.training {
        let phases: String = training.phases.iter().map(figure).collect();
        if !phases.is_empty() {
            out +=
                &format!("<h3>{}</h3><div class=\"panels even\">{phases}</div>", escape(&training.student));
        }
    }
    if out.is_empty() {
        return out;
    }
    format!("<section aria-labelledby=\"training\"><h2 id=\"training\">Training</h2>{out}</section>")
}

fn figure(phase: &Phase) -> String {
    if phase.steps.is_empty() {
        return String::new();
    }
    let caption = format!(
        "phase {} <span class=\"quiet\">{} · {}</span>",
        escape(&phase.name),
        escape(&phase.signal),
        format::counted(phase.steps.len() as u64, "step")
    );
    let lost = phase.steps.iter().filter(|step| !step.loss.is_finite()).count() as u64;
    let warning = match lost {
        0 => String::new(),
        lost => format!("<p class=\"warning\">{} without a finite loss</p>", format::counted(lost, "step")),
    };
    format!(
        "<figure><figcaption>{caption}</figcaption><div class=\"scroll\">{}</div>{}{warning}</figure>",
        drawing(phase),
        legend(phase)
    )
}

fn drawing(phase: &Phase) -> String {
    let raw = series(phase, |step| step.loss);
    let smooth = smoothed(&raw);
    let terms: Vec<Series> =
        term_names(phase).iter().map(|name| smoothed(&series(phase, |step| term(step, name)))).collect();
    let finite = |series: &Series| -> Vec<f64> { series.iter().filter_map(|point| point.1).collect() };
    let shown: Vec<f64> = [&raw].into_iter().chain(&terms).flat_map(finite).collect();
    let level = finite(&smooth);
    let Some((low, high)) = bounds(&shown) else {
        return "<p class=\"note\">no finite loss</p>".to_owned();
    };
    let across = horizontal(&raw);
    let falls_far = bounds(&level).is_some_and(|(least, most)| least > 0.0 && most / least > LOG_RATIO);
    let up = if low > 0.0 && falls_far {
        Scale::log(low, high, LOSS.bottom, LOSS.top)
    } else {
        // Outliers of single steps may leave the drawing's upper edge, the curve may not.
        let floor = if low > 0.0 && low < 0.5 * high { 0.0 } else { low };
        Scale::linear(floor, high, LOSS.bottom, LOSS.top)
    };
    let strips = [
        ("learning rate", series(phase, |step| step.learning_rate)),
        ("gradient norm", series(phase, |step| step.gradient_norm)),
    ];
    let strips: Vec<_> = strips
        .into_iter()
        .filter(|(_, values)| bounds(&finite(values)).is_some_and(|(_, most)| most > 0.0))
        .collect();
    let height = LOSS.bottom + 40.0 + strips.len() as f64 * (STRIP_HEIGHT + STRIP_GAP);
    let mut out =
        svg::open(WIDTH, height, &format!("loss of phase {} over {} steps", phase.name, phase.steps.len()));
    out += &svg::axis_left(LOSS, &up, &up.ticks(5), svg::short_number);
    out +=
        &svg::axis_bottom(LOSS, &across, &step_ticks(&across), |value| format::count(value.max(0.0) as u64));
    out += &curve(&extremes(&raw), &across, &up, "raw");
    for (index, values) in terms.iter().enumerate() {
        out += &curve(&strided(values), &across, &up, &format!("term t{index}"));
    }
    out += &curve(&strided(&smooth), &across, &up, "loss");
    for (index, (name, values)) in strips.iter().enumerate() {
        let top = LOSS.bottom + 46.0 + index as f64 * (STRIP_HEIGHT + STRIP_GAP);
        out += &strip(name, values, &across, Area { top, bottom: top + STRIP_HEIGHT, ..LOSS });
    }
    out + "</svg>"
}

/// A low drawing of a quantity that only needs its shape and its largest value.
fn strip(name: &str, values: &Series, across: &Scale, area: Area) -> String {
    let finite: Vec<f64> = values.iter().filter_map(|point| point.1).collect();
    let Some((_, most)) = bounds(&finite) else { return String::new() };
    let up = Scale::linear(0.0, most, area.bottom, area.top);
    svg::text(area.left, area.top - 6.0, "start", "tick", name)
        + &svg::axis_left(area, &up, &[0.0, most], short_decimal)
        + &curve(&extremes(values), across, &up, "strip")
}

fn short_decimal(value: f64) -> String {
    if (0.01..1000.0).contains(&value) {
        format!("{value:.2}")
    } else if value == 0.0 {
        "0".to_owned()
    } else {
        format!("{value:.1e}")
    }
}

fn legend(phase: &Phase) -> String {
    let names = term_names(phase);
    if names.is_empty() {
        return String::new();
    }
    let items = names
        .iter()
        .enumerate()
        .map(|(index, name)| format!("<li><i class=\"swatch t{index}\"></i>{}</li>", escape_short(name, 40)));
    format!(
        "<ul class=\"legend\"><li><i class=\"swatch loss\"></i>loss</li>{}</ul>",
        items.collect::<String>()
    )
}

/// The terms to draw. A single term is the loss itself.
fn term_names(phase: &Phase) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in phase.steps.iter().flat_map(|step| &step.terms) {
        if !names.contains(&name.as_str()) && names.len() < TERM_LIMIT {
            names.push(name);
        }
    }
    if names.len() < 2 { Vec::new() } else { names }
}

fn term(step: &StepPoint, name: &str) -> f64 {
    step.terms.iter().find(|(other, _)| other == name).map_or(f64::NAN, |(_, value)| *value)
}

fn series(phase: &Phase, value: impl Fn(&StepPoint) -> f64) -> Series {
    let point = |step: &StepPoint| (step.step as f64, Some(value(step)).filter(|value| value.is_finite()));
    phase.steps.iter().map(point).collect()
}

/// The mean over a window of about a fortieth of the curve around each point: unlike an exponential mean it
/// does not lag behind a loss that falls.
fn smoothed(series: &Series) -> Series {
    let half = series.len() / 80;
    let mut sums = vec![(0.0, 0u32)];
    let (mut sum, mut count) = (0.0, 0);
    for value in series.iter().map(|point| point.1) {
        sum += value.unwrap_or(0.0);
        count += u32::from(value.is_some());
        sums.push((sum, count));
    }
    let mean = |index: usize| {
        // Narrower at both ends, so that the window stays centred, but never so narrow that noise returns.
        let last = series.len() - 1;
        let reach = half.min(index.min(last - index).max(half / 3));
        let (from, to) = (sums[index.saturating_sub(reach)], sums[(index + reach).min(last) + 1]);
        Some((to.0 - from.0) / f64::from(to.1 - from.1)).filter(|mean| mean.is_finite())
    };
    series.iter().enumerate().map(|(index, &(step, value))| (step, value.and_then(|_| mean(index)))).collect()
}

/// Every n-th point and the last.
fn strided(series: &Series) -> Series {
    if series.len() <= POINT_LIMIT {
        return series.clone();
    }
    let last = series.len() - 1;
    (0..POINT_LIMIT).map(|index| series[index * last / (POINT_LIMIT - 1)]).collect()
}

/// The least and the greatest point of each stretch, so that spikes survive. A stretch with a missing
/// value keeps a gap.
fn extremes(series: &Series) -> Series {
    if series.len() <= POINT_LIMIT {
        return series.clone();
    }
    let mut points = Series::new();
    for stretch in series.chunks(series.len().div_ceil(POINT_LIMIT / 2)) {
        if let Some(gap) = stretch.iter().find(|point| point.1.is_none()) {
            points.push(*gap);
            continue;
        }
        let by_value = |left: &&(f64, Option<f64>), right: &&(f64, Option<f64>)| {
            left.1.unwrap_or(f64::NAN).total_cmp(&right.1.unwrap_or(f64::NAN))
        };
        let mut pair: Vec<(f64, Option<f64>)> =
            [stretch.iter().min_by(by_value), stretch.iter().max_by(by_value)]
                .into_iter()
                .flatten()
                .copied()
                .collect();
        pair.sort_by(|left, right| left.0.total_cmp(&right.0));
        points.extend(pair);
    }
    points
}

fn curve(series: &Series, across: &Scale, up: &Scale, class: &str) -> String {
    svg::path(series.iter().map(|(step, value)| value.map(|value| (across.at(*step), up.at(value)))), class)
}

fn horizontal(series: &Series) -> Scale {
    let first = series.first().map_or(0.0, |point| point.0);
    let last = series.last().map_or(first, |point| point.0);
    Scale::linear(first, last, LOSS.left, LOSS.right)
}

/// Steps are whole numbers; so are their ticks.
fn step_ticks(scale: &Scale) -> Vec<f64> {
    scale.ticks(6).into_iter().filter(|tick| tick.fract() == 0.0 && *tick >= 0.0).collect()
}

fn bounds(values: &[f64]) -> Option<(f64, f64)> {
    let low = values.iter().copied().min_by(f64::total_cmp)?;
    let high = values.iter().copied().max_by(f64::total_cmp)?;
    Some((low, high))
}

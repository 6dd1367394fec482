//! What the drawings share: scales, ticks, axes and paths.

use super::super::format;
use super::escape;

/// Maps values onto a drawing's coordinates.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    log: bool,
}

impl Scale {
    /// A linear scale from `low..high` onto `from..to`. An empty domain is widened, so that a single value
    /// lies in the middle.
    pub fn linear(low: f64, high: f64, from: f64, to: f64) -> Self {
        let half = if high > low { 0.0 } else { (low.abs() * 0.1).max(0.01) };
        Self { low: low - half, high: high + half, from, to, log: false }
    }

    /// A logarithmic scale; both ends must be above zero.
    pub fn log(low: f64, high: f64, from: f64, to: f64) -> Self {
        let factor = if high > low { 1.0 } else { 2.0 };
        Self { low: low / factor, high: high * factor, from, to, log: true }
    }

    /// Where a value lies.
    pub fn at(&self, value: f64) -> f64 {
        let share = if self.log {
            (value.ln() - self.low.ln()) / (self.high.ln() - self.low.ln())
        } else {
            (value - self.low) / (self.high - self.low)
        };
        self.from + share * (self.to - self.from)
    }

    /// Round values within the scale, about `wanted` of them.
    pub fn ticks(&self, wanted: usize) -> Vec<f64> {
        if self.log { self.decades() } else { self.steps(wanted) }
    }

    /// Powers of two within the scale.
    pub fn powers_of_two(&self) -> Vec<f64> {
        let first = self.low.log2().ceil() as i32;
        let last = self.high.log2().floor() as i32;
        // Every second or third one where the bytes span many powers.
        let stride = ((last - first) / 10 + 1).max(1) as usize;
        (first..=last).step_by(stride).map(|power| 2f64.powi(power)).collect()
    }

    fn steps(&self, wanted: usize) -> Vec<f64> {
        let rough = (self.high - self.low) / wanted.max(1) as f64;
        let magnitude = 10f64.powf(rough.log10().floor());
        let step =
            [1.0, 2.0, 5.0, 10.0].map(|factor| factor * magnitude).into_iter().find(|step| *step >= rough);
        let step = step.unwrap_or(magnitude * 10.0);
        let first = (self.low / step - 1e-9).ceil() as i64;
        let last = (self.high / step + 1e-9).floor() as i64;
        (first..=last).map(|index| index as f64 * step).collect()
    }

    fn decades(&self) -> Vec<f64> {
        let inside = |value: &f64| (self.low..=self.high).contains(value);
        let (first, last) = (self.low.log10().floor() as i32, self.high.log10().ceil() as i32);
        let factors: &[f64] = if last - first > 3 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let all =
            (first..=last).flat_map(|power| factors.iter().map(move |factor| factor * 10f64.powi(power)));
        all.filter(inside).collect()
    }
}

/// The area of a drawing in which data lies, in the drawing's coordinates.
#[derive(Clone, Copy, Debug)]
pub struct Area {
    /// Left edge.
    pub left: f64,
    /// Upper edge.
    pub top: f64,
    /// Right edge.
    pub right: f64,
    /// Lower edge.
    pub bottom: f64,
}

/// Opens a drawing of this size that scales with the page. The label is what a screen reader says.
pub fn open(width: f64, height: f64, label: &str) -> String {
    format!("<svg viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" aria-label=\"{}\">", escape(label))
}

/// Horizontal grid lines with their values on the left.
pub fn axis_left(area: Area, scale: &Scale, ticks: &[f64], write: impl Fn(f64) -> String) -> String {
    let mut out = String::new();
    for &tick in ticks {
        let y = scale.at(tick);
        out += &line((area.left, y), (area.right, y), "grid");
        out += &text(area.left - 7.0, y + 4.0, "end", "tick", &write(tick));
    }
    out
}

/// Values below the area with short marks.
pub fn axis_bottom(area: Area, scale: &Scale, ticks: &[f64], write: impl Fn(f64) -> String) -> String {
    let mut out = line((area.left, area.bottom), (area.right, area.bottom), "axis");
    for &tick in ticks {
        let x = scale.at(tick);
        out += &line((x, area.bottom), (x, area.bottom + 4.0), "axis");
        out += &text(x, area.bottom + 18.0, "middle", "tick", &write(tick));
    }
    out
}

/// A straight line.
pub fn line(from: (f64, f64), to: (f64, f64), class: &str) -> String {
    format!(
        "<line class=\"{class}\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>",
        from.0, from.1, to.0, to.1
    )
}

/// A word or number; it is escaped here.
pub fn text(x: f64, y: f64, anchor: &str, class: &str, words: &str) -> String {
    format!(
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>",
        escape(words)
    )
}

/// A line through points. It is broken where a point is missing.
pub fn path(points: impl IntoIterator<Item = Option<(f64, f64)>>, class: &str) -> String {
    let mut steps = String::new();
    let mut is_drawing = false;
    for point in points {
        if let Some((x, y)) = point {
            steps += &format!("{}{x:.1} {y:.1}", if is_drawing { "L" } else { "M" });
        }
        is_drawing = point.is_some();
    }
    if steps.is_empty() { String::new() } else { format!("<path class=\"{class}\" d=\"{steps}\"/>") }
}

/// A tick's value in few characters.
pub fn short_number(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 {
        return "0".to_owned();
    }
    if (1e-3..1e4).contains(&size) {
        let digits = format!("{value:.4}");
        return digits.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    if (1e4..1e15).contains(&size) && value.fract() == 0.0 {
        let sign = if value < 0.0 { "−" } else { "" };
        return format!("{sign}{}", format::count(size as u64));
    }
    format!("{value:.0e}")
}

//! Places labels beside their points so that they cover neither each other nor a point.

use super::marks::RADIUS;
use super::svg::{self, Area};

/// Height of a label's line in the drawing's coordinates.
const HEIGHT: f64 = 14.0;

/// Distances from the point at which places are tried, nearest first.
const DISTANCES: [f64; 5] = [10.0, 18.0, 28.0, 40.0, 54.0];

/// Directions in which places are tried, best first, as (right, down) and where the text is anchored.
const DIRECTIONS: [(f64, f64, &str); 8] = [
    (0.0, -1.0, "middle"),
    (1.0, 0.0, "start"),
    (-1.0, 0.0, "end"),
    (0.0, 1.0, "middle"),
    (0.7, -0.7, "start"),
    (-0.7, -0.7, "end"),
    (0.7, 0.7, "start"),
    (-0.7, 0.7, "end"),
];

/// A label that wants a place.
pub struct Label {
    /// The point that it names.
    pub x: f64,
    /// The point that it names.
    pub y: f64,
    /// What it says.
    pub words: String,
    /// Its class.
    pub class: String,
}

/// A rectangle that is taken.
#[derive(Clone, Copy)]
pub struct Taken {
    left: f64,
    top: f64,
    right: f64,
    bottom: f64,
}

impl Taken {
    /// What a label covers that starts, ends or lies centred at x, on the base line y.
    pub fn by_text(x: f64, y: f64, anchor: &str, words: &str) -> Self {
        let width = width(words);
        let left = match anchor {
            "start" => x,
            "end" => x - width,
            _ => x - width / 2.0,
        };
        Self { left, top: y - HEIGHT * 0.8, right: left + width, bottom: y + HEIGHT * 0.25 }
    }

    /// What a horizontal line covers.
    pub fn by_line(area: Area, y: f64) -> Self {
        Self { left: area.left, top: y - 1.0, right: area.right, bottom: y + 1.0 }
    }

    /// What a point covers.
    pub fn by_mark(x: f64, y: f64) -> Self {
        let r = RADIUS + 1.0;
        Self { left: x - r, top: y - r, right: x + r, bottom: y + r }
    }

    fn overlap(&self, other: &Taken) -> f64 {
        let across = self.right.min(other.right) - self.left.max(other.left);
        let down = self.bottom.min(other.bottom) - self.top.max(other.top);
        across.max(0.0) * down.max(0.0)
    }

    fn outside(&self, area: Area) -> f64 {
        (area.left - self.left).max(0.0)
            + (self.right - area.right).max(0.0)
            + (area.top - self.top).max(0.0)
            + (self.bottom - area.bottom).max(0.0)
    }
}

/// Draws every label at the first place that is free, or at the one that covers least; a thin line leads
/// to those that stand off.
pub fn place(labels: &[Label], area: Area, mut taken: Vec<Taken>) -> String {
    let mut out = String::new();
    for label in labels {
        let Some(place) = best_place(label, area, &taken) else { continue };
        let Taken { left, top, right, bottom } = place.space;
        if place.stands_off {
            let edge = if bottom < label.y { bottom } else { top.max(label.y.min(bottom)) };
            out += &svg::line((label.x, label.y), (label.x.clamp(left, right), edge), "leader");
        }
        out += &svg::text(place.x, place.y, place.anchor, &label.class, &label.words);
        taken.push(place.space);
    }
    out
}

/// Where a label could stand.
struct Place {
    x: f64,
    y: f64,
    anchor: &'static str,
    space: Taken,
    /// Too far from its point to be understood without a line.
    stands_off: bool,
}

/// The first free place, or the one that covers least.
fn best_place(label: &Label, area: Area, taken: &[Taken]) -> Option<Place> {
    let mut best: Option<(f64, Place)> = None;
    for place in candidates(label) {
        let covered: f64 = taken.iter().map(|other| place.space.overlap(other)).sum();
        let cost = covered + 50.0 * place.space.outside(area);
        if cost == 0.0 {
            return Some(place);
        }
        if best.as_ref().is_none_or(|(least, _)| cost < *least) {
            best = Some((cost, place));
        }
    }
    best.map(|(_, place)| place)
}

fn candidates(label: &Label) -> impl Iterator<Item = Place> {
    DISTANCES.into_iter().enumerate().flat_map(move |(ring, distance)| {
        DIRECTIONS.into_iter().map(move |(right, down, anchor)| {
            // The base line lies below the middle of the letters.
            let (x, y) = (label.x + right * distance, label.y + down * distance + 4.0 + down * 3.0);
            let space = Taken::by_text(x, y, anchor, &label.words);
            Place { x, y, anchor, space, stands_off: ring > 0 }
        })
    })
}

/// An estimate: the page's fonts are not known here, and wide scripts take a whole square.
fn width(words: &str) -> f64 {
    words.chars().map(|letter| if letter as u32 >= 0x1100 { 13.0 } else { 7.3 }).sum()
}

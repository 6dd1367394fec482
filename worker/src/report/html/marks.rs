//! The shape and colour of each kind of row. Shape alone tells the kinds apart; the colours (style.css)
//! are Okabe and Ito's, which stay distinct to colour-blind readers. Students are filled, others hollow.

use super::super::data::Kind;

/// Half the size of a mark.
pub const RADIUS: f64 = 5.5;

/// Draws a kind's mark.
pub fn mark(kind: Kind, x: f64, y: f64) -> String {
    let class = format!("mark k-{}", kind.name());
    let r = RADIUS;
    let polygon = |corners: &[(f64, f64)]| {
        let points: Vec<String> =
            corners.iter().map(|(right, down)| format!("{:.1},{:.1}", x + right * r, y + down * r)).collect();
        format!("<polygon class=\"{class}\" points=\"{}\"/>", points.join(" "))
    };
    let circle =
        |radius: f64| format!("<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius:.1}\"/>");
    match kind {
        Kind::Teacher => polygon(&star()),
        Kind::Head => circle(r),
        Kind::Encoder => polygon(&[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]),
        Kind::Quantised => polygon(&[(0.0, -1.15), (1.1, 0.85), (-1.1, 0.85)]),
        Kind::Pca => circle(r * 0.9),
        Kind::Pq => polygon(&[(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]),
        Kind::Opq => polygon(&[(0.0, 1.15), (1.1, -0.85), (-1.1, -0.85)]),
        Kind::Residual => polygon(&[(-1.15, 0.0), (0.85, -1.1), (0.85, 1.1)]),
        Kind::Int8 => polygon(&[(0.0, -1.15), (1.15, 0.0), (0.0, 1.15), (-1.15, 0.0)]),
        Kind::Binary => polygon(&[(-1.1, -0.5), (1.1, -0.5), (1.1, 0.5), (-1.1, 0.5)]),
        Kind::Bm25 => polygon(&[
            (-0.35, -1.0),
            (0.35, -1.0),
            (0.35, -0.35),
            (1.0, -0.35),
            (1.0, 0.35),
            (0.35, 0.35),
            (0.35, 1.0),
            (-0.35, 1.0),
            (-0.35, 0.35),
            (-1.0, 0.35),
            (-1.0, -0.35),
            (-0.35, -0.35),
        ]),
    }
}

/// The legend of the kinds that occur.
pub fn legend(kinds: &[Kind]) -> String {
    let items = kinds.iter().map(|&kind| {
        format!(
            "<li><svg class=\"key\" viewBox=\"0 0 16 16\" aria-hidden=\"true\">{}</svg>{}</li>",
            mark(kind, 8.0, 8.0),
            kind.name()
        )
    });
    format!("<ul class=\"legend\">{}</ul>", items.collect::<String>())
}

fn star() -> Vec<(f64, f64)> {
    (0..10)
        .map(|corner| {
            let angle = std::f64::consts::PI * (f64::from(corner) / 5.0 - 0.5);
            let length = if corner % 2 == 0 { 1.45 } else { 0.6 };
            (length * angle.cos(), length * angle.sin())
        })
        .collect()
}

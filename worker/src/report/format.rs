//! Numbers and names as text, the same on the terminal and on the page.

/// Stands where there is no number.
pub const NOTHING: &str = "–";

/// A metric as trec_eval's readers write it: ".637", "1.000".
pub fn metric(value: Option<f64>) -> String {
    match value.filter(|value| value.is_finite()) {
        Some(value) => without_leading_zero(&format!("{value:.3}")),
        None => NOTHING.to_owned(),
    }
}

/// A difference of metrics with its sign: "+.031", "−.004".
pub fn difference(value: f64) -> String {
    if !value.is_finite() {
        return NOTHING.to_owned();
    }
    let digits = without_leading_zero(&format!("{:.3}", value.abs()));
    let sign = if digits == ".000" {
        "±"
    } else if value < 0.0 {
        "−"
    } else {
        "+"
    };
    format!("{sign}{digits}")
}

/// A p-value as an equation or an inequality: "p = .021", "p < .0001".
pub fn p_value(value: f64) -> String {
    if !value.is_finite() {
        return format!("p {NOTHING}");
    }
    if value < 0.0001 {
        return "p < .0001".to_owned();
    }
    let digits = if value < 0.001 { format!("{value:.4}") } else { format!("{value:.3}") };
    format!("p = {}", without_leading_zero(&digits))
}

/// A share in per cent without decimals, "92 %"; with one where whole numbers would say "100 %" of
/// something that is not.
pub fn percent(share: f64) -> String {
    if !share.is_finite() {
        return NOTHING.to_owned();
    }
    let value = share * 100.0;
    if value < 100.0 && value.round() >= 100.0 {
        // Cut instead of rounded, as 99.97 % would otherwise read 100.0 %.
        return format!("{:.1} %", (value * 10.0).floor() / 10.0);
    }
    format!("{value:.0} %")
}

/// A number with commas between thousands.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes for each passage: whole where they are whole, otherwise with one decimal.
pub fn bytes(value: f64) -> String {
    if !value.is_finite() || value < 0.0 {
        return NOTHING.to_owned();
    }
    if value >= 1e15 {
        return format!("{value:.0e}");
    }
    let tenths = (value * 10.0).round();
    let whole = count((tenths / 10.0).floor() as u64);
    match (tenths % 10.0) as u64 {
        0 => whole,
        tenth => format!("{whole}.{tenth}"),
    }
}

/// A duration for people: "0.42 s", "38 s", "12 min 05 s", "3 h 20 min".
pub fn seconds(value: f64) -> String {
    if !value.is_finite() || value < 0.0 {
        return NOTHING.to_owned();
    }
    // The limits are those at which rounding would reach the next unit.
    if value < 9.95 {
        return if value < 0.995 { format!("{value:.2} s") } else { format!("{value:.1} s") };
    }
    let whole = value.round() as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// "1 question", "1,500 questions".
pub fn counted(value: u64, noun: &str) -> String {
    let plural = if value == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", count(value))
}

/// Text from a spec or a corpus without what could move a cursor, colour a terminal or turn the order of
/// the words round.
pub fn clean(text: &str) -> String {
    let is_harmful = |letter: char| {
        letter.is_control()
            || matches!(letter, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars()
        .map(|letter| match letter {
            '\n' | '\r' | '\t' => ' ',
            letter if is_harmful(letter) => '\u{fffd}',
            letter => letter,
        })
        .collect()
}

/// Text of at most `limit` characters, cut with an ellipsis.
pub fn shorten(text: &str, limit: usize) -> String {
    if text.chars().count() <= limit {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(limit.saturating_sub(1)).collect();
    short.truncate(short.trim_end().len());
    short.push('…');
    short
}

fn without_leading_zero(digits: &str) -> String {
    match digits.strip_prefix("-0.") {
        Some(rest) => format!("-.{rest}"),
        None => digits.strip_prefix("0.").map_or_else(|| digits.to_owned(), |rest| format!(".{rest}")),
    }
}

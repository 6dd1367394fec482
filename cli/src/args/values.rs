//! Values of the command line as people write them.

use super::Goal;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use retort_worker::export::Format as ExportFormat;
use std::time::Duration;

/// A key of a spec with a value.
pub fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.trim().to_owned())),
        _ => Err("use KEY=VALUE, e.g. corpus.path=/data/wiki".to_owned()),
    }
}

/// The name of a format.
pub fn export_formats() -> impl TypedValueParser<Value = ExportFormat> {
    let named = ExportFormat::ALL.map(|format| PossibleValue::new(format.name()).help(format.about()));
    let format = |name: String| ExportFormat::ALL.into_iter().find(|format| format.name() == name);
    PossibleValuesParser::new(named)
        .map(move |name| format(name).expect("only names of formats are accepted"))
}

/// What a wait is for.
pub fn goal(text: &str) -> Result<Goal, String> {
    match text.split_once('=') {
        None if text.eq_ignore_ascii_case("succeeded") => Ok(Goal::Succeeded),
        Some(("stage", name)) => {
            let names = retort_common::task::Stage::ALL.map(|stage| stage.name());
            let known = names.contains(&name);
            known
                .then(|| Goal::Stage(name.to_owned()))
                .ok_or_else(|| format!("no such stage; use {}", names.join(", ")))
        }
        _ => Err("use succeeded or stage=NAME".to_owned()),
    }
}

/// A number with a unit, e.g. 500ms, 5s, 10m or 2h.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "use a number with a unit: 500ms, 5s, 10m, 2h or 1d".to_owned();
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len()));
    let scale = match unit {
        "ms" => 0.001,
        "s" | "" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        _ => return Err(wrong()),
    };
    let seconds = number.parse::<f64>().map_err(|_| wrong())? * scale;
    let duration = Duration::try_from_secs_f64(seconds).map_err(|_| wrong())?;
    if duration.is_zero() { Err("must be more than nothing".to_owned()) } else { Ok(duration) }
}

/// A number of bytes, e.g. 500MB, 10GB or 8GiB.
pub fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || "use a number of bytes: 1000000, 500MB, 10GB or 8GiB".to_owned();
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len()));
    let scale: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "t" | "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return Err(wrong()),
    };
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(scale)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_with_units_are_read_and_others_refused() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        assert_eq!(bytes("8GiB"), Ok(8 << 30));
        assert_eq!(bytes("10GB"), Ok(10_000_000_000));
        for text in ["", "5x", "-1s", "0s", "NaNs"] {
            assert!(duration(text).is_err(), "{text:?}");
        }
        for text in ["", "GB", "-1", "99999999TiB"] {
            assert!(bytes(text).is_err(), "{text:?}");
        }
        assert_eq!(goal("stage=train"), Ok(Goal::Stage("train".to_owned())));
        assert!(goal("stage=cook").is_err());
    }
}

//! Logging set-up, the same for every process.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// The environment variable that says what is logged, e.g. `info,retort_coordinator=debug`.
pub const FILTER_VARIABLE: &str = "RETORT_LOG";

/// A filter that does not parse.
#[derive(Debug, thiserror::Error)]
#[error("{FILTER_VARIABLE}={text:?}: {cause}; use a level such as info, or target=level pairs")]
pub struct InvalidFilter {
    text: String,
    cause: String,
}

/// Sends log records to stderr, as lines or as JSON. A second call changes nothing, so that one process may
/// hold a coordinator and workers.
pub fn init(json: bool) -> Result<(), InvalidFilter> {
    let text = std::env::var(FILTER_VARIABLE).unwrap_or_default();
    let filter = filter(&text)?;
    // Colour codes in a file or a pipe hinder whoever reads it.
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour);
    let outcome = if json { builder.json().try_init() } else { builder.try_init() };
    if outcome.is_err() {
        tracing::debug!("logging was set up before");
    }
    Ok(())
}

fn filter(text: &str) -> Result<EnvFilter, InvalidFilter> {
    let text = if text.trim().is_empty() { "info" } else { text };
    EnvFilter::try_new(text)
        .map_err(|error| InvalidFilter { text: text.to_owned(), cause: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_filter_means_info_and_a_wrong_one_is_named() {
        assert_eq!(filter(" ").unwrap().to_string(), "info");
        let error = filter("retort=loud").unwrap_err().to_string();
        assert!(error.contains("retort=loud"), "{error}");
    }
}

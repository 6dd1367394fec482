//! report.html: one page that needs nothing else. Its policy forbids every request, so that a name from a
//! spec or a text from a corpus cannot start one.
//!
//! - [`frontier`]: quality against bytes
//! - [`tables`]: rows, comparisons, stages
//! - [`curves`]: losses over steps
//! - [`negatives`]: the audit of the mined negatives
//! - [`svg`], [`marks`], [`labels`]: what drawings share

mod curves;
mod frontier;
mod labels;
mod marks;
pub(super) mod negatives;
mod svg;
mod tables;

pub use curves::POINT_LIMIT;

use super::data::ReportData;
use super::{format, summary};

const STYLE: &str = include_str!("style.css");

/// Renders report.html.
pub fn render_html(data: &ReportData) -> String {
    let body = [
        header(data),
        frontier::section(data),
        tables::results(data),
        tables::comparisons(data),
        curves::section(data),
        negatives::section(data),
        tables::bad_records(data),
        tables::stages(data),
    ]
    .concat();
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{} · Retort report</title>\n<style>\n{STYLE}</style>\n</head>\n\
         <body>\n<main>\n{}\n</main>\n</body>\n</html>\n",
        escape(&data.name),
        body.replace("<section", "\n<section"),
    )
}

/// Text for elements and quoted attributes. Everything on the page that came from outside passes here.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in format::clean(text).chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            letter => out.push(letter),
        }
    }
    out
}

/// Cuts before it escapes, as a cut through an entity would show.
fn escape_short(text: &str, limit: usize) -> String {
    escape(&format::shorten(text, limit))
}

fn header(data: &ReportData) -> String {
    let sentences = summary::sentences(data);
    let mut out = format!(
        "<header><p class=\"kicker\">Retort report</p><h1>{}</h1>\
         <dl class=\"identity\"><div><dt>job</dt><dd><code>{}</code></dd></div>\
         <div><dt>spec</dt><dd><code>{}</code></dd></div></dl>",
        escape(&data.name),
        escape(&data.job),
        escape(&data.spec_digest),
    );
    if let Some((first, others)) = sentences.split_first() {
        out += &format!("<p class=\"lead\">{}.</p>", sentence(first));
        if !others.is_empty() {
            let items = others.iter().map(|text| format!("<li>{}.</li>", sentence(text)));
            out += &format!("<ul class=\"others\">{}</ul>", items.collect::<String>());
        }
    } else if data.rows.is_empty() {
        out += "<p class=\"lead\">This job has no results.</p>";
    }
    out + "</header>"
}

/// A sentence that begins with a capital and keeps numbers with their signs on one line.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let capital: String = letters.next().map_or_else(String::new, |first| first.to_uppercase().collect());
    let unbroken = escape(&(capital + letters.as_str())).replace(" %", "\u{a0}%");
    unbroken.replace("p = .", "p\u{a0}=\u{a0}.")
}

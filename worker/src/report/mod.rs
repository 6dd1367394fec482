//! What a finished job tells its user: one plain value, rendered three times. Nothing here reads or
//! writes files; the report task does.
//!
//! - [`data`]: what a report is made of, [`ReportData`]
//! - [`summary`]: the order of the rows, shares of the teacher, the sentences that a user needs
//! - [`format`]: numbers and names as text
//! - [`mod@json`]: the same for programs, report.json
//! - [`table`]: the table on the terminal
//! - [`negatives`]: the audit of mined negatives on the terminal
//! - [`card`]: a student's model card
//! - [`html`]: report.html, one page that asks nothing of the network
//! - [`tensorboard`]: loss curves as event files

pub mod card;
pub mod data;
pub mod format;
pub mod html;
pub mod json;
pub mod negatives;
pub mod summary;
pub mod table;
pub mod tensorboard;

#[cfg(test)]
mod sample;
#[cfg(test)]
mod tests;

pub use card::model_card;
pub use data::{
    BadRecords, Comparison, FilterCount, Histogram, Kind, NegativesAudit, Phase, ReportData, Row, Shortfall,
    StageTime, SuspiciousNegative, Training,
};
pub use html::render_html;
pub use json::render_json;
pub use negatives::render_negatives;
pub use table::render_table;
pub use tensorboard::event_file;

pub use retort_common::metrics::StepPoint;

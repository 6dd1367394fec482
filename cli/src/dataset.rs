//! `retort dataset check`: what a data set holds and what is wrong with it, without a cluster.

use crate::args::{DatasetArgs, DatasetCheckArgs, DatasetVerb, Format};
use crate::exit::{Exit, UsageError};
use crate::output;
use retort_common::spec::FileFormat;
use retort_common::store::Location;
use retort_worker::formats::Role;
use retort_worker::formats::check::{DatasetReport, Subject, check};
use serde_json::json;

pub async fn dataset(args: DatasetArgs) -> anyhow::Result<Exit> {
    match args.verb {
        DatasetVerb::Check(args) => run_check(args).await,
    }
}

async fn run_check(args: DatasetCheckArgs) -> anyhow::Result<Exit> {
    let format = args.format.as_deref().map(file_format).transpose()?;
    let here = Location::parse(".")?;
    let mut subjects = Vec::new();
    for text in &args.paths {
        let (role, path) = role_and_path(text);
        let named = here.expand(path).await?;
        let below = here.join(path)?.below().await?;
        let (found, is_folder) = if below.is_empty() { (named, false) } else { (below, true) };
        subjects.extend(found.into_iter().map(|location| Subject {
            location,
            role,
            format,
            named: !is_folder,
        }));
    }
    let runtime = tokio::runtime::Handle::current();
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let report = tokio::task::spawn_blocking(move || check(subjects, threads, &runtime)).await?;
    match args.output {
        Format::Json | Format::Jsonl => {
            let mut document = serde_json::to_value(&report)?;
            document["ok"] = json!(report.problems.is_empty());
            output::json_document(document)?;
        }
        Format::Table | Format::Wide => output::line(&text(&report))?,
    }
    Ok(if report.problems.is_empty() { Exit::Ok } else { Exit::Error })
}

/// A path with the role it is given, e.g. `queries=topics.tsv`.
fn role_and_path(text: &str) -> (Option<Role>, &str) {
    match text.split_once('=') {
        Some(("passages", path)) => (Some(Role::Passages), path),
        Some(("queries", path)) => (Some(Role::Questions), path),
        Some(("set", path)) => (Some(Role::Set), path),
        _ => (None, text),
    }
}

fn file_format(name: &str) -> Result<FileFormat, UsageError> {
    let names = FileFormat::ALL.map(FileFormat::name);
    let found = FileFormat::ALL.into_iter().find(|format| format.name() == name);
    found.ok_or_else(|| UsageError(format!("--format {name:?} is none of {}", names.join(", "))))
}

fn text(report: &DatasetReport) -> String {
    let header = [
        "FILE",
        "FORMAT",
        "ROLE",
        "RECORDS",
        "BAD",
        "PASSAGES",
        "QUERIES",
        "POSITIVES",
        "NEGATIVES",
        "CHARS",
    ];
    let rows = report.files.iter().map(|file| {
        let number = |value: u64| if value == 0 { "-".to_owned() } else { value.to_string() };
        let lengths = &file.characters;
        let name = file.file.strip_prefix("file://").unwrap_or(&file.file);
        vec![
            name.to_owned(),
            file.format.clone(),
            file.role.to_owned(),
            file.records.to_string(),
            number(file.bad_records),
            number(file.passages),
            number(file.questions),
            number(file.positives),
            number(file.negatives),
            match lengths.texts {
                0 => "-".to_owned(),
                _ => format!("{}/{:.0}/{}", lengths.least, lengths.mean, lengths.most),
            },
        ]
    });
    let mut lines = vec![output::columns(&header, rows)];
    for (name, texts) in
        [("skipped", &report.skipped), ("note", &report.notices), ("problem", &report.problems)]
    {
        lines.extend(texts.iter().map(|text| format!("{name}: {text}")));
    }
    if report.problems.is_empty() {
        lines.push("nothing is wrong".to_owned());
    }
    lines.join("\n")
}

//! `retort eval`: metrics of any run, without a cluster.

use crate::args::{EvalArgs, Format};
use crate::exit::{Exit, UsageError};
use crate::output;
use anyhow::Context;
use retort_common::spec::AnswerRule;
use retort_common::store::Location;
use retort_worker::metrics::evaluation::evaluate;
use retort_worker::metrics::metric::{Measure, Metric};
use retort_worker::metrics::qrels::Qrels;
use retort_worker::metrics::results::read_results;
use retort_worker::metrics::run::Run;
use retort_worker::metrics::significance::{bootstrap_interval, randomization_test};
use retort_worker::report::format::counted;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::Read;
use std::path::Path;

/// Samples of the bootstrap and permutations of the randomisation test.
const SAMPLES: u32 = 10_000;
/// Their seed: the same files give the same figures.
const SEED: u64 = 1;
const CONFIDENCE: f64 = 0.95;

/// A run's values: one row a question, one column a metric.
struct Values {
    metrics: Vec<String>,
    questions: Vec<(String, Vec<f64>)>,
    notes: Vec<String>,
}

impl Values {
    fn column(&self, metric: usize) -> Vec<f64> {
        self.questions.iter().map(|(_, values)| values[metric]).collect()
    }
}

pub fn eval(args: &EvalArgs) -> anyhow::Result<Exit> {
    let own = values(args, &args.run)?;
    let other = args.against.as_deref().map(|run| values(args, run)).transpose()?;
    if let Some(other) = &other {
        let same = own.questions.iter().map(|(id, _)| id).eq(other.questions.iter().map(|(id, _)| id));
        anyhow::ensure!(same, "the two runs are judged on different questions; give both the same ones");
    }
    let mut rows = Vec::new();
    for (at, metric) in own.metrics.iter().enumerate() {
        rows.push(summary(metric, &own.column(at), other.as_ref().map(|other| other.column(at)))?);
    }
    if let Some(path) = &args.per_query {
        std::fs::write(path, per_query(&own)).with_context(|| path.display().to_string())?;
    }
    match args.output {
        Format::Json | Format::Jsonl => output::json_document(json!({
            "run": args.run, "against": args.against, "questions": own.questions.len(), "metrics": rows,
            "notes": own.notes, "confidence": CONFIDENCE, "samples": SAMPLES,
        }))?,
        Format::Table | Format::Wide => {
            output::line(&table(&rows, other.is_some()))?;
            eprintln!("{}", counted(own.questions.len() as u64, "question"));
            own.notes.iter().for_each(|note| eprintln!("note: {note}"));
        }
    }
    Ok(Exit::Ok)
}

/// The mean of a metric with its interval and, beside another run, the difference with its own.
fn summary(metric: &str, own: &[f64], other: Option<Vec<f64>>) -> anyhow::Result<Value> {
    let zeros = vec![0.0; own.len()];
    let mean = bootstrap_interval(own, &zeros, SAMPLES, CONFIDENCE, SEED)?;
    let mut row = json!({
        "metric": metric, "value": mean.mean_difference, "low": mean.low, "high": mean.high,
    });
    if let Some(other) = other {
        let difference = bootstrap_interval(own, &other, SAMPLES, CONFIDENCE, SEED)?;
        let test = randomization_test(own, &other, SAMPLES, SEED)?;
        row["against"] = json!(other.iter().sum::<f64>() / other.len() as f64);
        row["difference"] = json!(difference.mean_difference);
        row["difference_low"] = json!(difference.low);
        row["difference_high"] = json!(difference.high);
        row["p_value"] = json!(test.p_value);
    }
    Ok(row)
}

fn table(rows: &[Value], compared: bool) -> String {
    let mut header = vec!["METRIC", "VALUE", "95% INTERVAL"];
    if compared {
        header.extend(["AGAINST", "DIFFERENCE", "95% INTERVAL", "P"]);
    }
    let number = |row: &Value, key: &str| format!("{:.4}", row[key].as_f64().unwrap_or(f64::NAN));
    let cells = rows.iter().map(|row| {
        let interval = |low, high| format!("{} to {}", number(row, low), number(row, high));
        let mut cells = vec![
            row["metric"].as_str().unwrap_or_default().to_owned(),
            number(row, "value"),
            interval("low", "high"),
        ];
        if compared {
            let rest = [number(row, "against"), number(row, "difference")];
            cells.extend(rest);
            cells.extend([interval("difference_low", "difference_high"), number(row, "p_value")]);
        }
        cells
    });
    output::columns(&header, cells)
}

/// A line for each question, with tabs: its id and its values.
fn per_query(values: &Values) -> String {
    let mut text = format!("query\t{}\n", values.metrics.join("\t"));
    for (id, values) in &values.questions {
        let values: Vec<_> = values.iter().map(f64::to_string).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}\t{}", id.replace(['\t', '\n'], " "), values.join("\t"));
    }
    text
}

/// What a run file is, by its first bytes.
enum RunForm {
    Trec,
    MsMarco,
    Dpr,
}

fn form(path: &Path) -> anyhow::Result<RunForm> {
    let location = Location::parse(&path.display().to_string())?;
    let runtime = tokio::runtime::Handle::current();
    let name = path.display();
    let source =
        retort_worker::formats::source::Source::open(&location, &runtime).context(name.to_string())?;
    let mut source = source.with_context(|| format!("{name}: does not exist; correct the path"))?;
    let mut start = vec![0; 64 << 10];
    let mut read = 0;
    while read < start.len() {
        match source.read(&mut start[read..]).with_context(|| name.to_string())? {
            0 => break,
            count => read += count,
        }
    }
    let text = String::from_utf8_lossy(&start[..read]);
    if text.trim_start().starts_with('[') {
        return Ok(RunForm::Dpr);
    }
    let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    match first.split_ascii_whitespace().count() {
        6 => Ok(RunForm::Trec),
        3 => Ok(RunForm::MsMarco),
        found => anyhow::bail!(
            "{name}: {found} columns in the first line; a TREC run has 6 (query Q0 document rank score tag), an MS \
             MARCO run 3 (query document rank), DPR's results are a JSON array"
        ),
    }
}

fn values(args: &EvalArgs, run: &Path) -> anyhow::Result<Values> {
    match form(run)? {
        RunForm::Dpr => answered(args, run),
        RunForm::Trec => judged(args, run, &Run::open_trec(run)?),
        RunForm::MsMarco => judged(args, run, &Run::open_ms_marco(run)?),
    }
}

fn judged(args: &EvalArgs, path: &Path, run: &Run) -> anyhow::Result<Values> {
    let qrels =
        args.qrels.as_deref().ok_or_else(|| UsageError("a TREC or MS MARCO run needs --qrels".into()))?;
    let judgements = Qrels::open(qrels)?;
    anyhow::ensure!(!judgements.is_empty(), "{}: holds no judgements", qrels.display());
    let names = if args.metrics.is_empty() {
        ["mrr@10", "ndcg@10", "recall@100", "map"].map(str::to_owned).to_vec()
    } else {
        args.metrics.clone()
    };
    let metrics = names.iter().map(|name| name.parse::<Metric>()).collect::<Result<Vec<_>, _>>();
    let metrics = metrics.map_err(|error| UsageError(error.to_string()))?;
    let known = judgements.iter().filter(|(query, _)| run.documents(query).is_some()).count();
    anyhow::ensure!(
        known > 0,
        "{} and {} have no question in common; give the judgements of this run's questions",
        path.display(),
        qrels.display()
    );
    let evaluation = evaluate(&judgements, run, &metrics);
    let mut notes = Vec::new();
    let mut note = |count: usize, noun: &str, text: &str| {
        if count > 0 {
            notes.push(format!("{} {text}", counted(count as u64, noun)));
        }
    };
    note(evaluation.missing, "judged question", "missing from the run: counted as zero");
    let unjudged = run.iter().filter(|(query, _)| judgements.judgements(query).is_none()).count();
    note(unjudged, "question", "of the run without judgements: left out");
    let without = judgements.iter().filter(|(_, grades)| grades.values().all(|grade| *grade <= 0)).count();
    note(without, "question", "without a relevant document: counted as zero");
    let tied =
        run.iter().filter(|(_, documents)| documents.windows(2).any(|pair| pair[0].score == pair[1].score));
    note(
        tied.count(),
        "question",
        "with documents of equal scores: ordered by id descending, as in trec_eval",
    );
    let longest = run.iter().map(|(_, documents)| documents.len()).max().unwrap_or(0);
    for metric in &metrics {
        if let Some(cutoff) = metric.cutoff().filter(|cutoff| *cutoff as usize > longest) {
            // A list that ends early cannot raise precision, so a short list would be taken for a bad one.
            anyhow::ensure!(
                metric.measure() != Measure::Precision,
                "{metric} looks at {cutoff} places and the longest list has {longest}; search deeper or cut earlier"
            );
            notes.push(format!("{metric} looks at {cutoff} places and the longest list has {longest}"));
        }
    }
    Ok(Values { metrics: names, questions: evaluation.by_query, notes })
}

fn answered(args: &EvalArgs, path: &Path) -> anyhow::Result<Values> {
    if args.qrels.is_some() {
        return Err(UsageError("DPR's results carry their answers: leave --qrels out".into()).into());
    }
    let rule = if args.answers.as_deref() == Some("regex") { AnswerRule::Regex } else { AnswerRule::Text };
    let location = Location::parse(&path.display().to_string())?;
    let questions = read_results(&location, rule, &tokio::runtime::Handle::current())?;
    anyhow::ensure!(!questions.is_empty(), "{}: holds no questions", path.display());
    let names = if args.metrics.is_empty() {
        ["accuracy@1", "accuracy@5", "accuracy@20", "accuracy@100"].map(str::to_owned).to_vec()
    } else {
        args.metrics.clone()
    };
    let longest = questions.iter().map(|question| question.listed).max().unwrap_or(0);
    let (mut metrics, mut cutoffs) = (Vec::new(), Vec::new());
    for name in names {
        let cutoff = name.strip_prefix("accuracy@").and_then(|cutoff| cutoff.parse::<usize>().ok());
        let cutoff = cutoff.filter(|cutoff| *cutoff > 0).ok_or_else(|| {
            UsageError(format!(
                "metric {name:?} is not defined on DPR's results; write for example accuracy@20"
            ))
        })?;
        if cutoff > longest {
            anyhow::ensure!(
                args.metrics.is_empty(),
                "{name} looks at {cutoff} passages and the longest list has {longest}; retrieve more or cut earlier"
            );
            continue;
        }
        metrics.push(name);
        cutoffs.push(cutoff);
    }
    anyhow::ensure!(!metrics.is_empty(), "{}: no question has a passage", path.display());
    let short = questions.iter().filter(|question| question.listed < longest).count();
    let mut notes = Vec::new();
    if short > 0 {
        let questions = counted(short as u64, "question");
        notes.push(format!("{questions} with fewer than the {longest} passages that the longest list has"));
    }
    let row = |(number, question): (usize, retort_worker::metrics::results::AnsweredQuestion)| {
        let hit = |cutoff: &usize| f64::from(u8::from(question.first.is_some_and(|first| first < *cutoff)));
        (format!("{} {}", number + 1, question.question), cutoffs.iter().map(hit).collect())
    };
    Ok(Values { metrics, questions: questions.into_iter().enumerate().map(row).collect(), notes })
}

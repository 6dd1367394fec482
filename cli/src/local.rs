//! Verbs that need no cluster: passages into an index, questions against it.

use crate::args::{EncodeArgs, FoundFormat, SearchArgs};
use crate::exit::{Exit, UsageError};
use crate::output;
use anyhow::Context;
use retort_worker::index::folder::{FolderEncoder, Side};
use retort_worker::index::{Found, Index, IndexWriter, Keep, SHARD_ROWS};
use retort_worker::model::Device;
use retort_worker::tables::PassageShard;
use serde::Deserialize;
use serde_json::json;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Longest line of a file of records.
const LINE_BYTES: u64 = 16 << 20;
/// Questions that are embedded and searched at a time.
const QUERY_BATCH: usize = 1024;

/// A line of corpus.jsonl or queries.jsonl.
#[derive(Deserialize)]
struct Record {
    #[serde(alias = "_id")]
    id: String,
    #[serde(default)]
    title: String,
    text: String,
}

/// Embeds passages and writes an index.
pub async fn encode(args: EncodeArgs) -> anyhow::Result<Exit> {
    tokio::task::spawn_blocking(move || encode_files(&args)).await?
}

/// Searches an index.
pub async fn search(args: SearchArgs) -> anyhow::Result<Exit> {
    tokio::task::spawn_blocking(move || search_index(&args)).await?
}

fn compute_threads(asked: Option<u16>) -> anyhow::Result<usize> {
    let threads = match asked {
        Some(threads) => usize::from(threads),
        None => std::thread::available_parallelism()?.get(),
    };
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    Ok(threads)
}

fn encode_files(args: &EncodeArgs) -> anyhow::Result<Exit> {
    let keep: Keep = args.keep.parse().map_err(UsageError)?;
    let threads = compute_threads(args.threads)?;
    let model = FolderEncoder::load(&args.model, &Device::flex())?;
    let place = std::path::absolute(&args.model)?;
    let mut writer = IndexWriter::create(&args.index, &place.to_string_lossy(), model.dim())?;
    let mut shard = PassageShard::default();
    let mut total = 0u64;
    let mut flush = |shard: &mut PassageShard| -> anyhow::Result<()> {
        let passages = std::mem::take(shard);
        let texts: Vec<String> = (0..passages.ids.len()).map(|i| passages.model_text(i)).collect();
        let vectors = model.encode(&texts, Side::Passage, threads)?;
        total += texts.len() as u64;
        writer.push(passages, &vectors)?;
        eprintln!("{total} passages");
        Ok(())
    };
    for file in &args.files {
        each_record(file, |record| {
            shard.ids.push(record.id);
            shard.titles.push(record.title);
            shard.texts.push(record.text);
            if shard.ids.len() == SHARD_ROWS { flush(&mut shard) } else { Ok(()) }
        })?;
    }
    if !shard.ids.is_empty() {
        flush(&mut shard)?;
    }
    let manifest = writer.finish(keep, threads)?;
    output::line(&format!(
        "{}: {} passages, {} bytes each",
        args.index.display(),
        manifest.rows,
        manifest.bytes_per_passage
    ))?;
    Ok(Exit::Ok)
}

/// Calls `each` with every record of a JSON Lines file, .gz or plain.
fn each_record(path: &Path, mut each: impl FnMut(Record) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let plain = path.extension().is_none_or(|extension| extension != "gz");
    let inner: Box<dyn Read> =
        if plain { Box::new(file) } else { Box::new(flate2::read::GzDecoder::new(file)) };
    let mut reader = BufReader::new(inner);
    for number in 1u64.. {
        let at = || format!("{}:{number}", path.display());
        let mut line = String::new();
        let read = reader.by_ref().take(LINE_BYTES).read_line(&mut line).with_context(at)?;
        if read == 0 {
            break;
        }
        anyhow::ensure!((read as u64) < LINE_BYTES, "{}: the line is longer than {LINE_BYTES} bytes", at());
        if line.trim().is_empty() {
            continue;
        }
        let record: Record = serde_json::from_str(&line)
            .with_context(|| format!("{}: a record needs _id and text, as strings", at()))?;
        each(record)?;
    }
    Ok(())
}

fn search_index(args: &SearchArgs) -> anyhow::Result<Exit> {
    let mut queries: Vec<(String, String)> =
        args.queries.iter().enumerate().map(|(i, text)| ((i + 1).to_string(), text.clone())).collect();
    if let Some(file) = &args.file {
        each_record(file, |record| {
            queries.push((record.id, record.text));
            Ok(())
        })?;
    }
    if queries.is_empty() {
        return Err(UsageError("no questions: give some, or --file queries.jsonl".to_owned()).into());
    }
    let threads = compute_threads(args.threads)?;
    let index = Index::open(&args.index)?;
    let folder = args.model.clone().unwrap_or_else(|| PathBuf::from(&index.manifest().model));
    let model = FolderEncoder::load(&folder, &Device::flex())?;
    for batch in queries.chunks(QUERY_BATCH) {
        let texts: Vec<String> = batch.iter().map(|(_, text)| text.clone()).collect();
        let vectors = model.encode(&texts, Side::Query, threads)?;
        let lists = index.search(&vectors, args.k as usize, threads)?;
        for ((id, text), found) in batch.iter().zip(index.passages(&lists)?) {
            print(args.output, id, text, &found)?;
        }
    }
    Ok(Exit::Ok)
}

fn print(format: FoundFormat, id: &str, question: &str, found: &[Found]) -> anyhow::Result<()> {
    match format {
        FoundFormat::Text => {
            output::line(question)?;
            for (rank, passage) in found.iter().enumerate() {
                let text: String = passage.text.split_whitespace().collect::<Vec<_>>().join(" ");
                let short: String = text.chars().take(100).collect();
                let title =
                    if passage.title.is_empty() { String::new() } else { format!("{}: ", passage.title) };
                output::line(&format!("{:>4} {:.4} {} {title}{short}", rank + 1, passage.score, passage.id))?;
            }
        }
        FoundFormat::Jsonl => {
            let hits = found.iter().map(|passage| {
                json!({ "id": passage.id, "score": passage.score, "title": passage.title, "text": passage.text })
            });
            let hits: Vec<_> = hits.collect();
            output::json_line(&json!({ "id": id, "question": question, "passages": hits }))?;
        }
        FoundFormat::Trec => {
            for (rank, passage) in found.iter().enumerate() {
                let Found { id: passage, score, .. } = passage;
                output::line(&format!("{id} Q0 {passage} {} {score} retort", rank + 1))?;
            }
        }
    }
    Ok(())
}

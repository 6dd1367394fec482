//! Passages to numbered shards.

use super::super::bench::{Content, Produced, TaskError, Workbench, shard_name};
use super::{BadRecords, for_each_record, hash_of};
use crate::formats::{Passage, Record, Role};
use crate::tables::PassageShard;
use retort_common::task::Task;
use serde_json::json;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

/// Passages to shards. Reading, parsing and writing go on side by side; what is written depends on the files alone.
pub fn corpus(bench: &Workbench<'_>, task: &Task) -> Result<Produced, TaskError> {
    let Task::ShardCorpus { passages, rows_per_shard, max_bad_records } = task else {
        unreachable!("called with its own task")
    };
    let mut bad = BadRecords::new(*max_bad_records);
    let (shards, waiting) = sync_channel(1);
    let (waiting, failed) = (Mutex::new(waiting), AtomicBool::new(false));
    let (outcome, written) = std::thread::scope(|scope| {
        let writers: Vec<_> =
            (0..bench.threads.max(1)).map(|_| scope.spawn(|| write_shards(&waiting, &failed))).collect();
        let mut builder = Builder::new(bench, *rows_per_shard as usize, shards, &failed);
        let outcome = passages.iter().try_for_each(|data| {
            for_each_record(bench, data, Role::Passages, &mut bad, |line, record, bad| match record {
                Record::Passage(passage) => match builder.is_new(&passage) {
                    true => builder.add(passage),
                    false => bad.add(data, line, &format!("id {:?} stands in the corpus twice", passage.id)),
                },
                Record::Example(example) => {
                    // The same passage in several examples is one passage.
                    let inline = example.positives.iter().chain(&example.negatives);
                    for passage in inline.filter_map(|candidate| candidate.passage()) {
                        if builder.is_new(&passage) {
                            builder.add(passage)?;
                        }
                    }
                    Ok(())
                }
                _ => Ok(()),
            })
        });
        let outcome = outcome.and_then(|()| builder.finish());
        let written = writers.into_iter().try_for_each(|writer| writer.join().expect("writers do not panic"));
        (outcome, written)
    });
    // A writer that failed is why nobody takes shards any more.
    written?;
    let (rows, count) = outcome?;
    if rows == 0 {
        let urls: Vec<_> = passages.iter().map(|data| data.file.url.as_str()).collect();
        return Err(TaskError::Input(format!(
            "{}: holds no passages; put the corpus there, or name its files under corpus.passages",
            urls.join(", ")
        )));
    }
    let part = |shard| (shard_name(shard), Content::File(bench.scratch(&shard_name(shard))));
    let meta = json!({
        "rows": rows, "shards": count, "bad_records": bad.count, "bad_record_reasons": bad.reasons,
    });
    Ok(Produced { parts: (0..count).map(part).collect(), meta })
}

/// Cuts passages into shards and hands them to the writers.
struct Builder<'a> {
    bench: &'a Workbench<'a>,
    rows_per_shard: usize,
    shards: SyncSender<(PathBuf, PassageShard)>,
    /// Set by a writer that cannot write.
    failed: &'a AtomicBool,
    seen: HashSet<u64>,
    shard: PassageShard,
    rows: u64,
    count: u32,
}

impl<'a> Builder<'a> {
    fn new(
        bench: &'a Workbench<'a>,
        rows_per_shard: usize,
        shards: SyncSender<(PathBuf, PassageShard)>,
        failed: &'a AtomicBool,
    ) -> Self {
        let (seen, shard) = (HashSet::new(), PassageShard::default());
        Self { bench, rows_per_shard, shards, failed, seen, shard, rows: 0, count: 0 }
    }

    fn is_new(&mut self, passage: &Passage) -> bool {
        self.seen.insert(hash_of(&passage.id))
    }

    fn add(&mut self, passage: Passage) -> Result<(), TaskError> {
        let Passage { id, title, text } = passage;
        self.shard.ids.push(id);
        self.shard.titles.push(title);
        self.shard.texts.push(text);
        self.rows += 1;
        if self.shard.ids.len() == self.rows_per_shard {
            self.bench.go_on()?;
            self.bench.progress.progress(self.rows, 0, &format!("{} passages", self.rows));
            self.hand_over()?;
        }
        Ok(())
    }

    fn hand_over(&mut self) -> Result<(), TaskError> {
        if self.failed.load(Ordering::Relaxed) {
            return Err(TaskError::Stopped);
        }
        let next = PassageShard { first_row: self.rows, ..PassageShard::default() };
        let shard = std::mem::replace(&mut self.shard, next);
        let path = self.bench.scratch(&shard_name(self.count));
        self.count += 1;
        self.shards.send((path, shard)).expect("writers take shards until the builder is gone");
        Ok(())
    }

    /// The numbers of rows and shards.
    fn finish(mut self) -> Result<(u64, u32), TaskError> {
        if !self.shard.ids.is_empty() {
            self.hand_over()?;
        }
        Ok((self.rows, self.count))
    }
}

/// Writes what is handed over until nothing more can come. After a failure the rest is dropped, so that nobody waits.
fn write_shards(
    waiting: &Mutex<Receiver<(PathBuf, PassageShard)>>,
    failed: &AtomicBool,
) -> Result<(), TaskError> {
    let mut outcome = Ok(());
    loop {
        let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((path, shard)) = next else { return outcome };
        if outcome.is_ok() {
            outcome = shard.write(&path).map_err(TaskError::from);
            failed.fetch_or(outcome.is_err(), Ordering::Relaxed);
        }
    }
}

//! How fast and in how much memory a synthetic psgs_w100.tsv becomes shards in a store.
//!
//! usage: cargo bench --package retort-worker --bench shard -- [LINES] [THREADS] [FOLDER]
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use retort_common::artifact::{ArtifactReader, ArtifactWriter, Cache};
use retort_common::checkpoint::{Lineage, Place};
use retort_common::ids::AttemptNumber;
use retort_common::spec::FileFormat;
use retort_common::spec::inputs::{DataFile, InputFile};
use retort_common::store::{Location, Store};
use retort_common::task::Task;
use retort_worker::model::Device;
use retort_worker::tasks::{self, Content, EncoderCache, Progress, Workbench};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

struct Silent;

impl Progress for Silent {
    fn progress(&self, _: u64, _: u64, _: &str) {}
    fn log(&self, _: &str) {}
    fn stopped(&self) -> bool {
        false
    }
}

/// Lines of about 660 bytes with quoted texts of 100 words, as those of the real file.
fn generate(path: &Path, lines: u64) -> std::io::Result<()> {
    const WORDS: [&str; 16] = [
        "the",
        "of",
        "river",
        "in",
        "\"\"castle\"\"",
        "and",
        "a",
        "century",
        "was",
        "northern",
        "province",
        "its",
        "population",
        "engine",
        "by",
        "composer",
    ];
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    writeln!(file, "id\ttext\ttitle")?;
    let mut state = 1u64;
    for line in 1..=lines {
        write!(file, "{line}\t\"")?;
        for word in 0..100 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let gap = if word == 0 { "" } else { " " };
            // A quarter of the words is rare, so that compression has as much to do as with real text.
            match (state >> 60) % 4 {
                0 => write!(file, "{gap}{:x}", state >> 36)?,
                _ => write!(file, "{gap}{}", WORDS[(state >> 40) as usize % WORDS.len()])?,
            }
        }
        writeln!(file, "\"\tTitle {}", line / 6)?;
    }
    file.flush()
}

/// Most memory the process has held, in MiB, where the system tells.
fn peak_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_ascii_whitespace().nth(1)?.parse::<f64>().ok().map(|kib| kib / 1024.0)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let number = |at: usize, usual: u64| arguments.get(at).map_or(Ok(usual), |text| text.parse());
    let (lines, threads) = (number(0, 5_000_000)?, number(1, 2)?);
    let folder = arguments.get(2).map_or_else(std::env::temp_dir, Into::into);
    let folder = tempfile::tempdir_in(folder)?;
    let path = folder.path().join("psgs_w100.tsv");
    generate(&path, lines)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let file = runtime.block_on(InputFile::find("the corpus", &Location::of_path(&path)?))?;
    let file = file.ok_or("the generated file is gone")?;
    let megabytes = file.bytes as f64 / 1e6;
    println!("{lines} lines, {megabytes:.0} MB; {threads} threads");
    let store = Store::open(&folder.path().join("store").display().to_string())?;
    let encoders = EncoderCache::default();
    let scratch = folder.path().join("scratch");
    std::fs::create_dir(&scratch)?;
    let bench = Workbench {
        artifacts: ArtifactReader::new(store.clone(), Cache::open(&folder.path().join("cache"), 1 << 30)?),
        device: Device::flex(),
        threads: threads as usize,
        checkpoints: Place { job: "bench".parse()?, lineage: Lineage::FIRST },
        scratch,
        progress: &Silent,
        runtime: runtime.handle().clone(),
        encoders: &encoders,
        seat: None,
    };
    let passages = vec![DataFile { file, format: Some(FileFormat::Psgs) }];
    let task = Task::ShardCorpus { passages, rows_per_shard: 16_384, max_bad_records: 0 };
    let begun = Instant::now();
    let produced = tasks::run(&bench, &task)?;
    let sharded = begun.elapsed().as_secs_f64();
    let mut writer = ArtifactWriter::new(&store, task.output(), 1, AttemptNumber(1), "bench".to_owned());
    runtime.block_on(async {
        for (name, content) in produced.parts {
            match content {
                Content::File(path) => writer.add_file(&name, &path).await?,
                Content::Bytes(bytes) => writer.add(&name, bytes).await?,
            }
        }
        writer.finish(produced.meta).await
    })?;
    let stored = begun.elapsed().as_secs_f64();
    println!("sharded in {sharded:.1} s: {:.0} MB/s", megabytes / sharded);
    println!("sharded and stored in {stored:.1} s: {:.0} MB/s", megabytes / stored);
    if let Some(peak) = peak_mib() {
        println!("peak memory {peak:.0} MiB");
    }
    Ok(())
}

//! Peak memory of the tasks whose input is the whole corpus, run one after the other in one process as a worker runs
//! them: sharding, fitting, search, mining, training rows, evaluation. Passages and vectors are synthetic, so that nothing
//! has to be embedded; only the number of passages differs from one run to another.
//!
//! usage: cargo bench --package retort-worker --bench memory -- [PASSAGES] [QUESTIONS] [FOLDER]
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use retort_common::artifact::{ArtifactReader, ArtifactWriter, Cache};
use retort_common::checkpoint::{Lineage, Place};
use retort_common::ids::{AttemptNumber, Digest, TaskId};
use retort_common::spec::inputs::{DataFile, InputFile};
use retort_common::spec::{AnswerRule, FileFormat, MiningSpec, PhaseData};
use retort_common::store::{Location, Store};
use retort_common::task::{ArtifactId, PhaseLength, QuantizerMethod, Retriever, Table, Task, VectorSet};
use retort_worker::matrix::Matrix;
use retort_worker::model::Device;
use retort_worker::tasks::{self, Content, EncoderCache, Progress, Workbench};
use retort_worker::vectors::write_vectors;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// The default of `corpus.rows_per_shard`.
const ROWS_PER_SHARD: u64 = 1024;
/// Shards that a job's search tasks take each.
const SHARDS_PER_SEARCH: usize = 16;
const DIM: usize = 384;
/// Length of ranked lists: what the report's tables need.
const DEPTH: u32 = 100;
const SET: &str = "train";
const FINGERPRINT: &str = "bench";

struct Silent;

impl Progress for Silent {
    fn progress(&self, _: u64, _: u64, _: &str) {}
    fn log(&self, _: &str) {}
    fn stopped(&self) -> bool {
        false
    }
}

/// One worker over one store.
struct Run {
    folder: PathBuf,
    store: Store,
    runtime: tokio::runtime::Runtime,
    encoders: EncoderCache,
    threads: usize,
    count: u64,
    /// Most memory of any task so far, in MiB.
    peak: f64,
}

impl Run {
    fn open(folder: &Path) -> Outcome<Self> {
        let store = Store::open(&folder.join("store").display().to_string())?;
        let (runtime, encoders) = (tokio::runtime::Runtime::new()?, EncoderCache::default());
        let threads = std::thread::available_parallelism()?.get().min(2);
        Ok(Self { folder: folder.to_owned(), store, runtime, encoders, threads, count: 0, peak: 0.0 })
    }

    /// Runs tasks that a user sees as one and prints the longest time and the most memory that any took.
    fn all(
        &mut self,
        name: &str,
        tasks: impl IntoIterator<Item = Task>,
    ) -> Outcome<Vec<(ArtifactId, Value)>> {
        let (mut outputs, mut seconds, mut most) = (Vec::new(), 0.0, 0.0f64);
        for task in tasks {
            reset_peak();
            let begun = Instant::now();
            outputs.push(self.one(&task)?);
            seconds += begun.elapsed().as_secs_f64();
            most = most.max(peak_mib().unwrap_or(f64::NAN));
        }
        self.peak = self.peak.max(most);
        println!("| {name} | {} | {seconds:.1} | {most:.0} |", outputs.len());
        Ok(outputs)
    }

    fn one(&mut self, task: &Task) -> Outcome<(ArtifactId, Value)> {
        self.count += 1;
        let scratch = self.folder.join(format!("scratch-{}", self.count));
        std::fs::create_dir(&scratch)?;
        let cache = Cache::open(&self.folder.join("cache"), 8 << 30)?;
        let bench = Workbench {
            artifacts: ArtifactReader::new(self.store.clone(), cache),
            device: Device::flex(),
            threads: self.threads,
            checkpoints: Place { job: "bench".parse()?, lineage: Lineage::FIRST },
            scratch: scratch.clone(),
            progress: &Silent,
            runtime: self.runtime.handle().clone(),
            encoders: &self.encoders,
            seat: None,
        };
        let produced = tasks::run(&bench, task)?;
        let meta = produced.meta.clone();
        self.write(task.output(), produced.parts, produced.meta)?;
        std::fs::remove_dir_all(&scratch)?;
        Ok((task.output(), meta))
    }

    fn write(&self, output: ArtifactId, parts: Vec<(String, Content)>, meta: Value) -> Outcome<()> {
        let mut writer = ArtifactWriter::new(&self.store, output, 1, AttemptNumber(1), "bench".to_owned());
        self.runtime.block_on(async {
            for (name, content) in parts {
                match content {
                    Content::File(path) => writer.add_file(&name, &path).await?,
                    Content::Bytes(bytes) => writer.add(&name, bytes).await?,
                }
            }
            writer.finish(meta).await
        })?;
        Ok(())
    }

    /// Vectors of `rows` texts as an embedding would have left them, shard by shard.
    fn vectors(&self, what: &str, rows: u64) -> Outcome<Vec<ArtifactId>> {
        let path = self.folder.join("vectors");
        let mut shards = Vec::new();
        for first_row in (0..rows).step_by(ROWS_PER_SHARD as usize) {
            let count = ROWS_PER_SHARD.min(rows - first_row) as usize;
            let mut state = first_row ^ Digest::of(what.as_bytes()).as_bytes()[0] as u64;
            let mut value = || {
                // Sums of four uniform numbers are near enough to a normal one.
                (0..4).map(|_| (next(&mut state) >> 40) as f32 / (1u64 << 24) as f32 - 0.5).sum::<f32>()
            };
            let mut vectors = Matrix::new(count, DIM, (0..count * DIM).map(|_| value()).collect());
            vectors.normalize_rows();
            write_vectors(&path, &vectors)?;
            let task = TaskId(Digest::of(format!("{what} {first_row}").as_bytes()));
            let artifact = ArtifactId { kind: "vectors".to_owned(), task };
            let meta = json!({ "rows": count, "dim": DIM, "first_row": first_row });
            self.write(
                artifact.clone(),
                vec![("vectors.safetensors".to_owned(), Content::File(path.clone()))],
                meta,
            )?;
            shards.push(artifact);
        }
        Ok(shards)
    }
}

fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Words whose frequencies fall as those of a language do.
fn text(state: &mut u64, words: usize) -> String {
    let mut line = String::with_capacity(words * 7);
    for at in 0..words {
        let uniform = (next(state) >> 11) as f64 / (1u64 << 53) as f64;
        let rank = (30_000f64.powf(uniform)) as u64;
        let gap = if at == 0 { "" } else { " " };
        line.push_str(gap);
        line.push_str(&format!("w{rank}x"));
    }
    line
}

fn generate(path: &Path, rows: u64, mut line: impl FnMut(u64) -> String) -> Outcome<DataFile> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    for row in 0..rows {
        writeln!(file, "{}", line(row))?;
    }
    file.flush()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let file = runtime.block_on(InputFile::find("a file", &Location::of_path(path)?))?;
    Ok(DataFile { file: file.ok_or("the generated file is gone")?, format: None })
}

/// Forgets the most memory so far, where the system can.
fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Most memory the process has held, in MiB, where the system tells.
fn peak_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_ascii_whitespace().nth(1)?.parse::<f64>().ok().map(|kib| kib / 1024.0)
}

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let number = |at: usize, usual: u64| arguments.get(at).map_or(Ok(usual), |text| text.parse::<u64>());
    let (passages, questions) = (number(0, 20_000)?, number(1, 10_000)?);
    let folder = arguments.get(2).map_or_else(std::env::temp_dir, Into::into);
    let folder = tempfile::tempdir_in(folder)?;
    println!("{passages} passages, {questions} questions, {DIM} dimensions\n");
    println!("| tasks | count | seconds | most memory, MiB |\n|---|---|---|---|");
    let mut run = Run::open(folder.path())?;
    let (table, queries) = tables(&mut run, passages, questions)?;
    let vectors = VectorSet {
        queries: run.vectors("questions", questions)?,
        passages: run.vectors("passages", passages)?,
        sentences: Vec::new(),
    };
    let rankings = search(&mut run, &table, &queries, &vectors)?;
    let mine = Task::Mine {
        runs: rankings.clone(),
        given: false,
        queries: queries.clone(),
        passages: table.clone(),
        sets: vec![SET.to_owned()],
        teacher: vectors,
        mining: MiningSpec::default(),
        seed: 1,
    };
    let negatives = run.all("mining", [mine])?.remove(0).0;
    let order = Task::Order {
        data: PhaseData::Queries,
        queries: queries.clone(),
        passages: table.clone(),
        sets: vec![SET.to_owned()],
        negatives: Some(negatives),
        negatives_per_row: 4,
        corpus_samples: 32,
        given_scores: false,
        unlabelled: 0,
        sentences: None,
        batch: 128,
        length: PhaseLength::Epochs(3.0),
        span: None,
        tokens: None,
        only_questions: false,
        seed: 1,
    };
    run.all("training rows", [order])?;
    let evaluate = rankings.into_iter().map(|ranking| Task::Evaluate {
        run: ranking,
        queries: queries.clone(),
        passages: table.clone(),
        sets: vec![SET.to_owned()],
        metrics: ["mrr@10", "recall@100", "ndcg@10"].map(str::to_owned).to_vec(),
    });
    run.all("evaluation", evaluate.collect::<Vec<_>>())?;
    println!("| all | {} | | {:.0} |", run.count, run.peak);
    Ok(())
}

/// Corpus and questions in shards.
fn tables(run: &mut Run, passages: u64, questions: u64) -> Outcome<(Table, Table)> {
    let mut state = 1;
    let corpus = generate(&run.folder.join("corpus.jsonl"), passages, |row| {
        json!({ "_id": format!("p{row}"), "title": format!("Title {}", row / 5), "text": text(&mut state, 100) })
            .to_string()
    })?;
    let asked = generate(&run.folder.join("queries.jsonl"), questions, |row| {
        json!({ "_id": format!("q{row}"), "text": text(&mut state, 9) }).to_string()
    })?;
    let judged = generate(&run.folder.join("train.tsv"), questions, |row| {
        format!("q{row}\tp{}\t1", next(&mut state) % passages)
    })?;
    let rows_per_shard = ROWS_PER_SHARD as u32;
    let table = |(artifact, meta): (ArtifactId, Value)| {
        let number = |name: &str| meta[name].as_u64().expect("sharding tells its numbers");
        Table { artifact, shards: number("shards") as u32, rows: number("rows") }
    };
    let format = |data: DataFile, format| DataFile { format: Some(format), ..data };
    let shard = Task::ShardCorpus {
        passages: vec![format(corpus, FileFormat::Jsonl)],
        rows_per_shard,
        max_bad_records: 0,
    };
    let corpus = table(run.all("shards of the corpus", [shard])?.remove(0));
    let shard = Task::ShardQueries {
        queries: vec![format(asked, FileFormat::Jsonl)],
        sets: [(SET.to_owned(), vec![format(judged, FileFormat::Qrels)])].into(),
        answers: AnswerRule::Text,
        passages: corpus.clone(),
        rows_per_shard,
        max_bad_records: 0,
    };
    let queries = table(run.all("shards of the questions", [shard])?.remove(0));
    Ok((corpus, queries))
}

/// Fits, codes and ranked lists of vectors and of BM25; codes' lists are merged and left.
fn search(run: &mut Run, table: &Table, queries: &Table, vectors: &VectorSet) -> Outcome<Vec<ArtifactId>> {
    let fingerprint = FINGERPRINT.to_owned();
    let passages = &vectors.passages;
    run.all(
        "principal components",
        [Task::FitPca { vectors: passages.clone(), fingerprint: fingerprint.clone() }],
    )?;
    let fit = Task::FitBaseline {
        vectors: passages.clone(),
        reduce: None,
        method: QuantizerMethod::Product { bytes: 32, rotation: false },
        seed: 1,
        fingerprint: fingerprint.clone(),
    };
    let quantizer = run.all("product quantiser of 32 bytes", [fit])?.remove(0).0;
    let encode = passages.iter().map(|shard| Task::Encode {
        quantizer: quantizer.clone(),
        vectors: shard.clone(),
        fingerprint: fingerprint.clone(),
    });
    let codes: Vec<_> = run.all("codes", encode.collect::<Vec<_>>())?.into_iter().map(|(id, _)| id).collect();
    let statistics = run.all("bm25 statistics", [Task::FitBm25 { passages: table.clone() }])?.remove(0).0;
    let search = |retriever, fingerprint: &str| Task::Search {
        retriever,
        queries: queries.clone(),
        sets: vec![SET.to_owned()],
        depth: DEPTH,
        fingerprint: fingerprint.to_owned(),
    };
    let dense = passages.chunks(SHARDS_PER_SEARCH).map(|shards| {
        let (queries, passages) = (vectors.queries.clone(), shards.to_vec());
        search(Retriever::Dense { queries, passages, reduce: None }, FINGERPRINT)
    });
    let coded = codes.chunks(SHARDS_PER_SEARCH).map(|shards| {
        let (queries, quantizer, codes) = (vectors.queries.clone(), quantizer.clone(), shards.to_vec());
        search(Retriever::Codes { queries, quantizer, codes, hamming: false, rerank: None }, FINGERPRINT)
    });
    let bm25 = (0..table.shards).step_by(SHARDS_PER_SEARCH).map(|first_shard| {
        let shards = (table.shards - first_shard).min(SHARDS_PER_SEARCH as u32);
        let (passages, statistics) = (table.clone(), statistics.clone());
        search(Retriever::Bm25 { passages, first_shard, shards, statistics, k1: 0.9, b: 0.4 }, "")
    });
    let searches: [(&str, Vec<Task>); 3] = [
        ("search of vectors", dense.collect()),
        ("scan of codes", coded.collect()),
        ("bm25", bm25.collect()),
    ];
    let mut merges = Vec::new();
    for (name, tasks) in searches {
        let runs = run.all(name, tasks)?.into_iter().map(|(id, _)| id).collect();
        merges.push(Task::Merge { runs, depth: DEPTH });
    }
    let merged = run.all("merging of lists", merges)?;
    Ok(merged
        .into_iter()
        .map(|(id, _)| id)
        .enumerate()
        .filter(|(at, _)| *at != 1)
        .map(|(_, id)| id)
        .collect())
}

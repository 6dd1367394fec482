//! Embedding and training of encoders by the tasks that workers run, on texts from a file: what tests/bench/encoder.py holds
//! against sentence-transformers and PyTorch.
//!
//! `encoder_peer SETTINGS.json` loads the model and warms up, says `ready`, waits for a line on standard input, works, and
//! prints how many items it did in how many seconds. So several of them can be started together.

#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use retort_common::artifact::{ArtifactReader, ArtifactWriter, Cache};
use retort_common::checkpoint::{self, Lineage};
use retort_common::cohort::Member;
use retort_common::ids::{AttemptNumber, Digest, TaskId, WorkerId};
use retort_common::model::{ModelFiles, ModelInputs};
use retort_common::net::NetOptions;
use retort_common::spec::{PhaseSpec, Pooling};
use retort_common::store::{Location, Store};
use retort_common::task::{
    ArtifactId, Encoder, ProjectionStart, Side, Signal, StudentStart, Table, Task, TextInput, VectorSet,
};
use retort_worker::exchange::{Exchange, ExchangeConfig};
use retort_worker::matrix::Matrix;
use retort_worker::model::Device;
use retort_worker::session::{Progressing, TaskContext};
use retort_worker::tables::PassageShard;
use retort_worker::tasks::{Content, EncoderCache, Produced, Progress, Seat, Workbench, run};
use retort_worker::text::Tokenizer;
use retort_worker::vectors::{Values, write_tensors, write_vectors};
use serde_json::{Value, json};
use std::error::Error;
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Texts that are embedded before the clock starts.
const WARM_UP: usize = 64;

#[derive(serde::Deserialize)]
struct Settings {
    work: Work,
    model: String,
    texts: Vec<String>,
    device: String,
    /// Compute threads in all.
    threads: usize,
    max_tokens: u32,
    /// Most tokens of a batch of embedding.
    batch_tokens: u32,
    /// Texts of a training step.
    batch: u32,
    /// Layers of the model that a student keeps; all without it.
    layers: Option<Vec<u32>>,
    /// Workers of the cohort that trains, each with its share of the threads and one microbatch.
    members: u32,
    /// Where the vectors are written, for comparisons.
    out: Option<PathBuf>,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "snake_case")]
enum Work {
    Embed,
    Train,
}

struct Quiet;

impl Progress for Quiet {
    fn progress(&self, _: u64, _: u64, _: &str) {}
    fn log(&self, text: &str) {
        eprintln!("{text}");
    }
    fn stopped(&self) -> bool {
        false
    }
}

/// A store in a temporary folder, with a model to compute with.
struct Place {
    runtime: tokio::runtime::Runtime,
    store: Store,
    folder: tempfile::TempDir,
    files: ModelFiles,
    settings: Settings,
}

fn main() -> Outcome<()> {
    let path = std::env::args().nth(1).ok_or("usage: encoder_peer SETTINGS.json")?;
    let settings: Settings = serde_json::from_slice(&std::fs::read(path)?)?;
    rayon::ThreadPoolBuilder::new().num_threads(settings.threads).build_global()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let folder = tempfile::tempdir()?;
    let store = Store::open(&format!("file://{}", folder.path().join("store").display()))?;
    let base = Location::of_path(&std::env::current_dir()?)?;
    let files = runtime.block_on(ModelInputs::collect("model", &base, &settings.model))?.files;
    let place = Place { runtime, store, folder, files, settings };
    match place.settings.work {
        Work::Embed => place.embed(),
        Work::Train => place.train(),
    }
}

impl Place {
    fn artifact(kind: &str, name: &str) -> ArtifactId {
        ArtifactId { kind: kind.to_owned(), task: TaskId(Digest::of(name.as_bytes())) }
    }

    fn put(&self, artifact: &ArtifactId, parts: Vec<(String, Content)>, meta: Value) -> Outcome<()> {
        let mut writer =
            ArtifactWriter::new(&self.store, artifact.clone(), 1, AttemptNumber(1), "n".to_owned());
        self.runtime.block_on(async {
            for (name, content) in parts {
                match content {
                    Content::Bytes(bytes) => writer.add(&name, bytes).await?,
                    Content::File(path) => writer.add_file(&name, &path).await?,
                }
            }
            writer.finish(meta).await
        })?;
        Ok(())
    }

    fn workbench<'a>(
        &self,
        name: &str,
        encoders: &'a EncoderCache,
        seat: Option<Seat<'a>>,
    ) -> Outcome<Workbench<'a>> {
        let scratch = self.folder.path().join(format!("scratch-{name}"));
        std::fs::create_dir_all(&scratch)?;
        let cache = Cache::open(&self.folder.path().join(format!("cache-{name}")), 1 << 32)?;
        let device = Device::parse(&self.settings.device)?;
        let threads = match self.settings.work {
            Work::Embed => self.settings.threads,
            Work::Train => self.settings.threads / self.settings.members as usize,
        };
        device.use_threads(threads);
        Ok(Workbench {
            artifacts: ArtifactReader::new(self.store.clone(), cache),
            device,
            threads,
            checkpoints: checkpoint::Place { job: "bench".parse()?, lineage: Lineage::FIRST },
            scratch,
            progress: &Quiet,
            runtime: self.runtime.handle().clone(),
            encoders,
            seat,
        })
    }

    fn embed(self) -> Outcome<()> {
        let texts = Self::artifact("corpus", "texts");
        let mut parts = Vec::new();
        let warm_up = WARM_UP.min(self.settings.texts.len());
        for (shard, rows) in [&self.settings.texts[..warm_up], &self.settings.texts].into_iter().enumerate() {
            let path = self.folder.path().join(format!("texts-{shard}"));
            let ids = (0..rows.len()).map(|row| row.to_string()).collect();
            let titles = vec![String::new(); rows.len()];
            PassageShard { first_row: 0, ids, titles, texts: rows.to_vec() }.write(&path)?;
            parts.push((format!("{shard:06}.parquet"), Content::File(path)));
        }
        self.put(&texts, parts, json!({}))?;
        let task = |shard: u32| Task::Embed {
            encoder: Encoder::Files { files: self.files.clone(), pooling: Pooling::Mean },
            texts: Table { artifact: texts.clone(), shards: 2, rows: self.settings.texts.len() as u64 },
            shard,
            side: Side::Passage,
            input: TextInput { max_tokens: self.settings.max_tokens, prefix: String::new() },
            batch_tokens: self.settings.batch_tokens,
            normalize: true,
            fingerprint: "bench".to_owned(),
        };
        let encoders = EncoderCache::default();
        let bench = self.workbench("embed", &encoders, None)?;
        run(&bench, &task(0))?;
        ready()?;
        let start = Clock::start();
        let Produced { parts, .. } = run(&bench, &task(1))?;
        let took = start.took();
        if let (Some(out), Some((_, Content::File(path)))) = (&self.settings.out, parts.into_iter().next()) {
            std::fs::copy(path, out)?;
        }
        Ok(say(self.settings.texts.len(), took)?)
    }

    /// Training rows of single texts, and a teacher's vectors that are as good as any.
    fn rows(&self, dim: usize) -> Outcome<(ArtifactId, VectorSet, u32)> {
        let Settings { texts, batch, max_tokens, .. } = &self.settings;
        let steps = texts.len() as u32 / batch;
        let count = (steps * batch) as usize;
        let model = PathBuf::from(&self.settings.model);
        let tokens = Tokenizer::open(&model, usize::MAX)?.encode_all(
            &texts[..count],
            *max_tokens as usize,
            self.settings.threads,
        )?;
        let (mut ids, mut ends) = (Vec::new(), Vec::new());
        for text in tokens {
            ids.extend(text);
            ends.push(ids.len() as u64);
        }
        let rows: Vec<u64> = (0..count as u64).collect();
        let known_ends: Vec<u64> = (1..=count as u64).collect();
        let order = Self::artifact("order", "order");
        let path = self.folder.path().join("order");
        write_tensors(
            &path,
            &[
                ("known_positives", vec![count], Values::U64(&rows)),
                ("known_positives_ends", vec![count], Values::U64(&known_ends)),
                ("texts", vec![count, 1], Values::U64(&rows)),
                ("token_ends", vec![count], Values::U64(&ends)),
                ("tokens", vec![ids.len()], Values::U32(&ids)),
            ],
        )?;
        let meta = json!({ "steps": steps, "batch": batch, "width": 1, "steps_per_part": steps });
        self.put(&order, vec![("000000.safetensors".to_owned(), Content::File(path))], meta)?;
        let vectors = Self::artifact("vectors", "teacher");
        let path = self.folder.path().join("vectors");
        let value = |at: usize| ((at * 7919 + at / dim * 31) % 1013) as f32 / 500.0 - 1.0;
        write_vectors(&path, &Matrix::new(count, dim, (0..count * dim).map(value).collect()))?;
        self.put(&vectors, vec![("vectors.safetensors".to_owned(), Content::File(path))], json!({}))?;
        Ok((
            order,
            VectorSet { queries: vec![vectors.clone()], passages: vec![vectors], sentences: Vec::new() },
            steps,
        ))
    }

    fn train(self) -> Outcome<()> {
        let config: Value =
            serde_json::from_slice(&std::fs::read(PathBuf::from(&self.settings.model).join("config.json"))?)?;
        let dim = config["hidden_size"].as_u64().ok_or("config.json has no hidden_size")? as usize;
        let (order, signal, steps) = self.rows(dim)?;
        let members = self.settings.members;
        let mut phase: PhaseSpec = serde_json::from_value(json!({
            "data": "texts", "steps": steps, "batch": self.settings.batch, "microbatches": members,
            "learning_rate": 1e-4, "loss": [{ "kind": "embedding_cosine" }], "checkpoint_every": 1_000_000,
        }))?;
        let loss = std::mem::take(&mut phase.loss);
        let task = Task::Train {
            start: StudentStart::Encoder {
                files: self.files.clone(),
                layers: self.settings.layers.clone(),
                pooling: Pooling::Mean,
                dim: None,
                init: ProjectionStart::Random,
            },
            order,
            inputs: None,
            signal: Signal::Vectors(signal),
            phase,
            loss,
            span: None,
            keeps_state: false,
            normalize: true,
            seed: 1,
            fingerprint: "bench".to_owned(),
        };
        let (exchanges, cohort) = self.cohort()?;
        let (place, task) = (&self, &task);
        std::thread::scope(|scope| {
            for (rank, exchange) in exchanges.into_iter().enumerate() {
                let worker = cohort[rank].worker.clone();
                let (context, progress) = TaskContext::in_cohort(task.id(), cohort.clone());
                if rank == 0 {
                    scope.spawn(move || place.time(progress, u64::from(steps)));
                }
                scope.spawn(move || {
                    let train = || -> Outcome<()> {
                        let (exchange, orphan_limit) = (Some(exchange), Duration::from_secs(600));
                        let seat = Seat { context: &context, worker, exchange, orphan_limit };
                        let encoders = EncoderCache::default();
                        let bench = place.workbench(&rank.to_string(), &encoders, Some(seat))?;
                        let pool = rayon::ThreadPoolBuilder::new().num_threads(bench.threads).build()?;
                        pool.install(|| run(&bench, task).map_err(|error| error.to_string()))?;
                        Ok(())
                    };
                    // The others wait for a coordinator that is not there: the process ends with its first member.
                    if let Err(error) = train() {
                        eprintln!("member {rank}: {error}");
                        std::process::exit(1);
                    }
                });
            }
        });
        Ok(())
    }

    fn cohort(&self) -> Outcome<(Vec<Exchange>, Vec<Member>)> {
        let (mut exchanges, mut members) = (Vec::new(), Vec::new());
        for rank in 0..self.settings.members {
            let worker: WorkerId = format!("w{rank}").parse()?;
            let config = ExchangeConfig {
                worker: worker.clone(),
                listen: "127.0.0.1:0".to_owned(),
                advertise: None,
                net: NetOptions::default(),
                patience: Duration::from_secs(600),
            };
            let exchange = self.runtime.block_on(Exchange::listen(config))?;
            let address = exchange.address().to_owned();
            members.push(Member { worker, address, microbatches: rank..rank + 1 });
            exchanges.push(exchange);
        }
        Ok((exchanges, members))
    }

    /// Times the steps after the first few, which make the memory that the others use again, and ends the process.
    fn time(&self, mut progress: Progressing, steps: u64) {
        let mut first: Option<(u64, Clock)> = None;
        while let Some(done) = progress.next_step() {
            match &first {
                None if done >= 2 => {
                    // Nobody waits for it: the steps go on.
                    println!("ready");
                    first = Some((done, Clock::start()));
                }
                Some((from, start)) if done == steps => {
                    let items = (done - from) as usize * self.settings.batch as usize;
                    std::process::exit(i32::from(say(items, start.took()).is_err()));
                }
                _ => {}
            }
        }
    }
}

/// Says that all is prepared, and waits for the start.
fn ready() -> Outcome<()> {
    println!("ready");
    std::io::stdin().lock().read_line(&mut String::new())?;
    Ok(())
}

/// Time on the wall and on the processor since a moment.
struct Clock {
    wall: Instant,
    processor: f64,
}

impl Clock {
    fn start() -> Self {
        Self { wall: Instant::now(), processor: processor_seconds() }
    }

    fn took(&self) -> [f64; 2] {
        [self.wall.elapsed().as_secs_f64(), processor_seconds() - self.processor]
    }
}

/// Processor time of all threads, to a hundredth; what a busy machine leaves comparable.
fn processor_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name in brackets, which may hold spaces; user and system time are fields 14 and 15.
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / 100.0
}

fn say(items: usize, [seconds, processor]: [f64; 2]) -> std::io::Result<()> {
    let answer = json!({ "items": items, "seconds": seconds, "processor_seconds": processor });
    writeln!(std::io::stdout(), "{answer}")
}

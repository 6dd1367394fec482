//! A phase in parts has the bits of the same phase in one piece, whatever its student is.
//!
//! - `doubts`: what becomes of values that are not finite

mod doubts;

use super::super::bench::{Content, Produced, Progress, Seat, TaskError, VECTORS, Workbench};
use super::super::embed::EncoderCache;
use super::super::score::SCORES;
use super::train;
use crate::fit::{AffineMap, BinaryQuantizer, Code, ProductQuantizer, Quantizer, ResidualQuantizer};
use crate::losses::TeacherKind;
use crate::mining::counter;
use crate::model::Device;
use crate::tables::{NegativeRow, write_negatives};
use crate::vectors::{Values, write_tensors};
use retort_common::artifact::{ArtifactReader, ArtifactWriter, Cache};
use retort_common::checkpoint::{Lineage, Place};
use retort_common::ids::{AttemptNumber, Digest, TaskId};
use retort_common::spec::{CodeKind, LossSpec, PhaseSpec};
use retort_common::store::Store;
use retort_common::task::{
    ArtifactId, PairTables, ProjectionStart, Signal, Span, StudentStart, Task, VectorSet,
};
use serde_json::{Value, json};

const STEPS: u32 = 6;
const BATCH: usize = 8;
const WIDTH: usize = 4;
const ROWS: u64 = 40;
const DIM: usize = 6;

pub(super) struct Quiet;

impl Progress for Quiet {
    fn progress(&self, _: u64, _: u64, _: &str) {}
    fn log(&self, _: &str) {}
    fn stopped(&self) -> bool {
        false
    }
}

/// The sizes of a training.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub batch: usize,
    /// Components of the vectors.
    pub dim: usize,
    pub steps: u32,
}

const SMALL: Sizes = Sizes { batch: BATCH, dim: DIM, steps: STEPS };

/// A store with training rows and vectors, and what a worker has.
pub(super) struct Fixture {
    sizes: Sizes,
    runtime: tokio::runtime::Runtime,
    store: Store,
    folder: tempfile::TempDir,
    vectors: VectorSet,
    /// What is learnt from: the vectors, unless a test says otherwise.
    signal: Signal,
}

fn artifact(kind: &str, name: &str) -> ArtifactId {
    ArtifactId { kind: kind.to_owned(), task: TaskId(Digest::of(name.as_bytes())) }
}

impl Fixture {
    pub(super) fn new(sizes: Sizes) -> Self {
        Self::with_vectors(sizes, |at| at)
    }

    /// The same with other values in the vectors.
    fn with_vectors(sizes: Sizes, change: impl Fn(f32) -> f32) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let store = Store::open("memory:///").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (queries, passages) = (artifact("vectors", "queries"), artifact("vectors", "passages"));
        let vectors = VectorSet {
            queries: vec![queries.clone()],
            passages: vec![passages.clone()],
            sentences: Vec::new(),
        };
        let signal = Signal::Vectors(vectors.clone());
        let fixture = Self { sizes, runtime, store, folder, vectors, signal };
        for (stream, set) in [(1, queries), (2, passages)] {
            let value = |at: u64| change(counter::unit(counter::hash(stream, &[at])) as f32 - 0.5);
            let values: Vec<f32> = (0..ROWS * sizes.dim as u64).map(value).collect();
            let path = fixture.folder.path().join("vectors");
            let shape = vec![ROWS as usize, sizes.dim];
            write_tensors(&path, &[("vectors", shape, Values::F32(&values))]).unwrap();
            fixture.put(&set, vec![(VECTORS.to_owned(), Content::File(path))], json!({}));
        }
        fixture
    }

    fn put(&self, artifact: &ArtifactId, parts: Vec<(String, Content)>, meta: Value) {
        self.runtime.block_on(async {
            let mut writer =
                ArtifactWriter::new(&self.store, artifact.clone(), 1, AttemptNumber(1), "n".to_owned());
            for (name, content) in parts {
                match content {
                    Content::Bytes(bytes) => writer.add(&name, bytes).await.unwrap(),
                    Content::File(path) => writer.add_file(&name, &path).await.unwrap(),
                }
            }
            writer.finish(meta).await.unwrap();
        });
    }

    /// The training rows of some steps: a question, its positive and two negatives.
    fn order(&self, steps: std::ops::Range<u32>) -> ArtifactId {
        let (mut texts, mut known) = (Vec::new(), Vec::new());
        let batch = self.sizes.batch;
        for row in steps.start as u64 * batch as u64..u64::from(steps.end) * batch as u64 {
            let draw = |stream: u64| counter::hash(9, &[row, stream]) % ROWS;
            texts.extend([draw(0) | 1 << 63, draw(1), draw(2), draw(3)]);
            known.push(draw(1));
        }
        let ends: Vec<u64> = (1..=known.len() as u64).collect();
        let path = self.folder.path().join("order");
        let tensors = [
            ("known_positives", vec![known.len()], Values::U64(&known)),
            ("known_positives_ends", vec![ends.len()], Values::U64(&ends)),
            ("texts", vec![known.len(), WIDTH], Values::U64(&texts)),
        ];
        write_tensors(&path, &tensors).unwrap();
        let order = artifact("order", &format!("{steps:?}"));
        let meta = json!({ "steps": steps.len(), "batch": batch, "width": WIDTH, "steps_per_part": 100 });
        self.put(&order, vec![("000000.safetensors".to_owned(), Content::File(path))], meta);
        order
    }

    fn task(&self, start: StudentStart, steps: std::ops::Range<u32>, phase: &PhaseSpec) -> Task {
        let (mut phase, whole) = (phase.clone(), steps == (0..self.sizes.steps));
        let loss = std::mem::take(&mut phase.loss);
        let span = Span { first: steps.start, end: steps.end, total: self.sizes.steps };
        Task::Train {
            start,
            order: self.order(steps.clone()),
            inputs: Some(self.vectors.clone()),
            signal: self.signal.clone(),
            phase,
            loss,
            span: (!whole).then_some(span),
            keeps_state: steps.end < self.sizes.steps,
            normalize: true,
            seed: 5,
            fingerprint: "test".to_owned(),
        }
    }

    /// Trains alone, or at a seat in a cohort.
    fn try_train(&self, task: &Task, seat: Option<Seat<'_>>) -> Result<Produced, TaskError> {
        let cache = Cache::open(&self.folder.path().join("cache"), 1 << 30).unwrap();
        // It outlives the call, since parts of the result lie in it.
        let scratch = tempfile::tempdir_in(self.folder.path()).unwrap().keep();
        let encoders = EncoderCache::default();
        let bench = Workbench {
            artifacts: ArtifactReader::new(self.store.clone(), cache),
            device: Device::flex(),
            threads: 1,
            checkpoints: Place { job: "job".parse().unwrap(), lineage: Lineage::FIRST },
            scratch,
            progress: &Quiet,
            runtime: self.runtime.handle().clone(),
            encoders: &encoders,
            seat,
        };
        train(&bench, task)
    }

    /// Trains, stores the artifact, and gives its digest of weights and its loss curve.
    pub(super) fn train(
        &self,
        start: StudentStart,
        steps: std::ops::Range<u32>,
        phase: &PhaseSpec,
    ) -> (ArtifactId, Value, String) {
        let task = self.task(start, steps, phase);
        let Produced { parts, meta } = self.try_train(&task, None).unwrap();
        let curve = parts.iter().find(|(name, _)| name == "curve.json");
        let Some((_, Content::Bytes(curve))) = curve else { panic!("no loss curve") };
        let curve = String::from_utf8(curve.to_vec()).unwrap();
        self.put(&task.output(), parts, meta.clone());
        (task.output(), meta, curve)
    }
}

fn phase(extra: Value) -> PhaseSpec {
    let mut value = json!({
        "data": "queries", "steps": STEPS, "batch": BATCH, "microbatches": 4, "negatives": 2,
        "learning_rate": 0.01, "warmup": 0.3, "schedule": "cosine", "dropout": 0.1,
        "loss": [
            { "kind": "info_nce", "temperature": 0.2, "learn_temperature": true, "ramp": { "to": 0.2 } },
            { "kind": "embedding_mse", "projection": true, "dims": [2, 4] },
        ],
    });
    value.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    serde_json::from_value(value).unwrap()
}

fn mlp() -> StudentStart {
    StudentStart::Head { input: DIM as u32, dim: 4, hidden: Some(8), init: ProjectionStart::Random }
}

#[test]
fn a_phase_in_parts_is_the_phase_in_one_piece() {
    let fixture = Fixture::new(SMALL);
    let phase = phase(json!({}));
    let (_, whole, curve) = fixture.train(mlp(), 0..STEPS, &phase);
    let (first, ..) = fixture.train(mlp(), 0..2, &phase);
    let (second, ..) = fixture.train(StudentStart::Continue { student: first }, 2..5, &phase);
    let (_, parts, joined) = fixture.train(StudentStart::Continue { student: second }, 5..STEPS, &phase);
    assert_eq!(whole, parts);
    assert_eq!(curve, joined);
    assert!(whole["temperatures"][0][1].as_f64().unwrap() != 0.2);
}

/// A start of product codes on a head of 4 dimensions with a rotation, or of others on the vectors themselves without one.
fn coded(fixture: &Fixture, code: CodeKind) -> StudentStart {
    let on_head = code == CodeKind::Product;
    let dim = fixture.sizes.dim;
    let codebooks = |count: usize| -> Vec<f32> {
        (0..count).map(|at| counter::unit(counter::hash(4, &[at as u64])) as f32 - 0.5).collect()
    };
    let rotation = vec![0.6, 0.8, 0.0, 0.0, -0.8, 0.6, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, -1.0, 0.0];
    let plain = |code| Quantizer { map: None, code };
    let quantizer = match code {
        CodeKind::Product => Quantizer {
            map: Some(AffineMap::new(4, rotation, vec![0.0; 4], false).unwrap()),
            code: Code::Product(ProductQuantizer::new(4, 2, codebooks(4 * 256)).unwrap()),
        },
        CodeKind::Residual => {
            plain(Code::Residual(ResidualQuantizer::new(dim, codebooks(2 * 256 * dim)).unwrap()))
        }
        CodeKind::Binary => plain(Code::Binary(BinaryQuantizer::signs(dim, None))),
    };
    let path = fixture.folder.path().join("quantizer");
    quantizer.write(&path).unwrap();
    let artifact = artifact("quantizer", &format!("{code:?}"));
    fixture.put(&artifact, vec![("quantizer.safetensors".to_owned(), Content::File(path))], json!({}));
    let head = on_head.then(|| {
        let linear =
            StudentStart::Head { input: DIM as u32, dim: 4, hidden: None, init: ProjectionStart::Random };
        fixture.train(linear, 0..STEPS, &phase(json!({ "dropout": 0.0 }))).0
    });
    StudentStart::Quantised { input: dim as u32, head, quantizer: artifact }
}

#[test]
fn codes_are_trained_in_parts_as_in_one_piece() {
    for (code, dim) in [(CodeKind::Product, DIM), (CodeKind::Residual, DIM), (CodeKind::Binary, 16)] {
        let fixture = Fixture::new(Sizes { dim, ..SMALL });
        let start = coded(&fixture, code);
        let phase = phase(json!({ "dropout": 0.0, "commitment": 0.3, "weight_decay": 0.0 }));
        let (_, whole, curve) = fixture.train(start.clone(), 0..STEPS, &phase);
        let (first, ..) = fixture.train(start.clone(), 0..3, &phase);
        let (_, parts, joined) = fixture.train(StudentStart::Continue { student: first }, 3..STEPS, &phase);
        assert_eq!((&whole, curve), (&parts, joined));
        let pulled = PhaseSpec { commitment: Some(3.0), ..phase };
        assert_ne!(whole["weights_sha256"], fixture.train(start, 0..STEPS, &pulled).1["weights_sha256"]);
    }
}

#[test]
fn dropout_and_the_seed_of_a_step_change_weights() {
    let fixture = Fixture::new(SMALL);
    let digest = |extra: Value| fixture.train(mlp(), 0..STEPS, &phase(extra)).1["weights_sha256"].clone();
    let with = digest(json!({}));
    let without = digest(json!({ "dropout": 0.0 }));
    assert_ne!(with, without);
    assert_ne!(without, digest(json!({ "dropout": 0.0, "microbatches": 2 })));
}

/// Scores of the pairs of all steps that `value` gives one.
fn learn_from_scores(fixture: &mut Fixture, name: &str, value: impl Fn(u64, u64) -> Option<f64>) {
    let mut rows = Vec::new();
    for row in 0..u64::from(STEPS) * BATCH as u64 {
        let draw = |stream: u64| counter::hash(9, &[row, stream]) % ROWS;
        let pairs = [draw(1), draw(2), draw(3)].map(|passage| (draw(0), passage));
        let scored = pairs.into_iter().filter_map(|(query, passage)| {
            value(query, passage).map(|score| NegativeRow { query, passage, score })
        });
        rows.extend(scored);
    }
    let path = fixture.folder.path().join("scores");
    write_negatives(&path, &rows).unwrap();
    let scores = artifact("scores", name);
    fixture.put(&scores, vec![(SCORES.to_owned(), Content::File(path))], json!({}));
    fixture.signal = Signal::Scores(PairTables { scores: vec![scores] });
}

#[test]
fn scores_of_pairs_are_learnt_from_in_parts_as_in_one_piece() {
    let mut fixture = Fixture::new(SMALL);
    let phase = phase(json!({ "loss": [
        { "kind": "margin_mse", "teacher_scale": 0.1 },
        { "kind": "kl", "scope": "listed", "temperature": 0.2, "teacher_temperature": 1.0 },
        { "kind": "info_nce", "temperature": 0.2, "weight": 0.1 },
    ] }));
    let score = |query: u64, passage: u64| counter::unit(counter::hash(3, &[query, passage])) * 10.0 - 5.0;
    learn_from_scores(&mut fixture, "all", |query, passage| Some(score(query, passage)));
    let (_, whole, curve) = fixture.train(mlp(), 0..STEPS, &phase);
    let (first, ..) = fixture.train(mlp(), 0..4, &phase);
    let (_, parts, joined) = fixture.train(StudentStart::Continue { student: first }, 4..STEPS, &phase);
    assert_eq!((&whole, curve), (&parts, joined));
    // A pair without a score is left out.
    let some = |query: u64, passage: u64| (!passage.is_multiple_of(3)).then(|| score(query, passage));
    learn_from_scores(&mut fixture, "some", some);
    let (_, fewer, curve) = fixture.train(mlp(), 0..STEPS, &phase);
    assert_ne!(fewer["weights_sha256"], whole["weights_sha256"]);
    // Without a single one, only the loss that needs none has a value.
    learn_from_scores(&mut fixture, "none", |_, _| None);
    let terms = |curve: &str| serde_json::from_str::<Value>(curve).unwrap()[0]["terms"].clone();
    let (_, _, empty) = fixture.train(mlp(), 0..STEPS, &phase);
    let value = |terms: &Value, name: &str| {
        let terms = terms.as_array().unwrap();
        terms.iter().find(|term| term[0] == name).unwrap()[1].as_f64().unwrap()
    };
    for name in ["margin_mse", "kl"] {
        assert!(value(&terms(&curve), name) > 0.0);
        assert_eq!(value(&terms(&empty), name), 0.0);
    }
    assert!(value(&terms(&empty), "info_nce") > 0.0);
    learn_from_scores(&mut fixture, "damaged", |_, passage| Some(if passage == 7 { f64::NAN } else { 1.0 }));
    let task = fixture.task(mlp(), 0..STEPS, &phase);
    let message = fixture.try_train(&task, None).unwrap_err().to_string();
    assert!(message.contains("passage row 7 is NaN"), "{message}");
}

#[test]
fn a_loss_that_the_signal_cannot_give_is_refused_before_any_step() {
    let terms: Vec<LossSpec> = serde_json::from_value(json!([{ "kind": "embedding_mse" }])).unwrap();
    let phase = PhaseSpec { loss: Vec::new(), ..phase(json!({})) };
    let dims = super::objective::LossDims {
        student: 4,
        signal: TeacherKind::Vectors { dim: DIM },
        width: WIDTH,
        steps: 1,
    };
    let error = super::objective::PhaseLoss::new(&terms, &phase, true, dims).err().unwrap();
    assert!(error.to_string().contains("set `projection = true`"), "{error}");
    let dims = super::objective::LossDims { signal: TeacherKind::Scores, ..dims };
    let error = super::objective::PhaseLoss::new(&terms, &phase, true, dims).err().unwrap();
    assert!(error.to_string().contains("scores of listed candidates only"), "{error}");
}

//! A job's tasks, as far as they can be known: the plan grows as metas of done tasks come in.
//!
//! 1. the corpus' shards
//! 2. with their number, the questions' shards
//! 3. with a fingerprint, the teacher's vectors
//! 4. with their dimension, everything else but the report
//! 5. when all of that is done, the report
//!
//! - [`students`]: rows in step order, training, vectors and export of a student
//! - [`parts`]: the parts of a phase, and what measurements decide
//! - [`cross_encoder`]: what a cross-encoder says of pairs
//! - [`baselines`]: rows of PCA and quantisers
//! - [`rows`]: the report and its rows

mod baselines;
mod cross_encoder;
mod parts;
mod quantised;
mod rows;
mod students;

use cross_encoder::Mined;
use retort_common::ids::{Digest, JobId, TaskId};
use retort_common::spec::inputs::{JobInputs, ModelFiles};
use retort_common::spec::{
    JobSpec, MiningSource, MiningSpec, PairScores, PhaseData, PhaseSpec, StudentKind, StudentSpec,
};
use retort_common::task::{
    ArtifactId, Encoder, PcaReduction, Retriever, Side, StageSummary, Table, Task, TextInput, VectorSet,
};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Shards that one search task looks through, and runs that one merge takes.
pub const SEARCH_GROUP: usize = 16;
/// Most shards of a table; a meta that says more is not believed.
const MAX_SHARDS: u64 = 100_000;

/// What a plan depends on.
pub struct PlanContext<'a> {
    /// The job.
    pub job: &'a JobId,
    /// What to do.
    pub spec: &'a JobSpec,
    /// On which files.
    pub inputs: &'a JobInputs,
    /// Digest of both.
    pub digest: Digest,
    /// What float tasks are bound to, once known.
    pub fingerprint: Option<&'a str>,
    /// The meta of a task that is done.
    pub meta: &'a dyn Fn(TaskId) -> Option<&'a Value>,
    /// How the stages went, for the report.
    pub stages: &'a dyn Fn() -> Vec<StageSummary>,
}

/// All tasks that can be known now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The tasks, needs before what needs them.
    pub tasks: Vec<Task>,
    /// Whether these are all.
    pub complete: bool,
    /// Whether a fingerprint would let the plan go on.
    pub wants_fingerprint: bool,
    /// What was measured and decided, in words.
    pub decisions: Vec<String>,
    /// The best evaluated step so far, by the seed of the trainings of its phase.
    pub best: BTreeMap<u64, u32>,
}

/// Why a job cannot be planned.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlanError {
    /// A table without rows.
    #[error("{what} are empty; check the corpus and its sets")]
    Empty {
        /// Which.
        what: &'static str,
    },
    /// A manifest that does not say what it must.
    #[error("the manifest of {artifact} has no valid {key:?}; use another store")]
    Meta {
        /// The artifact.
        artifact: ArtifactId,
        /// What is missing.
        key: &'static str,
    },
    /// A dimension that the teacher does not have.
    #[error("baselines.pca: {dim} is more than the teacher's {teacher} dimensions; take a smaller one")]
    PcaDim {
        /// As asked for.
        dim: u32,
        /// The teacher's.
        teacher: u32,
    },
    /// A baseline that does not fit its vectors.
    #[error("baselines: {row}: {why}")]
    Baseline {
        /// Its row.
        row: String,
        /// What is wrong and what would be right.
        why: String,
    },
    /// A name that no earlier head has.
    #[error(
        "student {student:?}: {name:?} is not the teacher and no earlier head; put that student before this one"
    )]
    UnknownHead {
        /// Whose spec.
        student: String,
        /// The name.
        name: String,
    },
    /// A name that no earlier student has.
    #[error(
        "negatives_from: {name:?} is no retriever and no earlier student; put that student before this one"
    )]
    UnknownSource {
        /// The name.
        name: String,
    },
    /// A measurement that decides and is none.
    #[error(
        "{metric} is not defined on the dev sets: nothing can be chosen by it; put another first in evaluate.metrics"
    )]
    NoFigure {
        /// The metric.
        metric: String,
    },
    /// A phase that learns from scores that nobody brings.
    #[error(
        "signal = \"given\": the files of the corpus' sets bring no scores of pairs; use sets in one of the formats that do, \
         signal = \"cross-encoder\" or signal = \"teacher\""
    )]
    NoScores,
    /// Pairs are to be scored, and nobody is there to do it.
    #[error("the job has no cross-encoder; name one under [cross_encoder]")]
    NoCrossEncoder,
    /// A key that this kind of student needs.
    #[error("student {student:?}: {key} is missing")]
    Missing {
        /// Whose spec.
        student: String,
        /// The key.
        key: &'static str,
    },
}

/// Everything that can be planned now. The same context gives the same plan.
pub fn plan(context: &PlanContext<'_>) -> Result<Plan, PlanError> {
    let mut planner = Planner { context, plan: Plan::default(), known: BTreeSet::new() };
    planner.run()?;
    Ok(planner.plan)
}

/// What the later steps read.
struct Base {
    passages: Table,
    queries: Table,
    /// Sentences that stand as questions.
    sentences: Option<Table>,
    teacher: VectorSet,
    /// The teacher's vectors of the sentences.
    of_sentences: Vec<ArtifactId>,
    bm25: Option<ArtifactId>,
    fingerprint: String,
}

/// A student whose training is planned.
struct Trained {
    phases: Vec<ArtifactId>,
    last: ArtifactId,
    kind: StudentKind,
    vectors: VectorSet,
    /// What the teacher's vectors of questions go through to become its own; nothing for an encoder, which reads text.
    maps: Vec<ArtifactId>,
    /// For codes what asks them; none where that is the teacher as it is.
    export: Option<ArtifactId>,
    /// Bytes of a passage, where they are not its dimensions' four each.
    bytes: Option<u32>,
    /// What its phases took their negatives from, by name.
    negatives: Vec<(String, ArtifactId)>,
}

struct Planner<'p, 'a> {
    context: &'p PlanContext<'a>,
    plan: Plan,
    known: BTreeSet<TaskId>,
}

impl Planner<'_, '_> {
    fn run(&mut self) -> Result<(), PlanError> {
        let Some(base) = self.base()? else { return Ok(()) };
        let Some(dim) = self.teacher_dim(&base)? else { return Ok(()) };
        let spec = self.context.spec;
        let pca_dims = pca_dims(spec, dim, base.passages.rows)?;
        let pca = (!pca_dims.is_empty() || spec.student.iter().any(starts_from_pca))
            .then(|| self.fit_pca(&base, &base.teacher));
        let mut trained: BTreeMap<&str, Trained> = BTreeMap::new();
        for student in &spec.student {
            // What stands on a student that is not decided on waits for that.
            let earlier = spec.student.iter().take_while(|other| other.name != student.name);
            let mut open = earlier.filter(|other| !trained.contains_key(other.name.as_str()));
            if open.any(|other| stands_on(spec, student, &other.name)) {
                continue;
            }
            let planned = match student.kind {
                StudentKind::Quantised => self.quantised(&base, student, dim, &trained)?,
                _ => self.student(&base, student, dim, pca.as_ref(), &trained)?,
            };
            if let Some(planned) = planned {
                trained.insert(&student.name, planned);
            }
        }
        let mut rows = vec![self.dense_row(&base, "teacher", "teacher", &base.teacher, None)];
        rows.extend(self.teacher_baselines(&base, dim, &pca_dims)?);
        for student in &spec.student {
            let Some(planned) = trained.get(student.name.as_str()) else { continue };
            rows.push(self.student_row(&base, student, planned));
            rows.extend(self.student_baselines(&base, &student.name, &planned.vectors)?);
        }
        if spec.baselines.bm25 {
            rows.push(self.bm25_row(&base));
        }
        self.report(&base, rows, &trained)
    }

    fn add(&mut self, task: Task) -> ArtifactId {
        let output = task.output();
        if self.known.insert(output.task) {
            self.plan.tasks.push(task);
        }
        output
    }

    /// A whole number that a done task's manifest gives; none while the task is not done.
    fn number(&self, artifact: &ArtifactId, key: &'static str) -> Result<Option<u64>, PlanError> {
        let Some(meta) = (self.context.meta)(artifact.task) else { return Ok(None) };
        let invalid = || PlanError::Meta { artifact: artifact.clone(), key };
        meta.get(key).and_then(Value::as_u64).map(Some).ok_or_else(invalid)
    }

    fn table(&self, artifact: ArtifactId, what: &'static str) -> Result<Option<Table>, PlanError> {
        let (rows, shards) = (self.number(&artifact, "rows")?, self.number(&artifact, "shards")?);
        let Some((rows, shards)) = rows.zip(shards) else { return Ok(None) };
        if rows == 0 || shards == 0 {
            return Err(PlanError::Empty { what });
        }
        if shards > MAX_SHARDS {
            return Err(PlanError::Meta { artifact, key: "shards" });
        }
        Ok(Some(Table { artifact, shards: shards as u32, rows }))
    }

    fn base(&mut self) -> Result<Option<Base>, PlanError> {
        let (spec, inputs) = (self.context.spec, self.context.inputs);
        let (rows_per_shard, max_bad_records) = (spec.corpus.rows_per_shard, spec.corpus.max_bad_records);
        let files = inputs.corpus.passages.clone();
        let corpus = self.add(Task::ShardCorpus { passages: files, rows_per_shard, max_bad_records });
        let Some(passages) = self.table(corpus, "the passages")? else { return Ok(None) };
        let bm25 = wants_bm25(spec).then(|| self.add(Task::FitBm25 { passages: passages.clone() }));
        let queries = self.add(Task::ShardQueries {
            queries: inputs.corpus.queries.clone(),
            sets: inputs.corpus.sets.clone(),
            answers: spec.corpus.answers.unwrap_or_default(),
            passages: passages.clone(),
            rows_per_shard,
            max_bad_records,
        });
        let sentences = self.sentences(&passages);
        let Some(queries) = self.table(queries, "the judged questions")? else { return Ok(None) };
        if wants_given_scores(spec) && self.number(&queries.artifact, "scores")? == Some(0) {
            return Err(PlanError::NoScores);
        }
        let sentences = match sentences {
            None => None,
            Some(artifact) => match self.table(artifact, "the corpus' sentences")? {
                None => return Ok(None),
                table => table,
            },
        };
        let Some(fingerprint) = self.context.fingerprint.map(str::to_owned) else {
            self.plan.wants_fingerprint = true;
            return Ok(None);
        };
        let encoder = |side| Encoder::Files {
            files: self.teacher_files(side).clone(),
            pooling: spec.teacher_pooling(inputs, side),
        };
        let (asks, answers) = (encoder(Side::Query), encoder(Side::Passage));
        let query = (&asks, &queries, spec.teacher_input(inputs, Side::Query));
        let passage = (&answers, &passages, spec.teacher_input(inputs, Side::Passage));
        let teacher = self.embed(query, passage, &fingerprint);
        let of_sentences = match &sentences {
            None => Vec::new(),
            Some(table) => {
                let input = spec.teacher_input(inputs, Side::Query);
                self.embed_side(Side::Query, (&asks, table, input), &fingerprint)
            }
        };
        Ok(Some(Base { passages, queries, sentences, teacher, of_sentences, bm25, fingerprint }))
    }

    /// Sentences of the corpus, where a phase learns from them.
    fn sentences(&mut self, passages: &Table) -> Option<ArtifactId> {
        let spec = self.context.spec;
        let learnt = spec.student.iter().flat_map(|student| &student.phase).any(|phase| phase.sentences);
        learnt.then(|| {
            self.add(Task::ShardSentences {
                passages: passages.clone(),
                count: spec.corpus.sentences,
                rows_per_shard: spec.corpus.rows_per_shard,
                seed: derived_seed(spec.seed, "sentences", 0),
            })
        })
    }

    /// The teacher's files of one side.
    fn teacher_files(&self, side: Side) -> &ModelFiles {
        let inputs = self.context.inputs;
        match (&inputs.teacher_query, side) {
            (Some(query), Side::Query) => &query.files,
            _ => &inputs.teacher.files,
        }
    }

    fn embed(
        &mut self,
        queries: (&Encoder, &Table, TextInput),
        passages: (&Encoder, &Table, TextInput),
        fingerprint: &str,
    ) -> VectorSet {
        let queries = self.embed_side(Side::Query, queries, fingerprint);
        let passages = self.embed_side(Side::Passage, passages, fingerprint);
        VectorSet { queries, passages, sentences: Vec::new() }
    }

    fn embed_side(
        &mut self,
        side: Side,
        (encoder, texts, input): (&Encoder, &Table, TextInput),
        fingerprint: &str,
    ) -> Vec<ArtifactId> {
        let batch_tokens = self.context.spec.teacher.batch_tokens;
        let normalize = self.normalizes();
        let task = |shard| Task::Embed {
            encoder: encoder.clone(),
            texts: texts.clone(),
            shard,
            side,
            input: input.clone(),
            batch_tokens: batch_tokens.max(input.max_tokens),
            normalize,
            fingerprint: fingerprint.to_owned(),
        };
        (0..texts.shards).map(|shard| self.add(task(shard))).collect()
    }

    fn normalizes(&self) -> bool {
        self.context.spec.normalizes(self.context.inputs)
    }

    /// The teacher's dimension, which the first of its shards that is done tells.
    fn teacher_dim(&self, base: &Base) -> Result<Option<u32>, PlanError> {
        for artifact in base.teacher.queries.iter().chain(&base.teacher.passages) {
            if let Some(dim) = self.number(artifact, "dim")? {
                let valid = u32::try_from(dim).ok().filter(|dim| *dim > 0);
                let invalid = || PlanError::Meta { artifact: artifact.clone(), key: "dim" };
                return valid.map(Some).ok_or_else(invalid);
            }
        }
        Ok(None)
    }

    fn fit_pca(&mut self, base: &Base, vectors: &VectorSet) -> ArtifactId {
        let vectors = vectors.passages.clone();
        self.add(Task::FitPca { vectors, fingerprint: base.fingerprint.clone() })
    }

    /// Negatives from the lists of some retrievers.
    fn mine(
        &mut self,
        base: &Base,
        sources: &[MiningSource],
        trained: &BTreeMap<&str, Trained>,
    ) -> Result<Mined, PlanError> {
        let spec = self.context.spec;
        let (sets, depth) = (&spec.sets.train, spec.mining.depth);
        let mut runs = Vec::new();
        for source in sources {
            match source {
                MiningSource::Teacher => runs.push(self.search_dense(base, &base.teacher, None, sets, depth)),
                MiningSource::Bm25 => runs.push(self.search_bm25(base, sets, depth)),
                MiningSource::Given => {}
                MiningSource::Student(name) => {
                    let unknown = || PlanError::UnknownSource { name: name.clone() };
                    let student = trained.get(name.as_str()).ok_or_else(unknown)?;
                    runs.push(self.search_dense(base, &student.vectors, None, sets, depth));
                }
            }
        }
        let given = sources.contains(&MiningSource::Given);
        self.mine_runs(base, runs, given, derived_seed(spec.seed, "mine", 0))
    }

    fn mine_runs(
        &mut self,
        base: &Base,
        runs: Vec<ArtifactId>,
        given: bool,
        seed: u64,
    ) -> Result<Mined, PlanError> {
        let spec = self.context.spec;
        let lists = runs.len() + usize::from(given);
        let mined = |per_query| Task::Mine {
            runs,
            given,
            queries: base.queries.clone(),
            passages: base.passages.clone(),
            sets: spec.sets.train.clone(),
            teacher: base.teacher.clone(),
            mining: MiningSpec { per_query, denoise: None, ..spec.mining.clone() },
            seed,
        };
        let each = match &spec.mining.denoise {
            None => spec.mining.per_query,
            Some(denoise) => denoise.mined(&spec.mining, lists),
        };
        let candidates = self.add(mined(each));
        match &spec.mining.denoise {
            None => Ok(Mined { negatives: candidates.clone(), candidates, each }),
            Some(denoise) => self.denoise(base, denoise, candidates, each),
        }
    }

    fn search_dense(
        &mut self,
        base: &Base,
        vectors: &VectorSet,
        reduce: Option<&PcaReduction>,
        sets: &[String],
        depth: u32,
    ) -> ArtifactId {
        let retriever = |group: &[ArtifactId]| Retriever::Dense {
            queries: vectors.queries.clone(),
            passages: group.to_vec(),
            reduce: reduce.cloned(),
        };
        self.search_groups(base, &vectors.passages, retriever, sets, depth)
    }

    /// One search for each group of shards, and their merge.
    fn search_groups(
        &mut self,
        base: &Base,
        shards: &[ArtifactId],
        retriever: impl Fn(&[ArtifactId]) -> Retriever,
        sets: &[String],
        depth: u32,
    ) -> ArtifactId {
        let mut runs = Vec::new();
        for group in shards.chunks(SEARCH_GROUP) {
            let (retriever, fingerprint) = (retriever(group), base.fingerprint.clone());
            let (queries, sets) = (base.queries.clone(), sets.to_vec());
            runs.push(self.add(Task::Search { retriever, queries, sets, depth, fingerprint }));
        }
        self.merge(runs, depth)
    }

    fn search_bm25(&mut self, base: &Base, sets: &[String], depth: u32) -> ArtifactId {
        let baselines = &self.context.spec.baselines;
        let statistics = match &base.bm25 {
            Some(statistics) => statistics.clone(),
            None => self.add(Task::FitBm25 { passages: base.passages.clone() }),
        };
        let group = SEARCH_GROUP as u32;
        let mut runs = Vec::new();
        for first_shard in (0..base.passages.shards).step_by(SEARCH_GROUP) {
            let retriever = Retriever::Bm25 {
                passages: base.passages.clone(),
                first_shard,
                shards: group.min(base.passages.shards - first_shard),
                statistics: statistics.clone(),
                k1: baselines.bm25_k1,
                b: baselines.bm25_b,
            };
            let (queries, sets) = (base.queries.clone(), sets.to_vec());
            runs.push(self.add(Task::Search { retriever, queries, sets, depth, fingerprint: String::new() }));
        }
        self.merge(runs, depth)
    }

    /// Merges runs in a tree, so that no task reads more than a group of them.
    fn merge(&mut self, mut runs: Vec<ArtifactId>, depth: u32) -> ArtifactId {
        while runs.len() > 1 {
            let mut merged = Vec::new();
            for group in runs.chunks(SEARCH_GROUP) {
                merged.push(match group {
                    [one] => one.clone(),
                    _ => self.add(Task::Merge { runs: group.to_vec(), depth }),
                });
            }
            runs = merged;
        }
        runs.pop().expect("a table has at least one shard")
    }
}

fn wants_bm25(spec: &JobSpec) -> bool {
    let phases = spec.student.iter().flat_map(|student| &student.phase);
    let mut mined = phases.filter(|phase| mines(phase));
    spec.baselines.bm25 || mined.any(|phase| sources(spec, phase).contains(&MiningSource::Bm25))
}

fn wants_given_scores(spec: &JobSpec) -> bool {
    let mut phases = spec.student.iter().flat_map(|student| &student.phase);
    phases.any(|phase| phase.pair_scores() == Some(PairScores::Given))
}

fn mines(phase: &PhaseSpec) -> bool {
    phase.data == PhaseData::Queries && phase.negatives > 0
}

/// What a phase's negatives are mined from.
fn sources<'s>(spec: &'s JobSpec, phase: &'s PhaseSpec) -> &'s [MiningSource] {
    phase.negatives_from.as_deref().unwrap_or(&spec.mining.from)
}

/// Whether a student needs an earlier one.
fn stands_on(spec: &JobSpec, student: &StudentSpec, name: &str) -> bool {
    let of_phase = |phase: &PhaseSpec| {
        let mined = sources(spec, phase).iter();
        let mut mined = mined.filter(|_| mines(phase));
        phase.signal == name || mined.any(|source| *source == MiningSource::Student(name.to_owned()))
    };
    student.init == name || student.on.as_deref() == Some(name) || student.phase.iter().any(of_phase)
}

fn starts_from_pca(student: &StudentSpec) -> bool {
    student.init == "pca" && student.dim.is_some() && !student.is_narrow()
}

/// The dimensions of the PCA rows: those asked for, and the students' so that each has its rival.
fn pca_dims(spec: &JobSpec, teacher: u32, passages: u64) -> Result<BTreeSet<u32>, PlanError> {
    let mut dims: BTreeSet<u32> = spec.baselines.pca.iter().copied().collect();
    if let Some(dim) = dims.iter().copied().find(|dim| *dim > teacher) {
        return Err(PlanError::PcaDim { dim, teacher });
    }
    // A rival that nobody asked for must not fail a job whose corpus is too small to fit it.
    let fits = |dim: &u32| *dim < teacher && u64::from(*dim) < passages;
    dims.extend(spec.student.iter().filter_map(|student| student.dim).filter(fits));
    Ok(dims)
}

/// The seed of a student's phase, counted from 0, and its trainings' mark among those of the job.
pub(super) fn phase_seed(spec: &JobSpec, student: &StudentSpec, index: usize) -> u64 {
    derived_seed(spec.seed, first_alike(spec, student, index + 1), index)
}

/// The name of the first student that is the same up to a number of phases. Seeds come from it, so that what several
/// students need is made once.
fn first_alike<'s>(spec: &'s JobSpec, student: &'s StudentSpec, phases: usize) -> &'s str {
    let begun = |student: &StudentSpec| StudentSpec {
        name: String::new(),
        phase: student.phase.iter().take(phases).cloned().collect(),
        ..student.clone()
    };
    let alike = |other: &&StudentSpec| begun(other) == begun(student);
    spec.student.iter().find(alike).map_or(&student.name, |first| &first.name)
}

/// A seed for one purpose. 53 bits, so that every JSON reader keeps it.
pub(super) fn derived_seed(seed: u64, purpose: &str, index: usize) -> u64 {
    let digest = Digest::of_json(&serde_json::json!([seed, purpose, index])).to_string();
    u64::from_str_radix(&digest[..13], 16).unwrap_or(seed) & ((1 << 53) - 1)
}

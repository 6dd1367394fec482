//! A student: its training rows, its phases, its vectors and its export.

use super::cross_encoder::Mined;
use super::parts::{Race, parts};
use super::{Base, PlanError, Planner, Trained, derived_seed, first_alike, mines, phase_seed, sources};
use retort_common::spec::inputs::ModelFiles;
use retort_common::spec::{PairScores, PhaseSpec, StudentKind, StudentSpec};
use retort_common::task::{
    ArtifactId, BaseEncoder, Encoder, OrderTokens, PairTables, PassageTower, PhaseLength, ProjectionStart,
    Side, Signal, Span, StudentStart, Task, VectorSet,
};
use std::collections::BTreeMap;

impl Planner<'_, '_> {
    /// A student with its export; nothing while measurements have not decided on one of its phases.
    pub(super) fn student(
        &mut self,
        base: &Base,
        student: &StudentSpec,
        dim: u32,
        pca: Option<&ArtifactId>,
        earlier: &BTreeMap<&str, Trained>,
    ) -> Result<Option<Trained>, PlanError> {
        let start = self.start(student, dim, pca, earlier)?;
        let Some(trained) = self.trained(base, student, start, earlier)? else { return Ok(None) };
        let asked = self.asked(student, earlier)?;
        let export = Some(self.export_student(student, &trained.last, None, asked));
        let bytes = asked.and_then(|asked| asked.bytes);
        Ok(Some(Trained { export, bytes, ..trained }))
    }

    /// A student through its phases.
    pub(super) fn trained(
        &mut self,
        base: &Base,
        student: &StudentSpec,
        mut start: StudentStart,
        earlier: &BTreeMap<&str, Trained>,
    ) -> Result<Option<Trained>, PlanError> {
        let (mut phases, mut negatives) = (Vec::new(), Vec::new());
        for index in 0..student.phase.len() {
            let given = self.phase(base, student, index, start, &mut negatives, earlier)?;
            let Some(given) = given else { return Ok(None) };
            phases.push(given.clone());
            start = StudentStart::Student { student: given };
        }
        let missing = || PlanError::Missing { student: student.name.clone(), key: "phase" };
        let last = phases.last().cloned().ok_or_else(missing)?;
        let inputs = self.inputs(base, student, earlier)?;
        let vectors = self.student_vectors(base, student, &inputs, &last);
        let (mut maps, kind) = (Vec::new(), student.kind);
        if kind != StudentKind::Encoder {
            maps.extend(self.input_head(student, earlier)?.map(|head| head.last.clone()));
            maps.push(last.clone());
        }
        Ok(Some(Trained { phases, last, kind, vectors, maps, export: None, bytes: None, negatives }))
    }

    /// Trains one phase, part after part, and gives the artifact that it ends with; nothing while measurements have not
    /// decided which that is.
    ///
    /// A phase that mines anew takes in its period k + 2 the negatives that the student of period k found, which are
    /// mined while period k + 1 trains. A phase that is evaluated trains on meanwhile, a few parts ahead at most where
    /// it may end early.
    fn phase(
        &mut self,
        base: &Base,
        student: &StudentSpec,
        index: usize,
        mut start: StudentStart,
        audits: &mut Vec<(String, ArtifactId)>,
        earlier: &BTreeMap<&str, Trained>,
    ) -> Result<Option<ArtifactId>, PlanError> {
        let spec = self.context.spec;
        let phase = &student.phase[index];
        let sources = sources(spec, phase);
        let negatives = mines(phase).then(|| self.mine(base, sources, earlier)).transpose()?;
        if let Some(negatives) = &negatives {
            let names: Vec<String> = sources.iter().cloned().map(String::from).collect();
            audits.push((names.join(", "), negatives.negatives.clone()));
        }
        let inputs = self.inputs(base, student, earlier)?;
        let read = match student.kind {
            StudentKind::Encoder => student.only_asks().then(|| inputs.clone()),
            StudentKind::Head | StudentKind::Quantised => {
                let maps: Vec<_> =
                    self.input_head(student, earlier)?.map(|head| head.last.clone()).into_iter().collect();
                Some(self.with_sentences(base, phase, &inputs, &maps))
            }
        };
        let mut settings = PhaseSpec { evaluate_every: None, patience: None, ..phase.clone() };
        let loss = std::mem::take(&mut settings.loss);
        let parts = parts(phase);
        let mut race = Race::new(phase);
        let mut mined: Vec<Mined> = Vec::new();
        for (number, part) in parts.iter().enumerate() {
            let fresh = part.period.checked_sub(2).and_then(|period| mined.get(period));
            let negatives = fresh.or(negatives.as_ref());
            let signal = self.signal(base, student, phase, negatives, earlier)?;
            let negatives = negatives.map(|mined| &mined.negatives);
            let order = self.order(base, student, index, phase, negatives, part.span)?;
            let trained = self.add(Task::Train {
                start,
                order,
                inputs: read.clone(),
                signal,
                phase: settings.clone(),
                loss: loss.clone(),
                span: part.span,
                keeps_state: number + 1 < parts.len(),
                normalize: self.normalizes(),
                seed: phase_seed(spec, student, index),
                fingerprint: base.fingerprint.clone(),
            });
            race.enter(part, &trained);
            if part.evaluated {
                race.measured(self.dev_figure(base, student, &inputs, &trained)?);
            }
            if race.is_over() {
                break;
            }
            if part.ends_period && parts.iter().any(|later| later.period == part.period + 2) {
                let purpose = format!("mine {}", first_alike(spec, student, index + 1));
                let seed = derived_seed(spec.seed, &purpose, part.period);
                let fresh = self.refresh(base, student, &inputs, &trained, seed)?;
                let step = part.span.map_or(0, |span| span.end);
                audits.push((format!("{} at step {step}", student.name), fresh.negatives.clone()));
                mined.push(fresh);
            }
            if race.is_far_ahead() {
                break;
            }
            start = StudentStart::Continue { student: trained };
        }
        self.note(student, index, &race);
        Ok(race.winner())
    }

    /// What a phase learns from, where it takes these negatives.
    fn signal(
        &mut self,
        base: &Base,
        student: &StudentSpec,
        phase: &PhaseSpec,
        negatives: Option<&Mined>,
        earlier: &BTreeMap<&str, Trained>,
    ) -> Result<Signal, PlanError> {
        match phase.pair_scores() {
            Some(PairScores::Given) => {
                let scores = vec![base.queries.artifact.clone()];
                return Ok(Signal::Scores(PairTables { scores }));
            }
            Some(PairScores::CrossEncoder) => {
                let missing = || PlanError::Missing { student: student.name.clone(), key: "negatives" };
                return self.cross_encoder_signal(base, negatives.ok_or_else(missing)?);
            }
            None => {}
        }
        let vectors = match phase.signal.as_str() {
            "teacher" => self.with_sentences(base, phase, &base.teacher, &[]),
            name => {
                let asked = self.asked(student, earlier)?.filter(|_| student.on.as_deref() == Some(name));
                let signal = asked.map_or_else(|| head(student, name, earlier), Ok)?;
                self.with_sentences(base, phase, &signal.vectors, &signal.maps)
            }
        };
        Ok(Signal::Vectors(vectors))
    }

    /// Keeps what measurements have said so far.
    fn note(&mut self, student: &StudentSpec, index: usize, race: &Race) {
        let Some(metric) = self.context.spec.evaluate.metrics.first() else { return };
        let said = race.says(metric).into_iter();
        let text = |text| format!("student {}, phase {}: {text}", student.name, index + 1);
        self.plan.decisions.extend(said.map(text));
        if let Some(step) = race.best_step() {
            self.plan.best.insert(phase_seed(self.context.spec, student, index), step);
        }
    }

    /// The first metric's mean over the dev sets, of a student in training; nothing until it is known.
    fn dev_figure(
        &mut self,
        base: &Base,
        student: &StudentSpec,
        inputs: &VectorSet,
        trained: &ArtifactId,
    ) -> Result<Option<f64>, PlanError> {
        let spec = self.context.spec;
        let vectors = self.student_vectors(base, student, inputs, trained);
        let run = self.search_dense(base, &vectors, None, &spec.sets.dev, spec.evaluate.depth);
        let metric = spec.evaluate.metrics[0].clone();
        let evaluation = self.add(Task::Evaluate {
            run,
            queries: base.queries.clone(),
            passages: base.passages.clone(),
            sets: spec.sets.dev.clone(),
            metrics: vec![metric.clone()],
        });
        let Some(meta) = (self.context.meta)(evaluation.task) else { return Ok(None) };
        let of_set = |set: &String| meta["means"][set][&metric].as_f64().filter(|mean| mean.is_finite());
        let means: Option<Vec<f64>> = spec.sets.dev.iter().map(of_set).collect();
        let means = means.filter(|means| !means.is_empty()).ok_or(PlanError::NoFigure { metric })?;
        Ok(Some(means.iter().sum::<f64>() / means.len() as f64))
    }

    /// Negatives from the lists of a student in training.
    fn refresh(
        &mut self,
        base: &Base,
        student: &StudentSpec,
        inputs: &VectorSet,
        part: &ArtifactId,
        seed: u64,
    ) -> Result<Mined, PlanError> {
        let spec = self.context.spec;
        let vectors = self.student_vectors(base, student, inputs, part);
        let run = self.search_dense(base, &vectors, None, &spec.sets.train, spec.mining.depth);
        self.mine_runs(base, vec![run], false, seed)
    }

    /// The student whose passages an encoder of questions asks; none for one that asks the teacher's, and for all others.
    fn asked<'t>(
        &self,
        student: &StudentSpec,
        earlier: &'t BTreeMap<&str, Trained>,
    ) -> Result<Option<&'t Trained>, PlanError> {
        let Some(on) = student.on.as_deref().filter(|on| student.only_asks() && *on != "teacher") else {
            return Ok(None);
        };
        let unknown = || PlanError::UnknownHead { student: student.name.clone(), name: on.to_owned() };
        earlier.get(on).filter(|asked| asked.kind != StudentKind::Encoder).map(Some).ok_or_else(unknown)
    }

    /// The MLP whose vectors a head or codes read; none where they read the teacher's. A linear head needs no vectors of
    /// its own: its map is the first that learns.
    fn input_head<'t>(
        &self,
        student: &StudentSpec,
        earlier: &'t BTreeMap<&str, Trained>,
    ) -> Result<Option<&'t Trained>, PlanError> {
        if student.kind == StudentKind::Encoder {
            return Ok(None);
        }
        match self.spec_of(student.on.as_deref()).filter(|on| on.hidden.is_some()) {
            Some(on) => head(student, &on.name, earlier).map(Some),
            None => Ok(None),
        }
    }

    /// The student of some name.
    pub(super) fn spec_of(&self, name: Option<&str>) -> Option<&StudentSpec> {
        self.context.spec.student.iter().find(|student| Some(student.name.as_str()) == name)
    }

    /// The vectors that a head or codes read, or those of the passages that an encoder of questions asks.
    pub(super) fn inputs(
        &self,
        base: &Base,
        student: &StudentSpec,
        earlier: &BTreeMap<&str, Trained>,
    ) -> Result<VectorSet, PlanError> {
        if student.only_asks() {
            let asked = self.asked(student, earlier)?.map_or(&base.teacher, |asked| &asked.vectors);
            return Ok(VectorSet { passages: asked.passages.clone(), ..VectorSet::default() });
        }
        let head = self.input_head(student, earlier)?;
        Ok(head.map_or_else(|| base.teacher.clone(), |head| head.vectors.clone()))
    }

    /// Vectors with those of the sentences, where a phase reads them: the teacher's, or what `maps` make of them.
    fn with_sentences(
        &mut self,
        base: &Base,
        phase: &PhaseSpec,
        vectors: &VectorSet,
        maps: &[ArtifactId],
    ) -> VectorSet {
        let mut vectors = vectors.clone();
        if phase.sentences {
            let normalize = self.normalizes();
            let mut project = |of: ArtifactId, map: &ArtifactId| {
                self.add(Task::Project {
                    student: map.clone(),
                    vectors: of,
                    normalize,
                    fingerprint: base.fingerprint.clone(),
                })
            };
            let through = |of: &ArtifactId| maps.iter().fold(of.clone(), &mut project);
            vectors.sentences = base.of_sentences.iter().map(through).collect();
        }
        vectors
    }

    pub(super) fn start(
        &self,
        student: &StudentSpec,
        input: u32,
        pca: Option<&ArtifactId>,
        earlier: &BTreeMap<&str, Trained>,
    ) -> Result<StudentStart, PlanError> {
        let missing = |key| PlanError::Missing { student: student.name.clone(), key };
        let checkpoint = self.context.inputs.checkpoints.get(&student.name);
        let init = match student.init.as_str() {
            // Its weights are replaced.
            _ if checkpoint.is_some() => ProjectionStart::Random,
            // A narrow MLP has no room for a linear map, and an encoder without a projection has nothing to start.
            _ if student.is_narrow() || student.dim.is_none() => ProjectionStart::Random,
            "random" => ProjectionStart::Random,
            "pca" => ProjectionStart::Pca { pca: pca.cloned().ok_or_else(|| missing("pca"))? },
            name => {
                let asked = self.asked(student, earlier)?.filter(|_| student.on.as_deref() == Some(name));
                ProjectionStart::Head {
                    student: asked.map_or_else(|| head(student, name, earlier), Ok)?.last.clone(),
                }
            }
        };
        let start = match student.kind {
            StudentKind::Head => {
                let dim = student.dim.ok_or_else(|| missing("dim"))?;
                StudentStart::Head { input, dim, hidden: student.hidden, init }
            }
            StudentKind::Quantised => return Err(missing("dim")),
            StudentKind::Encoder => StudentStart::Encoder {
                files: self.model_files(student).clone(),
                layers: student.layers.clone(),
                pooling: self.context.spec.student_pooling(self.context.inputs, student),
                dim: student.dim,
                init,
            },
        };
        Ok(match checkpoint {
            Some(checkpoint) => StudentStart::Warm { shape: Box::new(start), checkpoint: checkpoint.clone() },
            None => start,
        })
    }

    pub(super) fn model_files(&self, student: &StudentSpec) -> &ModelFiles {
        let inputs = self.context.inputs;
        &inputs.students.get(&student.name).unwrap_or(&inputs.teacher).files
    }

    /// The training rows of a phase. The seed knows the phase but not the student, so that students with the
    /// same parameters see the same rows and share the artifact.
    pub(super) fn order(
        &mut self,
        base: &Base,
        student: &StudentSpec,
        index: usize,
        phase: &PhaseSpec,
        negatives: Option<&ArtifactId>,
        span: Option<Span>,
    ) -> Result<ArtifactId, PlanError> {
        let spec = self.context.spec;
        let length = match (phase.steps, phase.epochs) {
            (Some(steps), _) => PhaseLength::Steps(steps),
            (None, Some(epochs)) => PhaseLength::Epochs(epochs),
            (None, None) => {
                return Err(PlanError::Missing { student: student.name.clone(), key: "steps or epochs" });
            }
        };
        let tokens = (student.kind == StudentKind::Encoder).then(|| OrderTokens {
            tokenizer: self.model_files(student).tokenizer(),
            query: spec.student_input(self.context.inputs, student, Side::Query),
            passage: spec.student_input(self.context.inputs, student, Side::Passage),
        });
        let mined = mines(phase);
        Ok(self.add(Task::Order {
            data: phase.data,
            queries: base.queries.clone(),
            passages: base.passages.clone(),
            sets: spec.sets.train.clone(),
            negatives: negatives.filter(|_| mined).cloned(),
            negatives_per_row: if mined { phase.negatives } else { 0 },
            corpus_samples: phase.corpus_samples,
            given_scores: phase.pair_scores() == Some(PairScores::Given),
            unlabelled: (phase.unlabelled * f64::from(phase.batch)).round() as u32,
            sentences: base.sentences.clone().filter(|_| phase.sentences),
            batch: phase.batch,
            length,
            span,
            tokens,
            only_questions: student.only_asks(),
            seed: derived_seed(spec.seed, "order", index),
        }))
    }

    pub(super) fn student_vectors(
        &mut self,
        base: &Base,
        student: &StudentSpec,
        read: &VectorSet,
        last: &ArtifactId,
    ) -> VectorSet {
        let spec = self.context.spec;
        let inputs = self.context.inputs;
        let normalize = self.normalizes();
        match student.kind {
            StudentKind::Head | StudentKind::Quantised => {
                let mut project = |vectors: &ArtifactId| {
                    self.add(Task::Project {
                        student: last.clone(),
                        vectors: vectors.clone(),
                        normalize,
                        fingerprint: base.fingerprint.clone(),
                    })
                };
                let (queries, sentences) = (read.queries.iter().map(&mut project).collect(), Vec::new());
                if student.kind == StudentKind::Head {
                    let passages = read.passages.iter().map(&mut project).collect();
                    return VectorSet { queries, passages, sentences };
                }
                let passages = self.quantize(last, &read.passages, normalize, &base.fingerprint);
                VectorSet { queries, passages, sentences }
            }
            StudentKind::Encoder => {
                let encoder = Encoder::Student { student: last.clone() };
                let query = spec.student_input(inputs, student, Side::Query);
                let queries = (&encoder, &base.queries, query);
                if student.only_asks() {
                    let queries = self.embed_side(Side::Query, queries, &base.fingerprint);
                    return VectorSet { queries, ..read.clone() };
                }
                let passage = spec.student_input(inputs, student, Side::Passage);
                self.embed(queries, (&encoder, &base.passages, passage), &base.fingerprint)
            }
        }
    }

    /// A folder of layers; `below` is the MLP that codes stand on.
    pub(super) fn export_student(
        &mut self,
        student: &StudentSpec,
        last: &ArtifactId,
        below: Option<ArtifactId>,
        asked: Option<&Trained>,
    ) -> ArtifactId {
        let spec = self.context.spec;
        let inputs = self.context.inputs;
        // A head stands on the teacher and reads what the teacher reads.
        let own = (student.kind == StudentKind::Encoder).then_some(student);
        let base = own.map_or_else(|| self.teacher_files(Side::Passage), |student| self.model_files(student));
        let input = |side| match own {
            Some(student) if side == Side::Query || !student.only_asks() => {
                spec.student_input(inputs, student, side)
            }
            _ => spec.teacher_input(inputs, side),
        };
        let pooling = match own {
            Some(student) => spec.student_pooling(inputs, student),
            None => spec.teacher_pooling(inputs, Side::Passage),
        };
        // Codes are no layers: what asks them is a folder for questions alone.
        let head = asked.map(|asked| (asked.kind == StudentKind::Head).then(|| asked.last.clone()));
        let passage_tower = match head {
            _ if !student.only_asks() => None,
            Some(None) => None,
            head => {
                let files = self.teacher_files(Side::Passage).clone();
                let pooling = spec.teacher_pooling(inputs, Side::Passage);
                Some(PassageTower { base: BaseEncoder { files, pooling }, head: head.flatten() })
            }
        };
        self.add(Task::ExportStudent {
            student: last.clone(),
            below,
            base: base.clone(),
            query_base: inputs.teacher_query.as_ref().filter(|_| own.is_none()).map(|query| BaseEncoder {
                files: query.files.clone(),
                pooling: spec.teacher_pooling(inputs, Side::Query),
            }),
            passage_tower,
            pooling,
            query: input(Side::Query),
            passage: input(Side::Passage),
            normalize: self.normalizes(),
        })
    }
}

/// The earlier head student of that name.
pub(super) fn head<'t>(
    student: &StudentSpec,
    name: &str,
    earlier: &'t BTreeMap<&str, Trained>,
) -> Result<&'t Trained, PlanError> {
    let unknown = || PlanError::UnknownHead { student: student.name.clone(), name: name.to_owned() };
    earlier.get(name).filter(|trained| trained.kind == StudentKind::Head).ok_or_else(unknown)
}

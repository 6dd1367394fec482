//! The tasks of a job.

use crate::sample;
use retort_common::ids::{Digest, TaskId};
use retort_common::spec::{CodeKind, JobSpec, MiningSource, StudentSpec};
use retort_common::task::{
    ArtifactId, Encoder, QuantizerMethod, Retriever, Side, Signal, Stage, StudentStart, Task,
};
use retort_coordinator::scheduler::plan::{Plan, PlanContext, PlanError, plan};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Plans again and again, each time with every planned task done, until the plan is complete.
pub fn whole_plan(
    spec: &JobSpec,
    folder: &str,
    meta: &dyn Fn(&Task) -> Value,
) -> Result<Vec<Plan>, PlanError> {
    let inputs = match spec.cross_encoder {
        Some(_) => sample::with_cross_encoder(folder),
        None => sample::inputs(folder),
    };
    let job = "job".parse().unwrap();
    let mut done: BTreeMap<TaskId, Value> = BTreeMap::new();
    let mut fingerprint = None;
    let mut plans = Vec::new();
    for _ in 0..10 {
        let made = plan(&PlanContext {
            job: &job,
            spec,
            inputs: &inputs,
            digest: Digest::of(b"spec"),
            fingerprint,
            meta: &|id| done.get(&id),
            stages: &Vec::new,
        })?;
        if made.wants_fingerprint {
            fingerprint = Some("f1");
        }
        done.extend(made.tasks.iter().map(|task| (task.id(), meta(task))));
        let complete = made.complete;
        plans.push(made);
        if complete {
            return Ok(plans);
        }
    }
    panic!("the plan never ends");
}

pub fn last_plan(spec: &JobSpec) -> Vec<Task> {
    whole_plan(spec, "a", &sample::meta).unwrap().pop().unwrap().tasks
}

pub fn ids(tasks: &[Task], keep: impl Fn(&Task) -> bool) -> BTreeSet<TaskId> {
    tasks.iter().filter(|task| keep(task)).map(Task::id).collect()
}

fn is_trained(task: &Task) -> bool {
    matches!(task.stage(), Stage::Train | Stage::Mine)
}

#[test]
fn plans_grow_and_keep_what_they_had() {
    let plans = whole_plan(&sample::full("j", 1), "a", &sample::meta).unwrap();
    assert!(plans.len() >= 4, "{}", plans.len());
    assert_eq!(plans[0].tasks.len(), 1);
    for pair in plans.windows(2) {
        let (before, after) = (ids(&pair[0].tasks, |_| true), ids(&pair[1].tasks, |_| true));
        assert!(before.is_subset(&after));
    }
    assert_eq!(plans.iter().filter(|plan| plan.wants_fingerprint).count(), 1);
}

#[test]
fn every_need_is_an_earlier_output_and_no_task_comes_twice() {
    for spec in [sample::small("j"), sample::full("j", 1)] {
        let mut made = BTreeSet::new();
        for task in last_plan(&spec) {
            for need in task.needs() {
                assert!(made.contains(&need), "{task:?} needs {need}");
            }
            assert!(made.insert(task.output()), "twice: {task:?}");
        }
    }
}

#[test]
fn the_same_spec_gives_the_same_tasks_wherever_the_files_lie() {
    let spec = sample::full("j", 1);
    let again = whole_plan(&spec, "elsewhere", &sample::meta).unwrap().pop().unwrap().tasks;
    assert_eq!(ids(&last_plan(&spec), |_| true), ids(&again, |_| true));
}

#[test]
fn a_seed_changes_only_what_is_trained() {
    let (one, two) = (last_plan(&sample::full("j", 1)), last_plan(&sample::full("j", 2)));
    assert!(ids(&one, is_trained).is_disjoint(&ids(&two, is_trained)));
    let base = |task: &Task| match task {
        Task::Embed { encoder, .. } => matches!(encoder, retort_common::task::Encoder::Files { .. }),
        // A quantised student is trained, too.
        Task::FitQuantizer { .. } => false,
        _ => matches!(task.stage(), Stage::Shard | Stage::Fit),
    };
    assert_eq!(ids(&one, base), ids(&two, base));
    assert!(!ids(&one, base).is_empty());
}

#[test]
fn another_fingerprint_changes_float_tasks_only() {
    let tasks = last_plan(&sample::full("j", 1));
    let bound = tasks.iter().filter(|task| task.fingerprint().is_some());
    assert!(bound.clone().all(|task| task.fingerprint() == Some("f1")));
    let free =
        tasks.iter().filter(|task| task.fingerprint().is_none()).map(Task::stage).collect::<BTreeSet<_>>();
    assert!(free.contains(&Stage::Shard) && !free.contains(&Stage::Train) && !free.contains(&Stage::Embed));
    assert!(bound.count() > 0);
}

#[test]
fn the_report_has_all_rows_with_their_bytes() {
    let tasks = last_plan(&sample::full("j", 1));
    let Some(Task::Report { rows, training, negatives, .. }) = tasks.last() else { panic!("no report") };
    let rows: Vec<_> = rows
        .iter()
        .map(|row| (row.name.as_str(), row.kind.as_str(), row.bytes_per_passage, row.variants.len()))
        .collect();
    let expected = [
        ("teacher", "teacher", 32.0, 1),
        ("pca-2", "pca", 8.0, 3),
        ("pca-4", "pca", 16.0, 3),
        ("head", "head", 8.0, 1),
        ("codes", "quantised", 2.0, 1),
        ("small", "encoder", 8.0, 1),
        ("bm25", "bm25", 16.0, 1),
    ];
    assert_eq!(rows, expected);
    assert_eq!(
        training.iter().map(|(name, phases)| (name.as_str(), phases.len())).collect::<Vec<_>>(),
        [("head", 2), ("codes", 0), ("small", 1)]
    );
    assert_eq!(negatives.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["teacher, bm25"]);
}

#[test]
fn a_large_corpus_is_searched_in_groups_and_merged_in_a_tree() {
    let meta = |task: &Task| match task {
        Task::ShardCorpus { .. } => json!({ "rows": 4000, "shards": 300 }),
        task => sample::meta(task),
    };
    let tasks = whole_plan(&sample::small("j"), "a", &meta).unwrap().pop().unwrap().tasks;
    let merges: Vec<_> = tasks
        .iter()
        .filter_map(|task| match task {
            Task::Merge { runs, .. } => Some(runs.len()),
            _ => None,
        })
        .collect();
    // Five rows' variants with 19 groups each: 16 + 3 runs, and the two results.
    assert_eq!(merges.iter().filter(|runs| **runs == 16).count(), 5);
    assert_eq!(merges.iter().filter(|runs| **runs == 2).count(), 5);
    assert_eq!(merges.len(), 15);
}

#[test]
fn quantised_baselines_have_their_rows_on_teacher_and_students() {
    let mut spec = sample::full("j", 1);
    spec.baselines = serde_json::from_value(json!({
        "on": ["teacher", "head"], "pq": [2], "pca_opq": ["2x1"], "residual": [3], "int8": true, "binary": true,
    }))
    .unwrap();
    retort_common::spec::check(&spec).unwrap();
    let meta = |task: &Task| match task {
        Task::ShardCorpus { .. } => json!({ "rows": 400, "shards": sample::SHARDS }),
        task => sample::meta(task),
    };
    let tasks = whole_plan(&spec, "a", &meta).unwrap().pop().unwrap().tasks;
    let Some(Task::Report { rows, .. }) = tasks.last() else { panic!("no report") };
    // Names of rows and variants are the tags of TREC runs, whose columns spaces part.
    let mut variants = rows.iter().flat_map(|row| &row.variants);
    assert!(variants.all(|variant| !variant.name.contains(char::is_whitespace)));
    let rows: Vec<_> = rows
        .iter()
        .map(|row| (row.name.as_str(), row.kind.as_str(), row.bytes_per_passage, row.variants.len()))
        .collect();
    let expected = [
        ("teacher", "teacher", 32.0, 1),
        ("pca-2", "pca", 8.0, 3),
        ("pq-2", "pq", 2.0, 2),
        ("pca2-opq1", "opq", 1.0, 3),
        ("residual-3", "residual", 3.0, 2),
        ("int8", "int8", 8.0, 1),
        ("binary", "binary", 1.0, 2),
        ("head", "head", 8.0, 1),
        ("head-pq-2", "pq", 2.0, 2),
        ("head-pca2-opq1", "opq", 1.0, 3),
        ("head-residual-3", "residual", 3.0, 2),
        ("head-int8", "int8", 2.0, 1),
        ("head-binary", "binary", 1.0, 2),
        ("codes", "quantised", 2.0, 1),
        ("small", "encoder", 8.0, 1),
        ("bm25", "bm25", 16.0, 1),
    ];
    assert_eq!(rows, expected);
    // What codes of passages stand for at unit length, of centred PCA alone.
    let at_unit_length = |fitted: &Task| {
        let by =
            |task: &&Task| matches!(task, Task::Quantize { quantizer, .. } if *quantizer == fitted.output());
        let mut quantized = tasks.iter().filter(by).peekable();
        let any = quantized.peek().is_some();
        assert!(quantized.all(|task| matches!(task, Task::Quantize { normalize: true, .. })));
        any
    };
    for task in &tasks {
        let Task::FitBaseline { reduce, method, .. } = task else { continue };
        let has_codebooks =
            matches!(method, QuantizerMethod::Product { .. } | QuantizerMethod::Residual { .. });
        let renormalizes = reduce.as_ref().is_some_and(|reduce| reduce.renormalize);
        assert_eq!(at_unit_length(task), has_codebooks && !renormalizes, "{task:?}");
    }
    spec.baselines.pq = vec![3];
    let error = whole_plan(&spec, "a", &meta).unwrap_err().to_string();
    assert!(error.contains("pq-3: 3 sub-quantisers do not divide 8 dimensions"), "{error}");
    spec.baselines.pq = vec![2];
    let error = whole_plan(&spec, "a", &sample::meta).unwrap_err().to_string();
    assert!(error.contains("12 passages cannot train 256 centroids"), "{error}");
}

#[test]
fn codes_with_phases_are_trained_from_the_fitted_quantiser() {
    let mut spec = sample::full("j", 1);
    spec.student[1].phase = vec![spec.student[0].phase[0].clone()];
    retort_common::spec::check(&spec).unwrap();
    let tasks = last_plan(&spec);
    let quantizer = tasks.iter().find(|task| matches!(task, Task::FitQuantizer { .. })).unwrap().output();
    let starts = |task: &&Task| matches!(task, Task::Train { start: StudentStart::Quantised { .. }, .. });
    let train = tasks.iter().find(starts).unwrap();
    let Task::Train { start: StudentStart::Quantised { head: Some(head), quantizer: from, input }, .. } =
        train
    else {
        panic!("no head: {train:?}")
    };
    assert_eq!((from, *input), (&quantizer, 8));
    assert!(tasks.iter().any(|task| task.output() == *head));
    // Questions go through the student's map, passages through its codes.
    let student = train.output();
    let through = |task: &&Task| match task {
        Task::Project { student: by, .. } | Task::Quantize { quantizer: by, .. } => *by == student,
        _ => false,
    };
    assert_eq!(tasks.iter().filter(through).count(), 1 + sample::SHARDS as usize);
    let Some(Task::Report { rows, training, .. }) = tasks.last() else { panic!("no report") };
    let row = rows.iter().find(|row| row.name == "codes").unwrap();
    assert_eq!((row.kind.as_str(), row.bytes_per_passage), ("quantised", 2.0));
    assert!(training.contains(&("codes".to_owned(), vec![student])));
}

#[test]
fn signs_are_scanned_as_they_lie_by_questions_as_they_are() {
    for trained in [false, true] {
        let mut spec = sample::full("j", 1);
        spec.student.truncate(2);
        spec.student[0].dim = Some(8);
        (spec.student[1].code, spec.student[1].bytes) = (Some(CodeKind::Binary), Some(1));
        if trained {
            spec.student[1].phase = vec![spec.student[0].phase[0].clone()];
        }
        retort_common::spec::check(&spec).unwrap();
        let tasks = last_plan(&spec);
        assert!(tasks.iter().any(|task| matches!(task, Task::FitQuantizer { unit: true, .. })));
        let scan = tasks.iter().find_map(|task| match task {
            Task::Search {
                retriever: Retriever::Codes { queries, quantizer, codes, hamming, .. }, ..
            } => Some((queries, quantizer, codes, hamming)),
            _ => None,
        });
        let (queries, quantizer, codes, hamming) = scan.unwrap();
        assert_eq!(
            (quantizer.kind.as_str(), hamming),
            (if trained { "student" } else { "quantizer" }, &false)
        );
        let made = |artifact: &ArtifactId| tasks.iter().find(|task| task.output() == *artifact).unwrap();
        for shard in codes {
            assert!(matches!(made(shard), Task::Quantize { quantizer: by, .. } if by == quantizer));
        }
        // The questions of the head, or those of the student's own map.
        let Task::Project { student, .. } = made(&queries[0]) else { panic!("questions are no vectors") };
        assert_eq!(student == quantizer, trained);
        let Some(Task::Report { rows, .. }) = tasks.last() else { panic!("no report") };
        let row = rows.iter().find(|row| row.name == "codes").unwrap();
        assert_eq!((row.kind.as_str(), row.bytes_per_passage), ("quantised", 1.0));
    }
}

#[test]
fn codes_on_an_mlp_read_its_vectors() {
    let mut spec = sample::full("j", 1);
    spec.student[0].hidden = Some(3);
    spec.student[1].phase = vec![spec.student[0].phase[0].clone()];
    spec.student.truncate(2);
    retort_common::spec::check(&spec).unwrap();
    let tasks = last_plan(&spec);
    let trained = tasks.iter().find_map(|task| match task {
        Task::Train { start: StudentStart::Quantised { head, input, .. }, inputs, .. } => {
            Some((head.clone(), *input, inputs.clone().unwrap()))
        }
        _ => None,
    });
    let (head, input, inputs) = trained.unwrap();
    assert_eq!((head, input), (None, 2));
    let projected = |artifact: &ArtifactId| {
        let by = |task: &&Task| matches!(task, Task::Project { .. }) && task.output() == *artifact;
        tasks.iter().any(|task| by(&task))
    };
    assert!(inputs.queries.iter().chain(&inputs.passages).all(projected));
}

#[test]
fn an_encoder_of_questions_asks_the_passages_of_what_it_stands_on() {
    let mut spec = sample::full("j", 1);
    spec.student[2].on = Some("codes".to_owned());
    retort_common::spec::check(&spec).unwrap();
    let tasks = last_plan(&spec);
    let of_codes: BTreeSet<_> =
        tasks.iter().filter(|task| matches!(task, Task::Quantize { .. })).map(Task::output).collect();
    let encoders = |task: &&Task| matches!(task, Task::Train { start: StudentStart::Encoder { .. }, .. });
    let Some(Task::Train { order, inputs: Some(inputs), .. }) = tasks.iter().find(encoders) else {
        panic!("it is not trained beside passages")
    };
    assert!(inputs.queries.is_empty());
    assert_eq!(inputs.passages.iter().cloned().collect::<BTreeSet<_>>(), of_codes);
    let order = tasks.iter().find(|task| task.output() == *order).unwrap();
    assert!(matches!(order, Task::Order { only_questions: true, .. }));
    // None of its passages is embedded: only the questions' shard.
    let embeds = |task: &&Task| matches!(task, Task::Embed { encoder: Encoder::Student { .. }, .. });
    let embedded: Vec<_> = tasks.iter().filter(embeds).collect();
    assert!(matches!(embedded[..], [Task::Embed { side: Side::Query, .. }]), "{embedded:?}");
    let Some(Task::Report { rows, .. }) = tasks.last() else { panic!("no report") };
    let row = rows.iter().find(|row| row.name == "small").unwrap();
    assert_eq!((row.kind.as_str(), row.bytes_per_passage), ("encoder", 2.0));
}

#[test]
fn sentences_are_drawn_embedded_and_learnt_from_where_a_phase_asks() {
    let mut spec = sample::full("j", 1);
    spec.corpus.sentences = 50;
    let drawn = |task: &Task| matches!(task, Task::ShardSentences { .. });
    assert!(!last_plan(&spec).iter().any(drawn));
    let phase = &mut spec.student[0].phase[0];
    (phase.sentences, phase.unlabelled, phase.batch) = (true, 0.5, 8);
    phase.loss.retain(|loss| loss.kind == retort_common::spec::LossKind::Kl);
    let tasks = last_plan(&spec);
    let table = tasks.iter().find(|task| drawn(task)).unwrap().output();
    let embedded: Vec<_> = tasks
        .iter()
        .filter(|task| matches!(task, Task::Embed { texts, .. } if texts.artifact == table))
        .map(Task::output)
        .collect();
    assert_eq!(embedded.len(), 2);
    let mut trained = 0;
    for task in &tasks {
        let Task::Train { order, inputs, signal, .. } = task else { continue };
        let order = tasks.iter().find(|task| task.output() == *order).unwrap();
        let Task::Order { sentences, .. } = order else { panic!("no order: {order:?}") };
        let asks = sentences.as_ref().is_some_and(|sentences| sentences.artifact == table);
        trained += usize::from(asks);
        let own = if asks { embedded.clone() } else { Vec::new() };
        let Signal::Vectors(signal) = signal else { panic!("no vectors: {signal:?}") };
        assert_eq!(signal.sentences, own);
        assert!(inputs.as_ref().is_none_or(|inputs| inputs.sentences == own));
    }
    assert_eq!(trained, 1);
}

#[test]
fn students_share_what_they_have_in_common() {
    let spec = sample::full("j", 1);
    let count = |spec: &JobSpec| {
        let tasks = last_plan(spec);
        let of =
            |stage| tasks.iter().filter(|task| task.stage() == stage).map(Task::id).collect::<BTreeSet<_>>();
        let orders = tasks.iter().filter(|task| matches!(task, Task::Order { .. })).count();
        let Some(Task::Report { rows, .. }) = tasks.last() else { panic!("no report") };
        (orders, of(Stage::Train), rows.len())
    };
    let (orders, trained, rows) = count(&spec);
    let with = |change: &dyn Fn(&mut StudentSpec)| {
        let mut spec = spec.clone();
        let mut twin = spec.student[0].clone();
        assert_eq!(twin.phase.len(), 2);
        twin.name = "twin".to_owned();
        change(&mut twin);
        spec.student.insert(1, twin);
        count(&spec)
    };
    let (twin_orders, twin_trained, twin_rows) = with(&|_| ());
    assert_eq!((twin_orders, &twin_trained), (orders, &trained), "one training for both");
    assert!(twin_rows > rows, "a row of its own");
    let (_, more, _) = with(&|twin| twin.phase[1].learning_rate *= 2.0);
    assert!(trained.is_subset(&more) && more.len() == trained.len() + 1, "the first phase is shared");
    let (more_orders, more, _) = with(&|twin| twin.phase[0].learning_rate *= 2.0);
    assert_eq!((more_orders, more.len()), (orders, trained.len() + 2), "the rows are shared");
}

#[test]
fn what_cannot_be_planned_says_why() {
    let mut spec = sample::small("j");
    spec.baselines.pca = vec![9];
    let error = whole_plan(&spec, "a", &sample::meta).unwrap_err();
    assert_eq!(error, PlanError::PcaDim { dim: 9, teacher: 8 });
    let mut spec = sample::full("j", 1);
    spec.student[2].phase[0].signal = "nobody".to_owned();
    assert!(matches!(whole_plan(&spec, "a", &sample::meta), Err(PlanError::UnknownHead { .. })));
    let empty = |_: &Task| json!({ "rows": 0, "shards": 0 });
    assert!(matches!(whole_plan(&sample::small("j"), "a", &empty), Err(PlanError::Empty { .. })));
    let torn = |_: &Task| json!({ "rows": "many" });
    assert!(matches!(whole_plan(&sample::small("j"), "a", &torn), Err(PlanError::Meta { .. })));
    let huge = |_: &Task| json!({ "rows": 1, "shards": 1u64 << 40 });
    assert!(matches!(whole_plan(&sample::small("j"), "a", &huge), Err(PlanError::Meta { .. })));
}

#[test]
fn a_refreshed_phase_is_trained_in_parts() {
    let mut spec = sample::full("j", 1);
    let phase = &mut spec.student[0].phase[1];
    (phase.steps, phase.epochs, phase.refresh_every) = (Some(10), None, Some(3));
    retort_common::spec::check(&spec).unwrap();
    let tasks = last_plan(&spec);
    let trains: Vec<_> = tasks
        .iter()
        .filter_map(|task| match task {
            Task::Train { start, order, span: Some(span), keeps_state, .. } => {
                Some((task.output(), start, order, span, *keeps_state))
            }
            _ => None,
        })
        .collect();
    let spans: Vec<_> =
        trains.iter().map(|(.., span, keeps)| (span.first, span.end, span.total, *keeps)).collect();
    assert_eq!(spans, [(0, 3, 10, true), (3, 6, 10, true), (6, 9, 10, true), (9, 10, 10, false)]);
    for pair in trains.windows(2) {
        assert_eq!(*pair[1].1, StudentStart::Continue { student: pair[0].0.clone() });
    }
    // What a task needs, and what that needs, and so on.
    let depends = |on: &ArtifactId, task: &ArtifactId| {
        let mut open = vec![task.clone()];
        while let Some(next) = open.pop() {
            if next == *on {
                return true;
            }
            open.extend(tasks.iter().filter(|task| task.output() == next).flat_map(Task::needs));
        }
        false
    };
    // The rows of part k + 2 wait for the student of part k, but not for that of part k + 1.
    for (part, (.., order, _, _)) in trains.iter().enumerate() {
        for (earlier, (student, ..)) in trains.iter().enumerate() {
            assert_eq!(
                depends(student, order),
                earlier + 2 <= part,
                "rows of part {part}, student of {earlier}"
            );
        }
    }
    let Some(Task::Report { negatives, training, .. }) = tasks.last() else { panic!("no report") };
    let names: Vec<_> = negatives.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["teacher, bm25", "head at step 3", "head at step 6"]);
    assert_eq!(training[0].1.len(), 2);
}

#[test]
fn negatives_come_from_an_earlier_student() {
    let mut spec = sample::full("j", 1);
    let mut second = spec.student[0].clone();
    second.name = "second".to_owned();
    second.phase[1].negatives_from =
        Some(vec![MiningSource::Teacher, MiningSource::Student("head".to_owned())]);
    spec.student.insert(1, second);
    retort_common::spec::check(&spec).unwrap();
    let tasks = last_plan(&spec);
    let mined: Vec<_> = tasks
        .iter()
        .filter_map(|task| match task {
            Task::Mine { runs, .. } => Some(runs.len()),
            _ => None,
        })
        .collect();
    assert_eq!(mined, [2, 2]);
    spec.student.swap(0, 1);
    assert!(retort_common::spec::check(&spec).unwrap_err().to_string().contains("before this one"));
}

#[test]
fn how_checkpoints_are_kept_is_no_part_of_a_trainings_name() {
    let names = |change: fn(&mut JobSpec)| {
        let mut spec = sample::full("j", 1);
        change(&mut spec);
        let trains = last_plan(&spec).into_iter().filter(|task| matches!(task, Task::Train { .. }));
        trains.map(|task| task.id()).collect::<Vec<_>>()
    };
    let plain = names(|_| {});
    let kept = names(|spec| {
        let phase = &mut spec.student[0].phase[0];
        (phase.keep_last, phase.checkpoint_every) = (9, 1);
    });
    assert_eq!(plain, kept);
    assert_ne!(plain, names(|spec| spec.student[0].phase[0].batch = 8));
}

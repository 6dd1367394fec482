//! Contradictions between the keys of a spec, found before anything runs.

use super::baselines::row_name;
use super::check_loss::check_loss;
use super::check_signal::check_pair_scores;
use super::cross_encoder::check_cross_encoder;
use super::denoise::check_denoise;
use super::{
    CodeKind, JobSpec, LossKind, MiningSource, PairScores, PhaseData, PhaseSpec, StudentKind, StudentSpec,
    WireSpec,
};
use std::collections::BTreeSet;

/// Keys that contradict each other or a value out of its range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", path.join("."))]
pub struct ContradictionError {
    /// The key, part by part, elements of lists by number.
    pub path: Vec<String>,
    /// What is wrong and what would be right.
    pub message: String,
}

pub(super) type Check = Result<(), ContradictionError>;

/// Most bytes of a passage's code.
const LARGEST_CODE: u32 = 1024;
/// The largest numbers a spec may ask for: beyond them it is a slip, and memory would be taken for it.
const LARGEST_COUNT: u32 = 1 << 20;
const LARGEST_DIM: u32 = 1 << 16;
pub(super) const LARGEST_TOKENS: u32 = 8192;
const MOST_SAMPLES: u32 = 1024;
const MOST_REFRESHES: u32 = 1000;
const MOST_EVALUATIONS: u32 = 1000;
const MOST_WIRE_LEVEL: u32 = 20;

pub(super) fn ensure(holds: bool, path: &[&str], message: impl Into<String>) -> Check {
    if holds {
        return Ok(());
    }
    Err(ContradictionError {
        path: path.iter().map(|part| (*part).to_owned()).collect(),
        message: message.into(),
    })
}

pub(super) fn within(value: u32, low: u32, high: u32, path: &[&str]) -> Check {
    ensure((low..=high).contains(&value), path, format!("{value} is not between {low} and {high}"))
}

/// Checks a spec whose syntax is right.
pub fn check(spec: &JobSpec) -> Check {
    let plain = |text: &str| text.parse::<crate::ids::JobId>().is_ok() && text.len() <= 64;
    ensure(plain(&spec.name), &["name"], "use 1 to 64 letters, digits, '-', '_' or '.'")?;
    within(spec.corpus.rows_per_shard, 1, LARGEST_COUNT, &["corpus", "rows_per_shard"])?;
    within(spec.corpus.sentences, 0, LARGEST_COUNT, &["corpus", "sentences"])?;
    check_sets(spec)?;
    check_teacher(spec)?;
    check_mining(spec)?;
    check_cross_encoder(spec)?;
    let mut names = BTreeSet::from(["teacher".to_owned(), "bm25".to_owned()]);
    names.extend(PairScores::ALL.map(|scores| scores.name().to_owned()));
    check_baselines(spec, &mut names)?;
    ensure(spec.baselines.bm25_k1 >= 0.0, &["baselines", "bm25_k1"], "must not be negative")?;
    ensure(
        (0.0..=1.0).contains(&spec.baselines.bm25_b),
        &["baselines", "bm25_b"],
        "must lie between 0 and 1",
    )?;
    within(spec.evaluate.depth, 1, 10_000, &["evaluate", "depth"])?;
    ensure(
        !spec.evaluate.metrics.is_empty(),
        &["evaluate", "metrics"],
        "name at least one, e.g. \"mrr@10\"",
    )?;
    for metric in &spec.evaluate.metrics {
        check_metric(metric, spec.evaluate.depth)?;
    }
    for (index, student) in spec.student.iter().enumerate() {
        let index = index.to_string();
        let path = ["student", index.as_str()];
        let taken = format!(
            "{:?} is taken, begins with \"pca-\" or is not plain: every row needs a name of its own",
            student.name
        );
        let own =
            plain(&student.name) && !student.name.starts_with("pca-") && names.insert(student.name.clone());
        ensure(own, &[path[0], path[1], "name"], taken)?;
        check_student(spec, student, &path)?;
    }
    Ok(())
}

/// Baselines' numbers and names; which fit the vectors is known when those are.
fn check_baselines(spec: &JobSpec, names: &mut BTreeSet<String>) -> Check {
    let baselines = &spec.baselines;
    let known = |name: &String| name == "teacher" || spec.student.iter().any(|student| student.name == *name);
    for source in &baselines.on {
        let message = format!("{source:?} is neither \"teacher\" nor a student");
        ensure(known(source), &["baselines", "on"], message)?;
    }
    for dim in &baselines.pca {
        within(*dim, 1, LARGEST_DIM, &["baselines", "pca"])?;
    }
    for (key, list) in [("pq", &baselines.pq), ("opq", &baselines.opq)] {
        for bytes in list {
            within(*bytes, 1, LARGEST_DIM, &["baselines", key])?;
        }
    }
    for bytes in &baselines.residual {
        within(*bytes, 1, LARGEST_CODE, &["baselines", "residual"])?;
    }
    for (key, list) in [("pca_pq", &baselines.pca_pq), ("pca_opq", &baselines.pca_opq)] {
        for code in list {
            let path = ["baselines", key];
            within(code.dim, 1, LARGEST_DIM, &path)?;
            let divides = code.bytes > 0 && code.dim.is_multiple_of(code.bytes);
            let message = format!("\"{code}\": {} bytes do not divide {} dimensions", code.bytes, code.dim);
            ensure(divides, &path, message)?;
        }
    }
    for source in &baselines.on {
        for (name, _) in baselines.rows() {
            let name = row_name(source, &name);
            let message = format!("{name:?} is asked for twice");
            ensure(names.insert(name), &["baselines"], message)?;
        }
    }
    Ok(())
}

/// A metric is a name and, for most, a cutoff within the ranked lists: beyond their end it would mislead.
fn check_metric(metric: &str, depth: u32) -> Check {
    let path = ["evaluate", "metrics"];
    let (name, cutoff) = metric.split_once('@').map_or((metric, None), |(name, cutoff)| (name, Some(cutoff)));
    let name = name.split('(').next().unwrap_or(name);
    let known = ["mrr", "ndcg", "recall", "success", "p", "map", "accuracy"];
    let message = format!("{metric:?} is unknown; the names are {}, e.g. \"mrr@10\"", known.join(", "));
    ensure(known.contains(&name), &path, message)?;
    let Some(cutoff) = cutoff else {
        let whole = ["map", "mrr", "ndcg"].contains(&name);
        return ensure(whole, &path, format!("{metric:?} needs a cutoff, e.g. \"{name}@10\""));
    };
    let within = cutoff.parse().is_ok_and(|cutoff: u32| (1..=depth).contains(&cutoff));
    let message = format!("{metric:?} must cut between 1 and evaluate.depth = {depth}");
    ensure(within, &path, message)
}

fn check_teacher(spec: &JobSpec) -> Check {
    let teacher = &spec.teacher;
    let (model, query, passage) = (&teacher.model, &teacher.query_model, &teacher.passage_model);
    let one = model.is_some() && query.is_none() && passage.is_none();
    let two = model.is_none() && query.is_some() && passage.is_some();
    ensure(one || two, &["teacher", "model"], "give `model`, or `query_model` and `passage_model`")?;
    let mut longest = 3;
    for (key, tokens) in
        [("query_max_tokens", teacher.query_max_tokens), ("passage_max_tokens", teacher.passage_max_tokens)]
    {
        let Some(tokens) = tokens else { continue };
        within(tokens, 3, LARGEST_TOKENS, &["teacher", key])?;
        longest = longest.max(tokens);
    }
    let holds_one = "must hold at least the longest text (query_max_tokens, passage_max_tokens)";
    ensure(teacher.batch_tokens >= longest, &["teacher", "batch_tokens"], holds_one)
}

fn check_sets(spec: &JobSpec) -> Check {
    let sets = &spec.sets;
    let mut seen = BTreeSet::new();
    for (key, names) in [("train", &sets.train), ("dev", &sets.dev), ("test", &sets.test)] {
        for name in names {
            let plain = name.parse::<crate::ids::JobId>().is_ok();
            ensure(plain, &["sets", key], format!("{name:?} is no plain file name"))?;
            let twice =
                format!("{name:?} serves two purposes: questions that train or choose must not judge");
            ensure(seen.insert(name), &["sets", key], twice)?;
        }
    }
    ensure(
        !sets.judged().is_empty(),
        &["sets"],
        "name at least one set under dev or test, or nothing can be reported",
    )
}

fn check_mining(spec: &JobSpec) -> Check {
    let mining = &spec.mining;
    within(mining.depth, 1, 10_000, &["mining", "depth"])?;
    within(mining.from_rank, 1, mining.depth, &["mining", "from_rank"])?;
    within(mining.per_query, 1, mining.depth, &["mining", "per_query"])?;
    let named = mining.from.iter().all(|source| !matches!(source, MiningSource::Student(_)));
    let message = "name at least one of \"teacher\", \"bm25\"; a student goes under a phase's negatives_from";
    ensure(!mining.from.is_empty() && named, &["mining", "from"], message)?;
    let window = (mining.depth - mining.from_rank + 1).saturating_mul(mining.from.len() as u32);
    let message = format!("the lists have only {window} ranks from from_rank on: raise `depth`");
    ensure(mining.per_query <= window, &["mining", "per_query"], message)?;
    let finite = mining.ceiling.is_none_or(f64::is_finite);
    ensure(finite, &["mining", "ceiling"], "must be finite")?;
    ensure(mining.margin >= 0.0, &["mining", "margin"], "must not be negative")?;
    ensure((0.0..=1.0).contains(&mining.ratio), &["mining", "ratio"], "must lie between 0 and 1")?;
    check_denoise(mining)
}

fn check_student(spec: &JobSpec, student: &StudentSpec, at: &[&str; 2]) -> Check {
    let key = |name| [at[0], at[1], name];
    match student.kind {
        StudentKind::Head => {
            let encoder_keys = [
                ("layers", student.layers.is_some()),
                ("model", student.model.is_some()),
                ("pooling", student.pooling.is_some()),
                ("query_max_tokens", student.query_max_tokens.is_some()),
                ("passage_max_tokens", student.passage_max_tokens.is_some()),
            ];
            for (name, given) in encoder_keys {
                ensure(
                    !given,
                    &key(name),
                    "goes with kind = \"encoder\"; a head reads the teacher's vectors",
                )?;
            }
            ensure(student.dim.is_some(), &key("name"), "a head needs `dim`")?;
        }
        StudentKind::Encoder => {
            ensure(student.hidden.is_none(), &key("hidden"), "goes with kind = \"head\"")?;
            let layers = student.layers.as_deref().unwrap_or(&[0]);
            ensure(!layers.is_empty(), &key("layers"), "keep at least one layer")?;
            let rising = layers.windows(2).all(|pair| pair[0] < pair[1]);
            ensure(rising, &key("layers"), "numbers must rise: layers keep their order")?;
            check_asked(spec, student, &key("on"))?;
        }
        StudentKind::Quantised => {}
    }
    for (name, tokens) in
        [("query_max_tokens", student.query_max_tokens), ("passage_max_tokens", student.passage_max_tokens)]
    {
        if let Some(tokens) = tokens {
            within(tokens, 3, LARGEST_TOKENS, &key(name))?;
        }
    }
    if let Some(dim) = student.dim {
        within(dim, 1, LARGEST_DIM, &key("dim"))?;
    }
    if let Some(hidden) = student.hidden {
        within(hidden, 1, LARGEST_DIM, &key("hidden"))?;
        let random = student.init == "random" || student.init == "pca";
        let message = "an MLP starts from a head where `hidden` is at least twice its `dim`";
        ensure(random || !student.is_narrow(), &key("init"), message)?;
    }
    let from_head = !["pca", "random"].contains(&student.init.as_str());
    if from_head {
        let dims = |other: &StudentSpec| other.dim == student.dim && other.hidden.is_none();
        let message = "must be \"pca\", \"random\" or an earlier linear head of the same `dim`; for an encoder of questions \
                       also the trained codes that it asks";
        let starts =
            earlier_head(spec, student, &student.init).is_some_and(dims) || starts_as_asked(spec, student);
        ensure(starts, &key("init"), message)?;
    }
    check_quantised(spec, student, at)?;
    ensure(
        student.kind == StudentKind::Quantised || !student.phase.is_empty(),
        &key("name"),
        "a head or an encoder needs at least one [[student.phase]]",
    )?;
    for (number, phase) in student.phase.iter().enumerate() {
        let number = number.to_string();
        check_phase(spec, student, phase, &[at[0], at[1], "phase", &number])?;
    }
    Ok(())
}

/// Whose passages an encoder of questions asks.
fn check_asked(spec: &JobSpec, student: &StudentSpec, at: &[&str]) -> Check {
    let Some(on) = student.on.as_deref().filter(|on| *on != "teacher") else { return Ok(()) };
    let asked = earlier(spec, student, on).filter(|asked| asked.kind != StudentKind::Encoder);
    let message = "must be \"teacher\" or the name of an earlier head or quantised student";
    ensure(asked.is_some(), at, message)?;
    // The teacher's dimensions, like those of an encoder without a projection, are known when it is read.
    let dims = asked.and_then(|asked| coded_dim(spec, asked)).zip(student.dim);
    let message = |(theirs, own)| format!("{on:?} has vectors of {theirs} dimensions, this student of {own}");
    ensure(dims.is_none_or(|(theirs, own)| theirs == own), at, dims.map(message).unwrap_or_default())
}

/// Whether an encoder of questions starts from the questions' map of the codes that it asks, which have one where they
/// were trained on linear maps.
fn starts_as_asked(spec: &JobSpec, student: &StudentSpec) -> bool {
    let asked = student.on.as_deref().filter(|on| student.only_asks() && *on == student.init);
    let codes = asked.and_then(|on| earlier(spec, student, on));
    codes.is_some_and(|codes| {
        let base = codes.on.as_deref().and_then(|on| earlier_head(spec, codes, on));
        let linear = base.is_none_or(|head| head.hidden.is_none());
        let dim = coded_dim(spec, codes);
        let same = dim.is_none_or(|dim| student.dim == Some(dim));
        codes.kind == StudentKind::Quantised && !codes.phase.is_empty() && linear && same
    })
}

/// The dimensions of a head's vectors, or of those that codes stand for; none where they are the teacher's.
fn coded_dim(spec: &JobSpec, student: &StudentSpec) -> Option<u32> {
    match student.on.as_deref() {
        None | Some("teacher") => student.dim,
        Some(on) => earlier_head(spec, student, on).and_then(|head| head.dim),
    }
}

/// The keys of codes, which go with kind = "quantised" alone; an encoder of questions has `on`, too.
fn check_quantised(spec: &JobSpec, student: &StudentSpec, at: &[&str; 2]) -> Check {
    let key = |name| [at[0], at[1], name];
    if student.kind != StudentKind::Quantised {
        for (name, given) in [
            ("on", student.on.is_some() && student.kind != StudentKind::Encoder),
            ("bytes", student.bytes.is_some()),
            ("code", student.code.is_some()),
        ] {
            ensure(!given, &key(name), "goes with kind = \"quantised\"")?;
        }
        return Ok(());
    }
    let others = [
        ("dim", student.dim.is_some()),
        ("hidden", student.hidden.is_some()),
        ("layers", student.layers.is_some()),
        ("model", student.model.is_some()),
        ("pooling", student.pooling.is_some()),
        ("warm_start", student.warm_start.is_some()),
    ];
    for (name, given) in others {
        ensure(!given, &key(name), "does not go with kind = \"quantised\"")?;
    }
    let Some(bytes) = student.bytes else {
        return ensure(false, &key("name"), "a quantised student needs `bytes`");
    };
    within(bytes, 1, LARGEST_CODE, &key("bytes"))?;
    let on = student.on.as_deref().unwrap_or("teacher");
    let head = earlier_head(spec, student, on);
    ensure(
        on == "teacher" || head.is_some(),
        &key("on"),
        "must be \"teacher\" or the name of an earlier head",
    )?;
    // The teacher's dimensions are known when it is read.
    let Some(dim) = head.and_then(|head| head.dim) else { return Ok(()) };
    let (fits, message) = match student.code.unwrap_or_default() {
        CodeKind::Product => {
            let message = "must divide the head's `dim`, or use code = \"residual\"";
            (dim.is_multiple_of(bytes), message.to_owned())
        }
        CodeKind::Residual => return Ok(()),
        CodeKind::Binary => {
            let message = format!(
                "must be the head's `dim` / 8 with code = \"binary\", a bit for each dimension: 8 bytes go with dim = 64, \
                 16 with 128, 32 with 256; {on:?} has dim = {dim}"
            );
            (bytes.checked_mul(8) == Some(dim), message)
        }
    };
    ensure(fits, &key("bytes"), message)
}

/// The student called `name` that stands before `student`.
fn earlier<'a>(spec: &'a JobSpec, student: &StudentSpec, name: &str) -> Option<&'a StudentSpec> {
    spec.student.iter().take_while(|other| other.name != student.name).find(|other| other.name == name)
}

/// The head student called `name` that stands before `student`.
fn earlier_head<'a>(spec: &'a JobSpec, student: &StudentSpec, name: &str) -> Option<&'a StudentSpec> {
    earlier(spec, student, name).filter(|other| other.kind == StudentKind::Head)
}

fn check_phase(spec: &JobSpec, student: &StudentSpec, phase: &PhaseSpec, at: &[&str; 4]) -> Check {
    let key = |name| [at[0], at[1], at[2], at[3], name];
    ensure(phase.steps.is_some() || phase.epochs.is_some(), &key("data"), "give `steps` or `epochs`")?;
    ensure(
        phase.steps.is_none() || phase.epochs.is_none(),
        &key("epochs"),
        "give `steps` or `epochs`, not both",
    )?;
    within(phase.steps.unwrap_or(1), 1, u32::MAX, &key("steps"))?;
    let epochs = phase.epochs.unwrap_or(1.0);
    ensure(epochs > 0.0 && epochs <= 10_000.0, &key("epochs"), "must be above 0 and at most 10000")?;
    within(phase.batch, 1, LARGEST_COUNT, &key("batch"))?;
    within(phase.microbatches, 1, phase.batch, &key("microbatches"))?;
    ensure(
        phase.batch.is_multiple_of(phase.microbatches),
        &key("microbatches"),
        format!("does not divide batch = {}", phase.batch),
    )?;
    let finite = phase.learning_rate > 0.0 && phase.learning_rate.is_finite();
    ensure(finite, &key("learning_rate"), "must be above 0")?;
    ensure((0.0..=1.0).contains(&phase.warmup), &key("warmup"), "is a share of the steps: between 0 and 1")?;
    ensure(phase.weight_decay >= 0.0, &key("weight_decay"), "must not be negative")?;
    ensure(phase.clip_norm >= 0.0, &key("clip_norm"), "must not be negative")?;
    within(phase.checkpoint_every, 1, u32::MAX, &key("checkpoint_every"))?;
    within(phase.keep_last, 1, u32::MAX, &key("keep_last"))?;
    within(phase.wire_level, 0, MOST_WIRE_LEVEL, &key("wire_level"))?;
    let levelled = phase.wire == WireSpec::Bf16 || phase.wire_level == 0;
    ensure(levelled, &key("wire_level"), "goes with wire = \"bf16\"")?;
    check_optimizer(student, phase, at)?;
    check_evaluations(spec, phase, at)?;
    let teacher = phase.signal == "teacher";
    // Codes can be learnt from by what asks them.
    let asked = student.only_asks() && student.on.as_ref() == Some(&phase.signal);
    let signal = earlier(spec, student, &phase.signal);
    let signal = signal.filter(|signal| signal.kind == StudentKind::Head || asked);
    let message = "must be \"teacher\", the name of an earlier head, the quantised student that `on` names, \"given\" or \
                   \"cross-encoder\"";
    let scores = phase.pair_scores().is_some();
    ensure(teacher || scores || signal.is_some(), &key("signal"), message)?;
    check_pair_scores(phase, at)?;
    match phase.data {
        PhaseData::Texts => {
            ensure(phase.negatives == 0, &key("negatives"), "goes with data = \"queries\"")?;
            ensure(phase.corpus_samples == 0, &key("corpus_samples"), "goes with data = \"queries\"")?;
            ensure(phase.unlabelled == 0.0, &key("unlabelled"), "goes with data = \"queries\"")?;
            ensure(
                student.kind == StudentKind::Encoder,
                &key("data"),
                "a head or codes learn from questions: use \"queries\"",
            )?;
            let some = !student.only_asks() || phase.sentences || !spec.sets.train.is_empty();
            ensure(some, &key("data"), "an encoder of questions needs sets.train or sentences = true")?;
        }
        PhaseData::Queries => {
            ensure(!spec.sets.train.is_empty(), &key("data"), "needs at least one set under sets.train")?;
            let most = spec.mining.per_query;
            let message = format!("mining keeps only mining.per_query = {most}");
            ensure(phase.negatives <= most, &key("negatives"), message)?;
            within(phase.corpus_samples, 0, MOST_SAMPLES, &key("corpus_samples"))?;
            let share = (0.0..1.0).contains(&phase.unlabelled);
            ensure(share, &key("unlabelled"), "is a share of the batch: at least 0 and below 1")?;
            let kl = phase.loss.iter().all(|loss| loss.kind == LossKind::Kl);
            let message = "has no positives: only kl can learn from it";
            ensure(phase.unlabelled == 0.0 || kl, &key("unlabelled"), message)?;
        }
    }
    let drawn = !phase.sentences || spec.corpus.sentences > 0;
    ensure(drawn, &key("sentences"), "there are none: give corpus.sentences")?;
    let asked = !phase.sentences || phase.data == PhaseData::Texts || phase.unlabelled > 0.0;
    ensure(asked, &key("sentences"), "goes with data = \"texts\" or with `unlabelled`")?;
    check_sources(spec, student, phase, &key("negatives_from"))?;
    ensure(!phase.loss.is_empty(), &key("loss"), "needs at least one term, e.g. [{ kind = \"kl\" }]")?;
    // The signal's dimensions, where the spec tells them; a student has its own, or those of its model.
    let signal = signal.and_then(|signal| coded_dim(spec, signal));
    for loss in &phase.loss {
        check_loss(student, phase, signal, loss, &key("loss"))?;
    }
    Ok(())
}

/// Decisions from measurements within a phase.
fn check_evaluations(spec: &JobSpec, phase: &PhaseSpec, at: &[&str; 4]) -> Check {
    let refuse = |holds: bool, name: &str, message: String| {
        ensure(holds, &[at[0], at[1], at[2], at[3], name], message)
    };
    let Some(every) = phase.evaluate_every else {
        return refuse(phase.patience.is_none(), "patience", "goes with `evaluate_every`".to_owned());
    };
    let on_dev = !spec.sets.dev.is_empty();
    refuse(on_dev, "evaluate_every", "needs at least one set under sets.dev to choose on".to_owned())?;
    let steps = phase.steps.unwrap_or(0);
    let message = "needs the length of the phase in `steps`, not in `epochs`";
    refuse(steps > 0, "evaluate_every", message.to_owned())?;
    let message = format!("must lie between 1 and steps = {steps}");
    refuse((1..=steps).contains(&every), "evaluate_every", message)?;
    let few = steps.div_ceil(every) <= MOST_EVALUATIONS;
    let message =
        format!("makes more than {MOST_EVALUATIONS} evaluations of {steps} steps; take a larger number");
    refuse(few, "evaluate_every", message)?;
    refuse(phase.patience != Some(0), "patience", "must be at least 1".to_owned())
}

/// The retrievers that a phase's negatives come from.
fn check_sources(spec: &JobSpec, student: &StudentSpec, phase: &PhaseSpec, at: &[&str]) -> Check {
    let Some(sources) = &phase.negatives_from else { return Ok(()) };
    ensure(phase.negatives > 0, at, "goes with `negatives` above 0")?;
    ensure(!sources.is_empty(), at, "name at least one of \"teacher\", \"bm25\" or an earlier student")?;
    for source in sources {
        let MiningSource::Student(name) = source else { continue };
        let earlier = spec.student.iter().take_while(|other| other.name != student.name);
        let known = earlier.into_iter().any(|other| other.name == *name);
        ensure(
            known,
            at,
            format!("{name:?} is neither \"teacher\", \"bm25\" nor a student before this one"),
        )?;
    }
    let mining = &spec.mining;
    let window = (mining.depth - mining.from_rank + 1).saturating_mul(sources.len() as u32);
    let message =
        format!("{} lists of mining.depth = {} hold too few candidates", sources.len(), mining.depth);
    ensure(mining.per_query <= window, at, message)
}

fn check_optimizer(student: &StudentSpec, phase: &PhaseSpec, at: &[&str; 4]) -> Check {
    let share = |value: f64| (0.0..1.0).contains(&value);
    let refuse =
        |holds: bool, name: &str, message: &str| ensure(holds, &[at[0], at[1], at[2], at[3], name], message);
    refuse(share(phase.beta1), "beta1", "must be at least 0 and below 1")?;
    refuse(share(phase.beta2), "beta2", "must be at least 0 and below 1")?;
    refuse(phase.epsilon > 0.0 && phase.epsilon.is_finite(), "epsilon", "must be above 0")?;
    refuse(share(phase.dropout), "dropout", "must be at least 0 and below 1")?;
    let pull = phase.commitment();
    let pulls = pull >= 0.0 && pull.is_finite();
    refuse(pulls, "commitment", "must not be negative")?;
    let coded = student.kind == StudentKind::Quantised;
    refuse(phase.commitment.is_none() || coded, "commitment", "goes with kind = \"quantised\"")?;
    let drops = student.kind == StudentKind::Encoder || student.hidden.is_some();
    refuse(phase.dropout == 0.0 || drops, "dropout", "a linear head has nothing to drop")?;
    let encoder = student.kind == StudentKind::Encoder;
    let message = "goes with kind = \"encoder\"";
    refuse(!phase.freeze_embeddings || encoder, "freeze_embeddings", message)?;
    refuse(phase.freeze_layers == 0 || encoder, "freeze_layers", message)?;
    let Some(every) = phase.refresh_every else { return Ok(()) };
    let mined = phase.data == PhaseData::Queries && phase.negatives > 0;
    refuse(mined, "refresh_every", "needs data = \"queries\" and `negatives` above 0")?;
    let message = "needs the length of the phase in `steps`, not in `epochs`";
    let steps = phase.steps.unwrap_or(0);
    refuse(steps > 0, "refresh_every", message)?;
    let message = format!("must lie between 1 and steps = {steps}");
    refuse((1..=steps).contains(&every), "refresh_every", &message)?;
    let message =
        format!("makes more than {MOST_REFRESHES} refreshes of {steps} steps; take a larger number");
    refuse(steps.div_ceil(every) <= MOST_REFRESHES, "refresh_every", &message)
}

//! TOML to a checked [`JobSpec`]: every error names the file, the line and the nearest valid key.

use super::JobSpec;
use super::check::{ContradictionError, check};
use toml::de::{DeTable, DeValue};

/// Why a spec was refused.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Not TOML, a key that does not exist, or a value of the wrong kind.
    #[error("{file}:{line}: {message}")]
    Syntax {
        /// The spec.
        file: String,
        /// Line, from 1.
        line: usize,
        /// What is wrong and what would be right.
        message: String,
    },
    /// A value given on the command line that does not fit.
    #[error("--set {key}: {message}")]
    Set {
        /// The key as given.
        key: String,
        /// What is wrong.
        message: String,
    },
    /// Keys that contradict each other.
    #[error("{file}:{line}: {contradiction}")]
    Contradiction {
        /// The spec.
        file: String,
        /// Line of the first key concerned, from 1.
        line: usize,
        /// What is wrong and what would be right.
        contradiction: ContradictionError,
    },
}

/// Parses and checks a spec. `sets` are `--set` values by dotted key, applied over the file;
/// elements of arrays go by number or, for students, by name.
pub fn parse(text: &str, file: &str, sets: &[(String, String)]) -> Result<JobSpec, SpecError> {
    // The file is read on its own first where it is complete, so that errors in it carry its lines.
    let written = toml::from_str::<JobSpec>(text).map_err(|error| syntax(text, file, &error));
    let mut spec = if sets.is_empty() { written? } else { with_sets(text, file, sets)? };
    super::corpus::fill_preset(&mut spec);
    check(&spec).map_err(|contradiction| SpecError::Contradiction {
        file: file.to_owned(),
        line: line_of(text, &contradiction.path),
        contradiction,
    })?;
    Ok(spec)
}

fn with_sets(text: &str, file: &str, sets: &[(String, String)]) -> Result<JobSpec, SpecError> {
    let mut table: toml::Table = toml::from_str(text).map_err(|error| syntax(text, file, &error))?;
    for (key, value) in sets {
        // A bare word is a string: `--set name=test` needs no quotes.
        let value = toml::from_str::<toml::Table>(&format!("v = {value}"))
            .ok()
            .and_then(|mut table| table.remove("v"))
            .unwrap_or_else(|| toml::Value::String(value.clone()));
        assign(&mut table, key, value).map_err(|message| SpecError::Set { key: key.clone(), message })?;
    }
    let merged = toml::to_string(&table).expect("a table that was parsed can be written");
    toml::from_str(&merged).map_err(|error| {
        // The error may stem from the file or from a set; its line in the merged text would mislead.
        if let Err(own) = toml::from_str::<JobSpec>(text) {
            return syntax(text, file, &own);
        }
        let keys: Vec<_> = sets.iter().map(|(key, _)| key.as_str()).collect();
        SpecError::Set { key: keys.join(", "), message: explain(error.message()) }
    })
}

fn assign(table: &mut toml::Table, key: &str, value: toml::Value) -> Result<(), String> {
    let (head, rest) = key.split_once('.').map_or((key, None), |(head, rest)| (head, Some(rest)));
    let Some(rest) = rest else {
        table.insert(head.to_owned(), value);
        return Ok(());
    };
    match table.entry(head).or_insert_with(|| toml::Value::Table(toml::Table::new())) {
        toml::Value::Table(inner) => assign(inner, rest, value),
        toml::Value::Array(items) => {
            let (which, rest) =
                rest.split_once('.').ok_or_else(|| format!("{head} is a list: use {head}.NUMBER.KEY"))?;
            let named = |item: &toml::Value| item.get("name").and_then(toml::Value::as_str) == Some(which);
            let position = which.parse().ok().or_else(|| items.iter().position(named));
            match position.and_then(|position: usize| items.get_mut(position)) {
                Some(toml::Value::Table(inner)) => assign(inner, rest, value),
                _ => Err(format!("{head} has no element {which:?}")),
            }
        }
        _ => Err(format!("{head} is not a table")),
    }
}

fn syntax(text: &str, file: &str, error: &toml::de::Error) -> SpecError {
    let start = error.span().map_or(0, |span| span.start);
    SpecError::Syntax { file: file.to_owned(), line: line_at(text, start), message: explain(error.message()) }
}

fn line_at(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
}

/// Adds the nearest valid key to serde's "unknown field" message.
fn explain(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let (Some(unknown), rest) = (quoted.next(), quoted) else { return message.to_owned() };
    if !message.starts_with("unknown field") && !message.starts_with("unknown variant") {
        return message.to_owned();
    }
    let candidates: Vec<_> = rest.collect();
    let best = candidates
        .iter()
        .max_by(|a, b| strsim::jaro_winkler(unknown, a).total_cmp(&strsim::jaro_winkler(unknown, b)));
    let what = if message.starts_with("unknown field") { "key" } else { "value" };
    match best {
        Some(best) => format!(
            "unknown {what} `{unknown}`; did you mean `{best}`? (valid here: {})",
            candidates.join(", ")
        ),
        None => format!("unknown {what} `{unknown}`"),
    }
}

/// The line of the deepest part of `path` that the text has.
fn line_of(text: &str, path: &[String]) -> usize {
    let Ok(root) = DeTable::parse(text) else { return 1 };
    let mut offset = 0;
    let mut table = Some(root.get_ref());
    let mut array: Option<&toml::de::DeArray<'_>> = None;
    for part in path {
        let value = match (table, array) {
            (Some(inner), _) => {
                let Some((key, value)) = inner.iter().find(|(key, _)| key.get_ref() == part) else { break };
                offset = key.span().start;
                value
            }
            (None, Some(items)) => {
                let Some(value) = part.parse().ok().and_then(|index: usize| items.get(index)) else { break };
                offset = value.span().start;
                value
            }
            (None, None) => break,
        };
        (table, array) = match value.get_ref() {
            DeValue::Table(inner) => (Some(inner), None),
            DeValue::Array(items) => (None, Some(items)),
            _ => (None, None),
        };
    }
    line_at(text, offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::CodeKind;

    const GOOD: &str = r#"name = "small"
[corpus]
path = "data"
[sets]
train = ["train"]
dev = ["dev"]
test = ["test"]
[teacher]
model = "teacher"
[[student]]
name = "head-8"
kind = "head"
dim = 8
[[student.phase]]
data = "queries"
steps = 10
batch = 16
negatives = 2
learning_rate = 1e-3
loss = [{ kind = "info_nce", temperature = 0.05 }]
"#;

    const CROSS: &str = "[cross_encoder]\nmodel = \"cross\"\n";

    fn refuse(text: &str, sets: &[(&str, &str)], expected: &[&str]) {
        let sets: Vec<_> = sets.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let message = parse(text, "job.toml", &sets).unwrap_err().to_string();
        for part in expected {
            assert!(message.contains(part), "{message:?} lacks {part:?}");
        }
    }

    #[test]
    fn a_good_spec_parses_and_survives_json() {
        let spec = parse(GOOD, "job.toml", &[]).unwrap();
        let json = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<JobSpec>(&json).unwrap(), spec);
    }

    #[test]
    fn unknown_keys_name_their_line_and_the_nearest_key() {
        refuse(&GOOD.replace("steps = 10", "stesp = 10"), &[], &["job.toml:16:", "did you mean `steps`"]);
        refuse(&GOOD.replace("\"head\"", "\"haed\""), &[], &["job.toml:12:", "did you mean `head`"]);
        refuse("name = [", &[], &["job.toml:1:"]);
    }

    #[test]
    fn contradictions_name_their_line() {
        refuse(&GOOD.replace("dim = 8", "dim = 8\nlayers = [0]"), &[], &["job.toml:14:", "layers"]);
        refuse(&GOOD.replace("steps = 10", "steps = 10\nepochs = 2"), &[], &["job.toml:17:", "epochs"]);
    }

    #[test]
    fn quantised_students_stand_on_the_teacher_or_an_earlier_head() {
        let with = |keys: &str| format!("{GOOD}[[student]]\nname = \"codes\"\nkind = \"quantised\"\n{keys}");
        let spec = parse(&with("on = \"head-8\"\nbytes = 4\n"), "job.toml", &[]).unwrap();
        let student = &spec.student[1];
        assert_eq!((student.on.as_deref(), student.bytes, student.code), (Some("head-8"), Some(4), None));
        for (keys, expected) in [
            ("bytes = 3\non = \"head-8\"\n", "must divide the head's `dim`"),
            ("on = \"head-8\"\n", "needs `bytes`"),
            ("on = \"codes\"\nbytes = 4\n", "the name of an earlier head"),
            ("bytes = 4\ndim = 8\n", "does not go with kind"),
            ("bytes = 0\n", "bytes"),
        ] {
            refuse(&with(keys), &[], &[expected]);
        }
        assert!(parse(&with("bytes = 3\non = \"head-8\"\ncode = \"residual\"\n"), "job.toml", &[]).is_ok());
        let signs = with("on = \"head-8\"\nbytes = 1\ncode = \"binary\"\n");
        assert_eq!(parse(&signs, "job.toml", &[]).unwrap().student[1].code, Some(CodeKind::Binary));
        let pairs = ["`dim` / 8", "16 with 128", "\"head-8\" has dim = 8"];
        refuse(&signs.replace("bytes = 1", "bytes = 2"), &[], &pairs);
        refuse(&signs.replacen("dim = 8", "dim = 12", 1), &[], &["\"head-8\" has dim = 12"]);
        refuse(&signs.replace("\"binary\"", "\"binarry\""), &[], &["did you mean `binary`"]);
        // The teacher's dimensions are known when it is read.
        assert!(parse(&signs.replace("on = \"head-8\"\nbytes = 1", "bytes = 48"), "job.toml", &[]).is_ok());
        refuse(&GOOD.replace("dim = 8", "dim = 8\nbytes = 4"), &[], &["goes with kind = \"quantised\""]);
        let phase = "[[student.phase]]\ndata = \"queries\"\nsteps = 5\nbatch = 4\nlearning_rate = 1e-3\n\
                     loss = [{ kind = \"kl\" }]\n";
        let trained = with(&format!("on = \"head-8\"\nbytes = 4\n{phase}commitment = 0.25\n"));
        let phase = &parse(&trained, "job.toml", &[]).unwrap().student[1].phase[0];
        assert_eq!(phase.commitment(), 0.25);
        refuse(&trained.replace("0.25", "-1.0"), &[], &["commitment", "must not be negative"]);
        // An MLP's vectors are read as they are.
        assert!(parse(&trained.replacen("dim = 8", "dim = 8\nhidden = 4", 1), "job.toml", &[]).is_ok());
        refuse(&GOOD.replace("steps = 10", "steps = 10\ncommitment = 0.5"), &[], &["kind = \"quantised\""]);
        let mixed = GOOD.replace("steps = 10", "steps = 10\nunlabelled = 0.5");
        refuse(&mixed, &[], &["only kl can learn from it"]);
        assert!(parse(&mixed.replace("info_nce", "kl"), "job.toml", &[]).is_ok());
        refuse(&mixed.replace("0.5", "1.0").replace("info_nce", "kl"), &[], &["share of the batch"]);
        let asked = mixed.replace("info_nce", "kl").replace("steps = 10", "steps = 10\nsentences = true");
        refuse(&asked, &[], &["give corpus.sentences"]);
        let drawn = [("corpus.sentences", "100")];
        let pairs = drawn.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert!(parse(&asked, "job.toml", &pairs).is_ok());
        refuse(&GOOD.replace("steps = 10", "steps = 10\nsentences = true"), &drawn, &["with `unlabelled`"]);
    }

    #[test]
    fn a_cross_encoder_looks_at_as_many_candidates_as_there_may_be() {
        let with = |mining: &str, denoise: &str| {
            let tables = format!("{CROSS}[mining]\n{mining}[mining.denoise]\n{denoise}[[student]]");
            GOOD.replace("[[student]]", &tables)
        };
        for (mining, denoise, mined) in [
            ("", "", [32, 32]),
            ("per_query = 20\n", "", [50, 80]),
            ("from_rank = 11\n", "candidates = 60\nbelow = 0.5\n", [40, 60]),
        ] {
            let spec = parse(&with(mining, denoise), "job.toml", &[]).unwrap();
            let denoise = spec.mining.denoise.as_ref().unwrap();
            assert_eq!([1, 2].map(|lists| denoise.mined(&spec.mining, lists)), mined, "{mining}");
        }
        for (denoise, expected) in [
            ("below = 0.0\n", "above 0 and below 1"),
            ("below = nan\n", "above 0 and below 1"),
            ("candidates = 7\n", "7 is not between 8 and 100"),
            ("candidates = 101\n", "101 is not between 8 and 100"),
            ("candidate = 9\n", "did you mean `candidates`"),
        ] {
            refuse(&with("", denoise), &[], &["job.toml:", expected]);
        }
        let alone = with("", "").replace(CROSS, "");
        refuse(&alone, &[], &["job.toml:", "mining.denoise", "needs a table [cross_encoder]"]);
        for (keys, expected) in [
            ("", "missing field `model`"),
            ("model = \"\"\n", "name a cross-encoder"),
            ("model = \"cross\"\nmax_tokens = 4\n", "not between 8 and 8192"),
            ("model = \"cross\"\nmax_token = 9\n", "did you mean `max_tokens`"),
        ] {
            let text = with("", "").replace(CROSS, &format!("[cross_encoder]\n{keys}"));
            refuse(&text, &[], &["job.toml:", expected]);
        }
        // One that nobody asks does no harm.
        let spec = parse(&GOOD.replace("[[student]]", &format!("{CROSS}[[student]]")), "job.toml", &[]);
        assert_eq!(spec.unwrap().cross_encoder.unwrap().max_tokens, 256);
        // Without them nothing of a job's identity changes.
        let plain = serde_json::to_string(&parse(GOOD, "job.toml", &[]).unwrap()).unwrap();
        assert!(!plain.contains("denoise") && !plain.contains("cross_encoder"));
    }

    #[test]
    fn scores_of_pairs_are_learnt_from_by_losses_over_a_questions_own_candidates() {
        let with = |signal: &str, keys: &str, loss: &str| {
            let text = GOOD.replace("[[student]]", &format!("{CROSS}[[student]]"));
            let phase = format!("signal = \"{signal}\"\nsteps = 10\n{keys}");
            let (before, _) = text.rsplit_once("loss = ").unwrap();
            format!("{}loss = [{loss}]\n", before.replace("steps = 10\n", &phase))
        };
        let listed = "{ kind = \"kl\", scope = \"listed\" }";
        for signal in ["given", "cross-encoder"] {
            for loss in [
                listed,
                "{ kind = \"margin_mse\", teacher_scale = 0.1 }, { kind = \"info_nce\" }",
                "{ kind = \"info_nce\", scope = \"listed\", mask_margin = 0.1 }",
            ] {
                let spec = parse(&with(signal, "", loss), "job.toml", &[]).unwrap();
                assert_eq!(spec.student[0].phase[0].pair_scores().unwrap().name(), signal);
            }
            for (keys, loss, words) in [
                ("", "{ kind = \"kl\" }", ["phase.0.loss", "scope = \"listed\""]),
                ("", "{ kind = \"kl\", scope = \"microbatch\" }", ["kl: ", "signal = \"teacher\""]),
                ("", "{ kind = \"info_nce\", mask_ratio = 0.9 }", ["info_nce: ", "scope = \"listed\""]),
                ("", "{ kind = \"embedding_mse\", projection = true }", ["no vectors", "margin_mse"]),
                ("corpus_samples = 2\n", listed, ["phase.0.corpus_samples", "signal = \"teacher\""]),
                ("unlabelled = 0.5\n", listed, ["phase.0.unlabelled", "signal = \"teacher\""]),
            ] {
                refuse(&with(signal, keys, loss), &[], &["job.toml:", words[0], words[1]]);
            }
            let none = with(signal, "", listed).replace("negatives = 2\n", "");
            refuse(&none, &[], &["phase.0.negatives", "at least 1"]);
            let texts = with(signal, "", listed).replace("data = \"queries\"", "data = \"texts\"");
            refuse(&texts, &[], &["phase.0.signal", "use data = \"queries\""]);
            refuse(GOOD, &[("student.0.name", signal)], &["is taken"]);
        }
        let fresh = |signal: &str| with(signal, "refresh_every = 5\n", listed);
        assert!(parse(&fresh("cross-encoder"), "job.toml", &[]).is_ok());
        refuse(&fresh("given"), &[], &["phase.0.refresh_every", "signal = \"cross-encoder\""]);
        let alone = |signal: &str| with(signal, "", listed).replace(CROSS, "");
        assert!(parse(&alone("given"), "job.toml", &[]).is_ok());
        refuse(&alone("cross-encoder"), &[], &["phase.0.signal", "needs a table [cross_encoder]"]);
        refuse(&alone("cross_encoder"), &[], &["phase.0.signal", "\"cross-encoder\""]);
    }

    #[test]
    fn encoders_of_questions_ask_the_teacher_or_an_earlier_student() {
        let codes = "[[student]]\nname = \"codes\"\nkind = \"quantised\"\non = \"head-8\"\nbytes = 4\n";
        let with = |keys: &str, signal: &str| {
            format!(
                "{GOOD}{codes}[[student]]\nname = \"asker\"\nkind = \"encoder\"\n{keys}[[student.phase]]\n\
                 data = \"texts\"\nsignal = \"{signal}\"\nsteps = 5\nbatch = 4\nlearning_rate = 1e-3\n\
                 loss = [{{ kind = \"embedding_cosine\" }}]\n"
            )
        };
        for (keys, signal) in [
            ("on = \"teacher\"\n", "teacher"),
            ("on = \"head-8\"\ndim = 8\n", "head-8"),
            ("on = \"codes\"\ndim = 8\n", "codes"),
        ] {
            let spec = parse(&with(keys, signal), "job.toml", &[]).unwrap();
            assert!(spec.student[2].only_asks() && !spec.student[1].only_asks());
        }
        for (keys, signal, expected) in [
            ("on = \"asker\"\n", "teacher", "an earlier head or quantised student"),
            ("on = \"codes\"\ndim = 4\n", "head-8", "vectors of 8 dimensions, this student of 4"),
            ("on = \"head-8\"\ndim = 8\n", "codes", "the quantised student that `on` names"),
            ("dim = 8\n", "codes", "the quantised student that `on` names"),
            ("on = \"codes\"\ndim = 8\n", "teacher", "another dimension"),
        ] {
            refuse(&with(keys, signal), &[], &[expected]);
        }
        refuse(&with("on = \"teacher\"\n", "teacher"), &[("sets.train", "[]")], &["sets.train"]);
        // Only trained codes have a map of their own to start from.
        let start = with("on = \"codes\"\ndim = 8\ninit = \"codes\"\n", "codes");
        refuse(&start, &[], &["the trained codes that it asks"]);
        let phase = "[[student.phase]]\ndata = \"queries\"\nsteps = 5\nbatch = 4\nlearning_rate = 1e-3\n\
                     loss = [{ kind = \"kl\" }]\n";
        let trained = start.replacen(codes, &format!("{codes}{phase}"), 1);
        assert!(parse(&trained, "job.toml", &[]).is_ok());
        refuse(&trained.replacen("on = \"codes\"", "on = \"head-8\"", 1), &[], &["must be \"pca\""]);
    }

    #[test]
    fn sets_reach_tables_and_students() {
        let sets =
            [("corpus.path", "elsewhere"), ("student.head-8.dim", "4"), ("student.0.phase.0.steps", "7")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()));
        let spec = parse(GOOD, "job.toml", &sets).unwrap();
        assert_eq!((spec.corpus.path.as_str(), spec.student[0].dim), ("elsewhere", Some(4)));
        assert_eq!(spec.student[0].phase[0].steps, Some(7));
        refuse(GOOD, &[("student.other.dim", "4")], &["--set student.other.dim", "no element"]);
        refuse(GOOD, &[("corpus.pth", "x")], &["--set", "did you mean `path`"]);
    }
}

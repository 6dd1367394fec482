//! Finds the files of passages, questions and sets.

use super::{InputError, InputFile, read};
use crate::spec::corpus::Layout;
use crate::spec::{CorpusFormat, CorpusSpec, FileFormat, FileList, JobSpec};
use crate::store::Location;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Endings of a file that may be there compressed.
const ENDINGS: [&str; 3] = ["", ".gz", ".zst"];

/// A file of records.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataFile {
    /// The file.
    pub file: InputFile,
    /// What its records look like; recognised by content without it.
    pub format: Option<FileFormat>,
}

/// The files of a corpus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorpusInputs {
    /// The passages; the files of the sets where passages are the sets' own texts.
    pub passages: Vec<DataFile>,
    /// Questions beside those that the sets bring along.
    pub queries: Vec<DataFile>,
    /// Judgements, questions with answers, triples and such, by set.
    pub sets: BTreeMap<String, Vec<DataFile>>,
}

impl CorpusInputs {
    /// Every file, each once for each place it is named at.
    pub fn files(&self) -> impl Iterator<Item = &InputFile> {
        let sets = self.sets.values().flatten();
        self.passages.iter().chain(&self.queries).chain(sets).map(|data| &data.file)
    }

    /// Finds and hashes the files that `spec` names; its folder is relative to `base`.
    pub(super) async fn collect(spec: &JobSpec, base: &Location) -> Result<Self, InputError> {
        let corpus = &spec.corpus;
        let folder = base.join(&corpus.path).map_err(|source| read("corpus.path", source))?;
        let finder = Finder { folder };
        let (format, found) = finder.format(corpus).await?;
        let mut sets = BTreeMap::new();
        let (mut set_queries, mut tried) = (Vec::new(), Vec::new());
        for set in spec.sets.train.iter().chain(&spec.sets.dev).chain(&spec.sets.test) {
            let layout = Layout::of(format, corpus.preset, set);
            let what = format!("judgements of set {set:?}");
            let files = match corpus.sets.get(set) {
                Some(named) => finder.named(&what, named).await?,
                None => vec![finder.required(&what, &format!("corpus.sets.{set}"), &layout.set).await?],
            };
            sets.insert(set.clone(), files);
            if corpus.queries.is_empty() && !layout.set_queries.is_empty() {
                set_queries.extend(finder.first(&layout.set_queries).await?);
                tried.extend(layout.set_queries);
            }
        }
        let layout = Layout::of(format, corpus.preset, "");
        let queries = if !corpus.queries.is_empty() {
            finder.named("queries", &corpus.queries).await?
        } else if layout.queries.is_empty() {
            Vec::new()
        } else {
            match finder.first(&layout.queries).await? {
                Some(file) => vec![file],
                None if !set_queries.is_empty() => set_queries,
                // Sets that bring their own questions need no others.
                None if sets.values().flatten().all(brings_questions) => Vec::new(),
                None => {
                    let tried: Vec<_> = layout.queries.iter().cloned().chain(tried).collect();
                    return Err(finder.missing("queries", "corpus.queries", &tried));
                }
            }
        };
        let passages = match found {
            Some(passages) => passages,
            None => sets.values().flatten().cloned().collect(),
        };
        Ok(Self { passages, queries, sets })
    }
}

/// Whether a file of a set holds the text of its questions.
fn brings_questions(data: &DataFile) -> bool {
    use FileFormat as F;
    !matches!(data.format, None | Some(F::Qrels | F::IdTriples | F::ScoredTriples))
}

struct Finder {
    folder: Location,
}

impl Finder {
    /// The layout, and the passages where they have files of their own.
    async fn format(&self, corpus: &CorpusSpec) -> Result<(CorpusFormat, Option<Vec<DataFile>>), InputError> {
        let what = "corpus";
        if !corpus.passages.is_empty() {
            return Ok((corpus.format, Some(self.named(what, &corpus.passages).await?)));
        }
        let mut tried = Vec::new();
        let formats = match corpus.format {
            CorpusFormat::Auto => Layout::TRIED.to_vec(),
            format => vec![format],
        };
        for format in formats {
            let layout = Layout::of(format, corpus.preset, "");
            if let Some(passages) = self.first(&layout.passages).await? {
                return Ok((format, Some(vec![passages])));
            }
            if layout.inline {
                return Ok((format, None));
            }
            tried.extend(layout.passages);
        }
        Err(self.missing(what, "corpus.passages", &tried))
    }

    /// The files that the spec names: each a file, a folder or a glob.
    async fn named(&self, what: &str, list: &FileList) -> Result<Vec<DataFile>, InputError> {
        let mut files = Vec::new();
        for named in &list.0 {
            let found = self.folder.expand(&named.path).await.map_err(|source| read(what, source))?;
            let before = files.len();
            for location in found {
                let file = InputFile::find(what, &location).await?;
                files.extend(file.map(|file| DataFile { file, format: named.format }));
            }
            if files.len() == before {
                let tried =
                    self.folder.join(&named.path).map_or_else(|_| named.path.clone(), |url| url.to_string());
                return Err(InputError::Missing { what: what.to_owned(), tried });
            }
        }
        Ok(files)
    }

    /// The first that exists.
    async fn first(&self, names: &[(String, FileFormat)]) -> Result<Option<DataFile>, InputError> {
        for (name, format) in names {
            for ending in ENDINGS {
                let fail = |source| read(name, source);
                let location = self.folder.join(&format!("{name}{ending}")).map_err(fail)?;
                if let Some(file) = InputFile::find(name, &location).await? {
                    // A set's rows may be of any of the forms that hold them; its content tells which.
                    let open = matches!(format, FileFormat::Tevatron | FileFormat::Triplets);
                    return Ok(Some(DataFile { file, format: (!open).then_some(*format) }));
                }
            }
        }
        Ok(None)
    }

    async fn required(
        &self,
        what: &str,
        key: &str,
        names: &[(String, FileFormat)],
    ) -> Result<DataFile, InputError> {
        self.first(names).await?.ok_or_else(|| self.missing(what, key, names))
    }

    fn missing(&self, what: &str, key: &str, names: &[(String, FileFormat)]) -> InputError {
        let tried = names
            .iter()
            .map(|(name, _)| self.folder.join(name).map_or_else(|_| name.clone(), |file| file.to_string()));
        let mut tried = tried.collect::<Vec<_>>().join(", ");
        if tried.is_empty() {
            key.clone_into(&mut tried);
        } else {
            tried = format!("{tried} (each also .gz and .zst, or another file by {key})");
        }
        InputError::Missing { what: what.to_owned(), tried }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files to write, what to add to the spec, and what must be said or found.
    async fn check(files: &[&str], corpus: &str, sets: &str, expected: Result<&str, &str>) {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, file).unwrap();
        }
        let text = format!(
            "name = \"a\"\n[corpus]\npath = \"{}\"\n{corpus}\n[sets]\n{sets}\n[teacher]\nmodel = \"m\"",
            folder.path().display()
        );
        let spec = crate::spec::parse(&text, "a.toml", &[]).unwrap();
        let base = Location::of_path(folder.path()).unwrap();
        let found = CorpusInputs::collect(&spec, &base).await;
        let name = |data: &DataFile| {
            let name = data.file.url.rsplit('/').next().unwrap().to_owned();
            format!("{name}:{}", data.format.map_or("?", FileFormat::name))
        };
        let names = |files: &[DataFile]| files.iter().map(name).collect::<Vec<_>>().join(" ");
        let said = found.map_err(|error| error.to_string()).map(|found| {
            let sets: Vec<_> =
                found.sets.iter().map(|(set, files)| format!("{set}={}", names(files))).collect();
            format!("{} | {} | {}", names(&found.passages), names(&found.queries), sets.join(" "))
        });
        match (&said, expected) {
            (Ok(said), Ok(expected)) => assert_eq!(said, expected, "{files:?} {corpus}"),
            (Err(said), Err(expected)) => assert!(said.contains(expected), "{said}"),
            _ => panic!("{files:?} {corpus}: {said:?} instead of {expected:?}"),
        }
    }

    #[tokio::test]
    async fn layouts_are_recognised_by_their_passages() {
        let dev = "dev = [\"dev\"]";
        let beir = ["corpus.jsonl.zst", "queries.jsonl", "qrels/dev.tsv.gz"];
        let all = "corpus.jsonl.zst:jsonl | queries.jsonl:jsonl | dev=dev.tsv.gz:qrels";
        check(&beir, "", dev, Ok(all)).await;
        let marco = ["collection.tsv", "queries.dev.tsv", "qrels.dev.tsv"];
        check(&marco, "", dev, Ok("collection.tsv:tsv | queries.dev.tsv:tsv | dev=qrels.dev.tsv:qrels"))
            .await;
        let dpr = ["psgs_w100.tsv.gz", "train.json", "dev.qas.csv"];
        let sets = "train = [\"train\"]\ndev = [\"dev\"]";
        check(&dpr, "", sets, Ok("psgs_w100.tsv.gz:psgs |  | dev=dev.qas.csv:qas train=train.json:dpr"))
            .await;
        check(&["x"], "", dev, Err("corpus.jsonl")).await;
        check(&beir[..2], "", dev, Err("judgements of set \"dev\": none of")).await;
        check(&["collection.tsv", "qrels.dev.tsv"], "", dev, Err("queries.dev.tsv")).await;
        check(
            &["dev.jsonl"],
            "format = \"flag_embedding\"",
            dev,
            Ok("dev.jsonl:flag_embedding |  | dev=dev.jsonl:flag_embedding"),
        )
        .await;
    }

    #[tokio::test]
    async fn files_are_named_by_path_folder_or_glob() {
        let files = ["parts/b.tsv", "parts/a.tsv", "parts/.hidden", "q.tsv", "dev.txt"];
        let rest = "queries = \"q.tsv\"\nsets.dev = { path = \"dev.txt\", format = \"qrels\" }\n";
        let all = "a.tsv:? b.tsv:? | q.tsv:? | dev=dev.txt:qrels";
        let dev = "dev = [\"dev\"]";
        check(&files, &format!("passages = \"parts\"\n{rest}"), dev, Ok(all)).await;
        check(&files, &format!("passages = \"parts/*.tsv\"\n{rest}"), dev, Ok(all)).await;
        check(&files, &format!("passages = \"p*/[b].tsv\"\n{rest}"), dev, Ok(&all.replace("a.tsv:? ", "")))
            .await;
        check(&files, &format!("passages = \"parts/?.csv\"\n{rest}"), dev, Err("parts/%3F.csv")).await;
    }

    #[tokio::test]
    async fn presets_know_the_names_under_which_files_are_distributed() {
        let files =
            ["psgs_w100.tsv", "biencoder-nq-train.json.gz", "nq-dev.qa.csv", "retriever/qas/nq-test.csv"];
        let all = "psgs_w100.tsv:psgs |  | dev=nq-dev.qa.csv:qas test=nq-test.csv:qas train=biencoder-nq-train.json.gz:dpr";
        check(&files, "preset = \"nq\"", "", Ok(all)).await;
        let files = [
            "collection.tsv",
            "queries.train.tsv",
            "queries.dev.small.tsv",
            "qrels.train.tsv",
            "qrels.dev.small.tsv",
        ];
        let all = "collection.tsv:tsv | queries.train.tsv:tsv queries.dev.small.tsv:tsv | \
                   dev=qrels.dev.small.tsv:qrels train=qrels.train.tsv:qrels";
        check(&files, "preset = \"msmarco-passage\"", "", Ok(all)).await;
        check(&files[..1], "preset = \"msmarco-passage\"", "", Err("qrels.train.tsv")).await;
    }
}

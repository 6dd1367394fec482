//! What a job made, in the formats of other programs: a folder that is complete when its manifest is there.
//!
//! - [`catalog`]: where a job's results lie in the store
//! - [`vectors`]: embeddings as safetensors, NumPy and Parquet, and indexes for FAISS
//! - [`lists`]: ranked lists as TREC and MS MARCO runs and as DPR's JSON
//! - [`model`]: folders for sentence-transformers
//! - [`negatives`]: mined negatives for BEIR, Tevatron and sentence-transformers
//! - [`faiss`], [`embeddings`]: the file formats themselves, pure

pub mod catalog;
pub mod embeddings;
pub mod faiss;
pub mod lists;
pub mod model;
pub mod negatives;
pub mod vectors;

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use retort_common::ids::Hasher;
use serde_json::{Value, json};

use crate::tasks::{TaskError, Workbench};
use catalog::{Catalog, CatalogRow};

/// The file that says what an export holds, written last.
pub const MANIFEST: &str = "manifest.json";

/// A format to export to; [`Format::about`] says what each is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    SentenceTransformers,
    Safetensors,
    Npy,
    Parquet,
    Faiss,
    Trec,
    Dpr,
    Negatives,
}

impl Format {
    /// Every format.
    pub const ALL: [Format; 8] = [
        Format::SentenceTransformers,
        Format::Safetensors,
        Format::Npy,
        Format::Parquet,
        Format::Faiss,
        Format::Trec,
        Format::Dpr,
        Format::Negatives,
    ];

    /// Its name on the command line and in manifests.
    pub fn name(self) -> &'static str {
        match self {
            Format::SentenceTransformers => "st",
            Format::Safetensors => "safetensors",
            Format::Npy => "npy",
            Format::Parquet => "parquet",
            Format::Faiss => "faiss",
            Format::Trec => "trec",
            Format::Dpr => "dpr",
            Format::Negatives => "negatives",
        }
    }

    /// What it writes, in a few words.
    pub fn about(self) -> &'static str {
        match self {
            Format::SentenceTransformers => "A model folder for sentence-transformers",
            Format::Safetensors => "Embeddings in safetensors",
            Format::Npy => "Embeddings in NumPy's format",
            Format::Parquet => "Embeddings in Parquet",
            Format::Faiss => "An index for FAISS",
            Format::Trec => "TREC and MS MARCO runs with judgements",
            Format::Dpr => "DPR's retrieval results, JSON",
            Format::Negatives => "Mined negatives for BEIR, Tevatron and sentence-transformers",
        }
    }
}

/// A folder that is being filled.
pub struct Output {
    folder: PathBuf,
    files: Vec<Value>,
}

impl Output {
    /// Begins in a folder that must be empty or absent: what lay in it before would be taken for part of the export.
    pub fn begin(folder: &Path) -> Result<Self, TaskError> {
        std::fs::create_dir_all(folder).map_err(Workbench::scratch_error(folder))?;
        let mut entries = std::fs::read_dir(folder).map_err(Workbench::scratch_error(folder))?;
        if entries.next().is_some() {
            return Err(TaskError::Input(format!("{} is not empty; name a new folder", folder.display())));
        }
        Ok(Self { folder: folder.to_owned(), files: Vec::new() })
    }

    /// Writes a file by `fill` and notes its size and digest.
    pub fn file(
        &mut self,
        name: &str,
        fill: impl FnOnce(&mut BufWriter<File>) -> Result<(), TaskError>,
    ) -> Result<(), TaskError> {
        let path = self.path(name)?;
        let mut out = BufWriter::new(File::create(&path).map_err(Workbench::scratch_error(&path))?);
        fill(&mut out)?;
        out.flush().map_err(Workbench::scratch_error(&path))?;
        self.note(name)
    }

    /// The path of a file to be; its folder exists.
    fn path(&self, name: &str) -> Result<PathBuf, TaskError> {
        let path = self.folder.join(name);
        let parent = path.parent().unwrap_or(&self.folder);
        std::fs::create_dir_all(parent).map_err(Workbench::scratch_error(parent))?;
        Ok(path)
    }

    /// Notes size and digest of a file that is written.
    fn note(&mut self, name: &str) -> Result<(), TaskError> {
        let path = self.folder.join(name);
        let fail = || Workbench::scratch_error(&path);
        let mut file = File::open(&path).map_err(fail())?;
        let (mut hasher, mut bytes, mut buffer) = (Hasher::default(), 0, vec![0; 1 << 16]);
        loop {
            let read = file.read(&mut buffer).map_err(fail())?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
            bytes += read as u64;
        }
        let sha256 = hasher.finish().to_string();
        self.files.push(json!({ "name": name, "bytes": bytes, "sha256": sha256 }));
        Ok(())
    }

    /// Writes the manifest: with it the export is complete.
    fn finish(mut self, facts: Value) -> Result<Value, TaskError> {
        self.files.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
        let mut manifest = json!({ "schema_version": 1 });
        for (key, value) in facts.as_object().into_iter().flatten() {
            manifest[key] = value.clone();
        }
        manifest["files"] = Value::Array(self.files);
        let path = self.folder.join(MANIFEST);
        let text = serde_json::to_string_pretty(&manifest).expect("a json value has a text") + "\n";
        // Under its own name only when it is whole.
        let temporary = self.folder.join(".manifest.incomplete");
        std::fs::write(&temporary, text).map_err(Workbench::scratch_error(&temporary))?;
        std::fs::rename(&temporary, &path).map_err(Workbench::scratch_error(&path))?;
        Ok(manifest)
    }
}

/// Fails a write to an export.
pub(crate) fn write_error(error: std::io::Error) -> TaskError {
    TaskError::Scratch { path: PathBuf::from("export"), source: error }
}

/// Exports a row of a finished job into `folder`; gives the manifest. Without a name the row is the only student.
pub fn export(
    bench: &Workbench<'_>,
    catalog: &Catalog,
    row: Option<&str>,
    format: Format,
    folder: &Path,
) -> Result<Value, TaskError> {
    let mut facts = json!({
        "job": catalog.job, "name": catalog.name, "format": format.name(),
        "spec_digest": catalog.spec_digest, "fingerprint": catalog.fingerprint,
    });
    if format == Format::Negatives {
        let mut output = Output::begin(folder)?;
        negatives::write(bench, catalog, &mut output)?;
        return output.finish(facts);
    }
    let row = choose(catalog, row)?;
    facts["row"] = json!(row.name);
    facts["kind"] = json!(row.kind);
    facts["variant"] = json!(row.variant);
    let mut output = Output::begin(folder)?;
    match format {
        Format::SentenceTransformers => model(bench, catalog, row, &mut output)?,
        Format::Safetensors | Format::Npy | Format::Parquet => {
            facts["vectors"] = vectors::embeddings(bench, catalog, row, format, &mut output)?;
        }
        Format::Faiss => facts["index"] = vectors::index(bench, catalog, row, &mut output)?,
        Format::Trec => lists::runs(bench, row, &mut output)?,
        Format::Dpr => lists::dpr(bench, catalog, row, &mut output)?,
        Format::Negatives => unreachable!("handled above"),
    }
    output.finish(facts)
}

/// The row of that name, or the only student.
fn choose<'c>(catalog: &'c Catalog, name: Option<&str>) -> Result<&'c CatalogRow, TaskError> {
    let names = || catalog.rows.iter().map(|row| row.name.as_str()).collect::<Vec<_>>().join(", ");
    if let Some(name) = name {
        let row = catalog.rows.iter().find(|row| row.name == name);
        return row.ok_or_else(|| {
            TaskError::Input(format!("job {} has no row {name:?}; it has {}", catalog.job, names()))
        });
    }
    let mut students = catalog.rows.iter().filter(|row| row.export.is_some());
    match (students.next(), students.next()) {
        (Some(row), None) => Ok(row),
        _ => Err(TaskError::Input(format!("job {} has several rows; name one of {}", catalog.job, names()))),
    }
}

/// A student's folder for sentence-transformers, as the job made it, with its model card.
fn model(
    bench: &Workbench<'_>,
    catalog: &Catalog,
    row: &CatalogRow,
    output: &mut Output,
) -> Result<(), TaskError> {
    let export = row.export.as_ref().ok_or_else(|| {
        let why = match row.kind.as_str() {
            "quantised" => "is asked by the teacher as it is, which is the model of its index",
            _ => "is no student: only those are exported as models",
        };
        TaskError::Input(format!("{:?} {why}", row.name))
    })?;
    let manifest = bench.manifest(export)?;
    for part in &manifest.parts {
        bench.go_on()?;
        let source = bench.wait(bench.artifacts.part(&manifest, &part.name))?;
        let target = output.path(&part.name)?;
        std::fs::copy(&source, &target).map_err(Workbench::scratch_error(&target))?;
        output.note(&part.name)?;
    }
    if let Some(card) = catalog.cards.get(&row.name) {
        output.file("README.md", |out| out.write_all(card.as_bytes()).map_err(write_error))?;
    }
    Ok(())
}

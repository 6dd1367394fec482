//! Files outside the store, read once from start to end and verified by then against the digest that was
//! recorded at submit.

use super::bench::{TaskError, Workbench};
use crate::model::encoder_folder;
use crate::text::Tokenizer;
use retort_common::ids::{Digest, Hasher};
use retort_common::model::modules::is_inside;
use retort_common::spec::inputs::{InputFile, ModelFiles};
use retort_common::store::Location;
use std::cell::RefCell;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// The error for a file that is not the one that was submitted.
pub fn changed(file: &InputFile) -> TaskError {
    TaskError::Input(format!(
        "{}: changed since the job was submitted; restore it, or submit the job again to use the new contents",
        file.url
    ))
}

/// A verified local copy: the file itself where it is local, else one in the cache.
pub fn local_copy(bench: &Workbench<'_>, file: &InputFile) -> Result<PathBuf, TaskError> {
    let location = Location::parse(&file.url)?;
    if let Some(path) = location.local_path() {
        let mut reader = open(&path, file)?;
        std::io::copy(&mut reader, &mut std::io::sink()).map_err(|error| read_error(file, &error))?;
        reader.verify(file)?;
        return Ok(path);
    }
    fetch(bench, file, &location)
}

fn fetch(bench: &Workbench<'_>, file: &InputFile, location: &Location) -> Result<PathBuf, TaskError> {
    let missing = || TaskError::Input(format!("{}: does not exist any more; put it back", file.url));
    if bench.wait(location.stream())?.is_none() {
        return Err(missing());
    }
    let stream = async || {
        let found = location.stream().await?;
        found.ok_or_else(|| retort_common::store::StoreError::Missing { path: file.url.clone() })
    };
    bench.wait(bench.artifacts.cache().file(file.sha256, stream))?.map_err(|_| changed(file))
}

fn read_error(file: &InputFile, error: &std::io::Error) -> TaskError {
    TaskError::Input(format!("{}: {error}", file.url))
}

/// A local file that hashes what is read of it.
struct HashingFile {
    file: File,
    hasher: Rc<RefCell<Hasher>>,
}

impl HashingFile {
    fn verify(self, file: &InputFile) -> Result<(), TaskError> {
        verify(&self.hasher, file)
    }
}

fn verify(hasher: &Rc<RefCell<Hasher>>, file: &InputFile) -> Result<(), TaskError> {
    let found = hasher.borrow().clone().finish();
    if found == file.sha256 { Ok(()) } else { Err(changed(file)) }
}

impl Read for HashingFile {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.hasher.borrow_mut().update(&buffer[..read]);
        Ok(read)
    }
}

fn open(path: &Path, file: &InputFile) -> Result<HashingFile, TaskError> {
    let handle = File::open(path).map_err(|error| read_error(file, &error))?;
    Ok(HashingFile { file: handle, hasher: Rc::default() })
}

/// A folder with the model's files under their own names, each verified.
pub fn model_folder(bench: &Workbench<'_>, files: &ModelFiles) -> Result<PathBuf, TaskError> {
    let mut paths = Vec::new();
    for (name, file) in &files.by_name {
        if !is_inside(name) {
            return Err(TaskError::Input(format!("{name:?} is no name of a model's file")));
        }
        bench.go_on()?;
        paths.push((name, local_copy(bench, file)?));
    }
    // Errors name the user's own files where they lie together already.
    let base = |(name, path): &(&String, PathBuf)| {
        let depth = name.split('/').count();
        let folder = path.ancestors().nth(depth)?;
        (folder.join(name) == *path).then(|| folder.to_owned())
    };
    if let Some(folder) = paths.first().and_then(base)
        && paths.iter().all(|file| base(file).as_ref() == Some(&folder))
    {
        return Ok(folder);
    }
    let folder = bench.scratch(&format!("model-{}", Digest::of_json(files).short()));
    for (name, path) in paths {
        let link = folder.join(name);
        let parent = link.parent().unwrap_or(&folder);
        std::fs::create_dir_all(parent).map_err(Workbench::scratch_error(parent))?;
        if !link.exists() {
            std::os::unix::fs::symlink(path, &link).map_err(Workbench::scratch_error(&link))?;
        }
    }
    Ok(folder)
}

/// The `tokenizer.json` of a model's folder, made in the scratch folder where the model has older files.
pub fn tokenizer_file(bench: &Workbench<'_>, folder: &Path) -> Result<PathBuf, TaskError> {
    let encoder = encoder_folder(folder).map_err(TaskError::input)?;
    let own = encoder.join("tokenizer.json");
    if own.exists() {
        return Ok(own);
    }
    let made = bench.scratch("tokenizer.json");
    let json = Tokenizer::json(&encoder).map_err(TaskError::input)?;
    std::fs::write(&made, json).map_err(Workbench::scratch_error(&made))?;
    Ok(made)
}

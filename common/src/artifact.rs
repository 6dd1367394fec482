//! Artifacts: the immutable outputs of tasks, in the store and in a worker's bounded cache.
//!
//! An artifact's parts lie under attempt-unique names; its manifest is written last, by put-if-absent. It
//! exists if and only if its manifest does, so nothing half-written can be taken for finished.

use crate::ids::{AttemptNumber, Digest, Hasher};
use crate::store::{Put, Store, StoreError};
use crate::task::ArtifactId;
use bytes::Bytes;
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio::io::AsyncWriteExt;

/// Raised when manifests change their form.
const SCHEMA_VERSION: u32 = 1;
/// Largest manifest that is read.
const MANIFEST_BYTES: usize = 64 << 20;

/// What can go wrong with an artifact.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The manifest is no manifest of this artifact.
    #[error("manifest of {artifact} is not readable: {cause}")]
    Manifest {
        /// Which artifact.
        artifact: ArtifactId,
        /// What is wrong.
        cause: String,
    },
    /// A part whose bytes are not those its manifest promises.
    #[error(
        "part {part:?} of {artifact} is corrupt: {cause}; stop the cluster, delete this artifact's folder and the \
         store's journal, and run the job again: only what is missing is computed"
    )]
    Corrupt {
        /// Which artifact.
        artifact: ArtifactId,
        /// Which part.
        part: String,
        /// What is wrong.
        cause: String,
    },
    /// An artifact or part that a task needs and that is not there.
    #[error("{artifact} has no part {part:?}")]
    NoPart {
        /// Which artifact.
        artifact: ArtifactId,
        /// Which part.
        part: String,
    },
    /// The local disk failed.
    #[error("{path}: {source}; the cache needs a writable folder with space")]
    Disk {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

/// One file of an artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Its name within the artifact.
    pub name: String,
    /// Where it lies, relative to the store's root.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// Its digest.
    pub sha256: Digest,
}

/// What an artifact holds. Written last; its presence is the artifact's existence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Form of this document.
    pub schema_version: u32,
    /// Which artifact.
    pub artifact: ArtifactId,
    /// 1, or more where it had to be made again.
    pub incarnation: u32,
    /// The attempt that made it.
    pub attempt: AttemptNumber,
    /// Its files in order.
    pub parts: Vec<Part>,
    /// Numbers about it, for plans and people.
    pub meta: Value,
}

fn manifest_path(artifact: &ArtifactId, incarnation: u32) -> String {
    format!("artifacts/{}/{}/manifest.{incarnation}.json", artifact.kind, artifact.task)
}

/// The manifest of the artifact's incarnation, if it exists.
pub async fn find(
    store: &Store,
    artifact: &ArtifactId,
    incarnation: u32,
) -> Result<Option<Manifest>, ArtifactError> {
    let bytes = match store.get(&manifest_path(artifact, incarnation)).await {
        Ok(bytes) => bytes,
        Err(StoreError::Missing { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let fail = |cause: String| ArtifactError::Manifest { artifact: artifact.clone(), cause };
    if bytes.len() > MANIFEST_BYTES {
        return Err(fail(format!("larger than {MANIFEST_BYTES} bytes")));
    }
    let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|error| fail(error.to_string()))?;
    if manifest.schema_version != SCHEMA_VERSION {
        return Err(fail(format!("schema version {} is not {SCHEMA_VERSION}", manifest.schema_version)));
    }
    if manifest.artifact != *artifact {
        return Err(fail(format!("it is of {}", manifest.artifact)));
    }
    Ok(Some(manifest))
}

/// An artifact in the making: files are added one by one, the manifest ends it.
pub struct ArtifactWriter {
    store: Store,
    artifact: ArtifactId,
    incarnation: u32,
    attempt: AttemptNumber,
    nonce: String,
    parts: Vec<Part>,
}

impl ArtifactWriter {
    /// Begins the output of a task's attempt. `nonce` makes the names of its parts unique, so that two workers
    /// that believe to run the same attempt cannot overwrite each other's files.
    pub fn new(
        store: &Store,
        artifact: ArtifactId,
        incarnation: u32,
        attempt: AttemptNumber,
        nonce: String,
    ) -> Self {
        Self { store: store.clone(), artifact, incarnation, attempt, nonce, parts: Vec::new() }
    }

    fn place(&self, name: &str) -> String {
        let ArtifactId { kind, task } = &self.artifact;
        format!("artifacts/{kind}/{task}/{}-{}/{name}", self.attempt.0, self.nonce)
    }

    /// Adds a part from memory.
    pub async fn add(&mut self, name: &str, bytes: Bytes) -> Result<(), ArtifactError> {
        let part = Part {
            name: name.to_owned(),
            path: self.place(name),
            bytes: bytes.len() as u64,
            sha256: Digest::of(&bytes),
        };
        self.store.put(&part.path, bytes).await?;
        self.parts.push(part);
        Ok(())
    }

    /// Adds a part from a local file.
    pub async fn add_file(&mut self, name: &str, file: &Path) -> Result<(), ArtifactError> {
        let path = file.to_owned();
        let (bytes, sha256) = tokio::task::spawn_blocking(move || hash_file(&path))
            .await
            .expect("hashing does not panic")
            .map_err(|source| ArtifactError::Disk { path: file.to_owned(), source })?;
        let part = Part { name: name.to_owned(), path: self.place(name), bytes, sha256 };
        self.store.upload(&part.path, file).await?;
        self.parts.push(part);
        Ok(())
    }

    /// Writes the manifest. Where another attempt was first, its artifact stands and is returned: outputs are
    /// pure, so either will do.
    pub async fn finish(self, meta: Value) -> Result<Manifest, ArtifactError> {
        let manifest = Manifest {
            schema_version: SCHEMA_VERSION,
            artifact: self.artifact,
            incarnation: self.incarnation,
            attempt: self.attempt,
            parts: self.parts,
            meta,
        };
        let bytes = serde_json::to_vec_pretty(&manifest).expect("a manifest has a JSON form");
        let path = manifest_path(&manifest.artifact, self.incarnation);
        match self.store.put_if_absent(&path, bytes.into()).await? {
            Put::Created => Ok(manifest),
            Put::Exists => {
                let missing = || ArtifactError::Manifest {
                    artifact: manifest.artifact.clone(),
                    cause: "it vanished while it was written".to_owned(),
                };
                find(&self.store, &manifest.artifact, self.incarnation).await?.ok_or_else(missing)
            }
        }
    }
}

fn hash_file(path: &Path) -> std::io::Result<(u64, Digest)> {
    let mut file = std::fs::File::open(path)?;
    let (mut hasher, mut bytes, mut buffer) = (Hasher::default(), 0, vec![0; 1 << 20]);
    loop {
        let read = std::io::Read::read(&mut file, &mut buffer)?;
        if read == 0 {
            return Ok((bytes, hasher.finish()));
        }
        hasher.update(&buffer[..read]);
        bytes += read as u64;
    }
}

/// A worker's bounded cache of verified files, named by their digests. Oldest use goes first.
#[derive(Clone)]
pub struct Cache {
    folder: PathBuf,
    limit_bytes: u64,
    used: Arc<Mutex<VecDeque<(Digest, u64)>>>,
}

impl Cache {
    /// A cache in `folder`, which is emptied of what an earlier process left half-written.
    pub fn open(folder: &Path, limit_bytes: u64) -> Result<Self, ArtifactError> {
        let disk = |source| ArtifactError::Disk { path: folder.to_owned(), source };
        std::fs::create_dir_all(folder).map_err(disk)?;
        let mut used = VecDeque::new();
        for entry in std::fs::read_dir(folder).map_err(disk)? {
            let entry = entry.map_err(disk)?;
            match entry.file_name().to_string_lossy().parse::<Digest>() {
                Ok(digest) => used.push_back((digest, entry.metadata().map_err(disk)?.len())),
                Err(_) => std::fs::remove_file(entry.path()).map_err(disk)?,
            }
        }
        Ok(Self { folder: folder.to_owned(), limit_bytes, used: Arc::new(Mutex::new(used)) })
    }

    /// The cache's folder, for scratch files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The local file with this digest, fetched by `stream` where the cache lacks it. The digest is verified
    /// while the file is written; a file of another digest never gets its name.
    pub async fn file(
        &self,
        digest: Digest,
        stream: impl AsyncFnOnce() -> Result<crate::store::ByteStream, StoreError>,
    ) -> Result<Result<PathBuf, Digest>, ArtifactError> {
        let path = self.folder.join(digest.to_string());
        let disk = |source| ArtifactError::Disk { path: path.clone(), source };
        if let Ok(metadata) = tokio::fs::metadata(&path).await {
            self.touch(digest, metadata.len());
            return Ok(Ok(path));
        }
        let part = self.folder.join(format!("{digest}.{}", uuid::Uuid::new_v4()));
        let written = write_stream(&part, stream().await?).await;
        if !matches!(&written, Ok((found, _)) if *found == digest) {
            // What cannot be removed is removed when the cache is opened again.
            let _ = tokio::fs::remove_file(&part).await;
        }
        let (found, bytes) = written?;
        if found != digest {
            return Ok(Err(found));
        }
        tokio::fs::rename(&part, &path).await.map_err(disk)?;
        self.touch(digest, bytes);
        Ok(Ok(path))
    }

    /// Marks a file as used and removes the longest unused beyond the limit. Open files stay readable.
    fn touch(&self, digest: Digest, bytes: u64) {
        let mut used = self.used.lock().expect("no holder of the lock panics");
        used.retain(|(other, _)| *other != digest);
        used.push_back((digest, bytes));
        let mut total: u64 = used.iter().map(|(_, bytes)| bytes).sum();
        while total > self.limit_bytes && used.len() > 1 {
            if let Some((oldest, bytes)) = used.pop_front() {
                // A file that cannot be removed only takes space; the next process counts it again.
                let _ = std::fs::remove_file(self.folder.join(oldest.to_string()));
                total -= bytes;
            }
        }
    }
}

/// Writes a stream to a file and returns its digest and size. The file is on disk before it gets its final name, so
/// that a power loss cannot leave a short one under it.
async fn write_stream(
    path: &Path,
    mut stream: crate::store::ByteStream,
) -> Result<(Digest, u64), ArtifactError> {
    let disk = |source| ArtifactError::Disk { path: path.to_owned(), source };
    let mut file = tokio::fs::File::create(path).await.map_err(disk)?;
    let (mut hasher, mut bytes) = (Hasher::default(), 0);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk?;
        hasher.update(&chunk);
        bytes += chunk.len() as u64;
        file.write_all(&chunk).await.map_err(disk)?;
    }
    file.flush().await.map_err(disk)?;
    file.sync_all().await.map_err(disk)?;
    Ok((hasher.finish(), bytes))
}

/// Reads artifacts through a cache.
#[derive(Clone)]
pub struct ArtifactReader {
    store: Store,
    cache: Cache,
}

impl ArtifactReader {
    /// A reader of `store` through `cache`.
    pub fn new(store: Store, cache: Cache) -> Self {
        Self { store, cache }
    }

    /// The cache.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The manifest of an artifact that must exist: its newest incarnation is looked for from the first on.
    pub async fn manifest(&self, artifact: &ArtifactId) -> Result<Manifest, ArtifactError> {
        let missing = || ArtifactError::NoPart { artifact: artifact.clone(), part: "manifest".to_owned() };
        find(&self.store, artifact, 1).await?.ok_or_else(missing)
    }

    /// A verified local copy of a part.
    pub async fn part(&self, manifest: &Manifest, name: &str) -> Result<PathBuf, ArtifactError> {
        let missing = || ArtifactError::NoPart { artifact: manifest.artifact.clone(), part: name.to_owned() };
        let part = manifest.parts.iter().find(|part| part.name == name).ok_or_else(missing)?;
        self.cache.file(part.sha256, async || self.store.stream(&part.path).await).await?.map_err(|found| {
            ArtifactError::Corrupt {
                artifact: manifest.artifact.clone(),
                part: name.to_owned(),
                cause: format!("its digest is {}, its manifest says {}", found.short(), part.sha256.short()),
            }
        })
    }
}
